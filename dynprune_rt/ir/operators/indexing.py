"""Gather and scatter with computed indices."""

from __future__ import annotations

import numpy as np

from dynprune_rt.ir.operators import rules
from dynprune_rt.ir.operators.attributes import Attribute, integer
from dynprune_rt.ir.operators.registry import Arrays, Attrs, Channels, Operator, Types, register
from dynprune_rt.ir.types import TensorType


def _require_index(x: TensorType, index: TensorType, dim: int) -> None:
    """``index`` addresses ``x`` along ``dim``.

    In every other dimension it covers x or less, as in torch; an x that is the same for every
    image, [1, ...], serves a batched index as well.
    """
    rules.require_dtype(index, rules.INDEX, "the index")
    if index.rank != x.rank:
        raise ValueError(f"the index has rank {index.rank}, the operand rank {x.rank}")
    rules.require_dim(index, dim)
    rules.require_dim(x, dim)
    if index.batched != x.batched and not (index.batched and x.shape[0] == 1):
        raise ValueError(f"the batch of the index {index} does not match {x}")
    for i in range(1 if index.batched else 0, x.rank):
        if i != dim and index.shape[i] > x.shape[i]:
            raise ValueError(f"the index {index} exceeds {x} in dimension {i}")


def _shared(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """x, repeated for every image where it is the same for all."""
    if index.ndim and x.shape[0] == 1 and index.shape[0] != 1:
        return np.broadcast_to(x, (index.shape[0], *x.shape[1:]))
    return x


def _positions(x: np.ndarray, index: np.ndarray, dim: int) -> tuple[np.ndarray, ...]:
    """Where each entry of ``index`` points in x, one array per dimension."""
    if index.size and not (index.min() >= 0 and index.max() < x.shape[dim]):
        raise ValueError(f"an index leaves dimension {dim} of size {x.shape[dim]}")
    grid: list[np.ndarray] = list(np.indices(index.shape, sparse=True))
    grid[dim] = index
    return tuple(grid)


def _infer_gather(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, index = rules.operand(types, 0), rules.operand(types, 1)
    _require_index(x, index, attrs["dim"])
    return (TensorType(x.dtype, index.shape),)


def _gather(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, index = arrays
    assert x is not None and index is not None
    x = _shared(x, index)
    return (np.ascontiguousarray(x[_positions(x, index, attrs["dim"])]),)


def _infer_scatter(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, index, source = (rules.operand(types, i) for i in range(3))
    _require_index(x, index, attrs["dim"])
    rules.require_dtype(source, (x.dtype,), "the source")
    if rules.broadcast([index, source]) != index.shape:
        raise ValueError(f"the source {source} does not broadcast to the index {index}")
    return (TensorType(x.dtype, (index.shape[0], *x.shape[1:]) if index.batched else x.shape),)


def _scatter(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Of several entries that point to one place the last wins."""
    x, index, source = arrays
    assert x is not None and index is not None and source is not None
    out = _shared(x, index).copy()
    out[_positions(out, index, attrs["dim"])] = np.broadcast_to(source, index.shape)
    return (out,)


_ATTRS = {"dim": Attribute(integer())}

register(Operator("gather", (2, 2), _infer_gather, _gather, Channels.MIXING, zero_preserving=True, attrs=_ATTRS))
register(Operator("scatter", (3, 3), _infer_scatter, _scatter, Channels.MIXING, zero_preserving=True, attrs=_ATTRS))
