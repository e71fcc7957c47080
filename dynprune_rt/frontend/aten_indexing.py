"""ATen indexing: boolean assignment becomes where, index vectors become index_select, gather or scatter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynprune_rt.frontend.aten_shape import dimension, selected, sliced
from dynprune_rt.frontend.operands import BatchIndex, Known, Masked
from dynprune_rt.frontend.promotion import dtype_of
from dynprune_rt.frontend.registry import Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation


def _shape(operand: Any) -> tuple[int, ...]:
    return operand.type.shape if isinstance(operand, Value) else tuple(operand.tensor.shape)


def _leading_mask(t: Translation, mask: Any, rank: int) -> Value:
    """A bool mask over the first dimensions, with trailing dimensions of 1 so that it broadcasts."""
    value = t.value(mask, "bool")
    return t.reshape(value, (*value.type.shape, *[1] * (rank - value.type.rank)))


def _only_bool_index(indices: Sequence[Any]) -> Any:
    """The mask of x[mask], or None for any other indexing."""
    if len(indices) == 1 and indices[0] is not None and not isinstance(indices[0], BatchIndex):
        return indices[0] if dtype_of(indices[0]) == "bool" else None
    return None


@aten("index.Tensor")
def _index(t: Translation, x: Any, indices: Sequence[Any]) -> Any:
    mask = _only_bool_index(indices)
    if mask is not None:
        if isinstance(x, Value) and isinstance(mask, Value):
            return Masked(x, mask)
        raise Unsupported("takes a number of elements that depends on values; use torch.where")
    if any(isinstance(index, Known) and index.tensor.dtype is torch.bool for index in indices):
        raise Unsupported("indexes by a bool tensor; keep its nonzero() positions as a buffer instead")
    positions = [i for i, index in enumerate(indices) if index is not None]
    if len(positions) == 1 and isinstance(indices[positions[0]], Known):
        return _index_by_constant(t, x, positions[0], indices[positions[0]])
    if len(positions) == 2 and positions == [0, 1] and isinstance(indices[0], BatchIndex):
        x = _trailing_ones(t, x, 2)
        index, dim, shape = _per_image_index(t, x, indices[1])
        return t.reshape(t.op("gather", x, index, dim=dim), shape)
    raise Unsupported("indexes by computed positions; use gather")


def _index_by_constant(t: Translation, x: Any, dim: int, index: Known) -> Value:
    dim = dimension(x, dim)
    tensor = index.tensor[0] if index.batched else index.tensor
    array = tensor.numpy()
    if tensor.is_floating_point() or (tensor.ndim > 1 and array.dtype == np.bool_):
        raise Unsupported("indexes by a constant of this type")
    if array.dtype == np.bool_:
        array = np.flatnonzero(array)
    shape = x.type.shape
    y = selected(t, x, dim, array.reshape(-1))
    return t.reshape(y, (*shape[:dim], *array.shape, *shape[dim + 1 :]))


def _trailing_ones(t: Translation, x: Any, rank: int) -> Any:
    """x[arange(N), index] addresses dimension 1; trailing dimensions must be 1 so that gather can stand for it."""
    if isinstance(x, Known):
        if x.tensor.ndim != rank:
            raise Unsupported("indexes whole slices by computed positions; use gather")
        return x
    if any(d != 1 for d in x.type.shape[rank:]):
        raise Unsupported("indexes whole slices by computed positions; use gather")
    return t.reshape(x, x.type.shape[:rank])


def _per_image_index(t: Translation, x: Any, index: Any) -> tuple[Value, int, tuple[int, ...]]:
    """([N, k] index, dimension, shape of the result) for x[arange(N), index] with index [N] or [N, k]."""
    if not isinstance(index, Value) or index.type.rank not in (1, 2):
        raise Unsupported("indexes by computed positions of this shape; use gather")
    shape = index.type.shape
    return t.reshape(index, (shape[0], 1 if len(shape) == 1 else shape[1])), 1, t.result.shape


@aten("index_put.default", "_unsafe_index_put.default")
def _index_put(t: Translation, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Value:
    if accumulate:
        raise Unsupported("accumulates into indexed positions")
    dtype, rank = t.result.dtype, t.result.rank
    mask = _only_bool_index(indices)
    if mask is not None:
        if isinstance(values, Masked):
            if not _same(values.mask, mask):
                raise Unsupported("moves elements from one mask to another; use torch.where")
            source = t.value(values.source, dtype)
        elif isinstance(values, Known) and values.tensor.numel() == 1:
            source = t.constant(values.tensor.item(), dtype)
        else:
            raise Unsupported("assigns computed elements to a mask; use torch.where")
        return t.op("where", _leading_mask(t, mask, rank), source, t.value(x, dtype))
    if len(indices) == 2 and isinstance(indices[0], BatchIndex) and rank == 2:
        index, dim, _ = _per_image_index_for_write(t, indices[1])
        return t.op("scatter", t.value(x, dtype), index, _source(t, values, dtype, index), dim=dim)
    raise Unsupported("assigns to computed positions; use scatter or torch.where")


def _same(a: Any, b: Any) -> bool:
    """The same value, or one computed twice: x[m > 0] = y[m > 0]."""
    if a is b or not isinstance(a, Value) or not isinstance(b, Value):
        return a is b
    first, second = a.producer, b.producer
    return (
        first is not None
        and second is not None
        and (first.op, first.inputs, first.attrs) == (second.op, second.inputs, second.attrs)
    )


def _per_image_index_for_write(t: Translation, index: Any) -> tuple[Value, int, tuple[int, ...]]:
    if not isinstance(index, Value) or index.type.rank not in (1, 2):
        raise Unsupported("indexes by computed positions of this shape; use scatter")
    shape = index.type.shape
    columns = 1 if len(shape) == 1 else shape[1]
    return t.reshape(index, (shape[0], columns)), 1, shape


def _source(t: Translation, values: Any, dtype: str, index: Value) -> Value:
    source = t.value(values, dtype)
    if source.type.rank == 1 and source.type.batched:
        return t.reshape(source, (*source.type.shape, 1))
    return source


# ---- gather, scatter, one_hot -----------------------------------------------------------------


@aten("gather.default")
def _gather(t: Translation, x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Value:
    dim = dim % t.result.rank
    if dim == 0:
        raise Unsupported("works along the batch")
    if isinstance(index, Known):
        raise Unsupported("gathers by a constant index; use index_select")
    return t.op("gather", t.value(x), index, dim=dim)


@aten("scatter.value", "scatter.src")
def _scatter(t: Translation, x: Any, dim: int, index: Any, source: Any) -> Value:
    dtype = t.result.dtype
    dim = dim % t.result.rank
    if dim == 0:
        raise Unsupported("works along the batch")
    if isinstance(index, Known):
        raise Unsupported("scatters by a constant index; use a mask and torch.where")
    value = t.value(source, dtype)
    # torch reads only the part of the source that the index covers.
    for i, (have, covered) in enumerate(zip(value.type.shape, index.type.shape, strict=False)):
        if i and value.type.rank == index.type.rank and have > covered:
            value = _cut(t, value, i, covered)
    return t.op("scatter", t.value(x, dtype), index, value, dim=dim)


def _cut(t: Translation, value: Value, dim: int, size: int) -> Value:
    if t.graph.is_constant(value):
        return t.constant(np.take(t.graph.constant(value), np.arange(size), dim), value.type.dtype)
    return sliced(t, value, dim, 0, size)


@aten("one_hot.default")
def _one_hot(t: Translation, x: Value, classes: int = -1) -> Value:
    if classes < 1:
        raise Unsupported("one_hot without a number of classes depends on values; pass num_classes")
    return t.op("one_hot", x, classes=classes)
