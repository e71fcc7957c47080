"""ATen operators that move, repeat or drop elements. The batch stays in dimension 0 throughout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynprune_rt.frontend.operands import BatchIndex, Known
from dynprune_rt.frontend.registry import Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation


def dimension(x: Value, dim: int) -> int:
    """A dimension counted from the front; Unsupported for the batch."""
    dim = dim + x.type.rank if dim < 0 else dim
    if dim == 0:
        raise Unsupported("works along the batch")
    return dim


# ---- reshape, permute, expand -----------------------------------------------------------------


@aten("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int")
@aten("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "view_copy.default")
@aten("squeeze_copy.dims", "unsqueeze_copy.default")
def _reshape(t: Translation, x: Any, *sizes: Any) -> Any:
    """A batched result of the same number of elements keeps each image's elements in order."""
    return x if isinstance(x, BatchIndex) else t.reshape(x, t.result.shape)


@aten("permute.default", "permute_copy.default")
def _permute(t: Translation, x: Value, dims: Sequence[int]) -> Value:
    dims = tuple(d % x.type.rank for d in dims)
    if dims[0] != 0:
        raise Unsupported("moves the batch away from dimension 0")
    return x if dims == tuple(range(x.type.rank)) else t.op("permute", x, dims=dims)


@aten("transpose.int", "transpose_copy.int")
def _transpose(t: Translation, x: Value, a: int, b: int) -> Value:
    dims = list(range(x.type.rank))
    dims[a], dims[b] = dims[b], dims[a]
    return _permute(t, x, dims)


@aten("t.default")
def _t(t: Translation, x: Value) -> Value:
    raise Unsupported("moves the batch away from dimension 0")


@aten("as_strided.default")
def _as_strided(t: Translation, x: Value, size: Any, stride: Sequence[Any], offset: Any = None) -> Value:
    """Accepted where it is a view of a contiguous tensor."""
    shape = t.result.shape
    contiguous = np.cumprod([1, *reversed(shape[1:])]).tolist()[::-1]
    matters = [i for i, d in enumerate(shape) if d != 1]
    elements = int(np.prod(x.type.shape[1:])) == int(np.prod(shape[1:]))
    if offset not in (None, 0) or not elements or any(stride[i] != contiguous[i] for i in matters):
        raise Unsupported("addresses memory by strides; use view, permute or slicing")
    trailing = x.type.shape[2:]
    if any(d != 1 for d in trailing):
        raise Unsupported("addresses memory by strides; use view, permute or slicing")
    return t.reshape(x, shape)


@aten("expand.default", "expand_copy.default")
def _expand(t: Translation, x: Any, sizes: Any, **kwargs: Any) -> Any:
    if isinstance(x, BatchIndex):
        return x
    shape = t.result.shape
    return x if x.type.shape == shape else t.op("expand", x, shape=shape)


@aten("repeat.default")
def _repeat(t: Translation, x: Value, repeats: Sequence[int]) -> Value:
    result = t.result
    if len(repeats) != x.type.rank or repeats[0] != 1:
        raise Unsupported("repeats the batch")
    return x if result == x.type else t.op("repeat", x, repeats=tuple(repeats))


# ---- slices -----------------------------------------------------------------------------------


def sliced(t: Translation, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
    """x[start:stop:step] along ``dim``; x itself where that is all of it."""
    if (start, stop, step) == (0, x.type.shape[dim], 1):
        return x
    return t.op("slice", x, dim=dim, start=start, stop=stop, step=step)


@aten("slice.Tensor", "slice_copy.Tensor")
def _slice(t: Translation, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    if isinstance(x, BatchIndex):
        return x
    if dim % x.type.rank == 0:
        # The result has the whole batch (its size was compared), so this is x[:].
        if t.result != x.type or step != 1:
            raise Unsupported("takes some images of the batch")
        return x
    dim = dimension(x, dim)
    begin, stop, step = slice(start, end, step).indices(x.type.shape[dim])
    if stop <= begin:
        raise Unsupported("makes an empty slice")
    return sliced(t, x, dim, begin, stop, step)


@aten("select.int", "select_copy.int")
def _select(t: Translation, x: Value, dim: int, index: Any) -> Value:
    dim = dimension(x, dim)
    if not isinstance(index, int):
        raise Unsupported("selects by a computed index; use gather")
    index %= x.type.shape[dim]
    return t.reshape(sliced(t, x, dim, index, index + 1), (*x.type.shape[:dim], *x.type.shape[dim + 1 :]))


@aten("narrow.default")
def _narrow(t: Translation, x: Value, dim: int, start: int, length: int) -> Value:
    return _slice(t, x, dim, start, start + length)  # type: ignore[no-any-return]


@aten("split_with_sizes.default", "split_with_sizes_copy.default", "split.sizes")
def _split_with_sizes(t: Translation, x: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    dim = dimension(x, dim)
    stops = np.cumsum(sizes).tolist()
    return [sliced(t, x, dim, stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


@aten("split.Tensor")
def _split(t: Translation, x: Value, size: int, dim: int = 0) -> list[Value]:
    total = x.type.shape[dimension(x, dim)]
    return _split_with_sizes(t, x, [min(size, total - i) for i in range(0, total, size)], dim)


@aten("chunk.default")
def _chunk(t: Translation, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return _split(t, x, -(-x.type.shape[dimension(x, dim)] // chunks), dim)


@aten("unbind.int")
def _unbind(t: Translation, x: Value, dim: int = 0) -> list[Value]:
    dim = dimension(x, dim)
    shape = (*x.type.shape[:dim], *x.type.shape[dim + 1 :])
    return [t.reshape(sliced(t, x, dim, i, i + 1), shape) for i in range(x.type.shape[dim])]


# ---- index_select, flip, roll -----------------------------------------------------------------


def selected(t: Translation, x: Value, dim: int, index: Any) -> Value:
    """index_select by a constant vector; x itself where that is the identity."""
    index = np.asarray(index, np.int64) % x.type.shape[dim]
    if np.array_equal(index, np.arange(x.type.shape[dim])):
        return x
    return t.op("index_select", x, t.constant(index, "i64"), dim=dim)


@aten("index_select.default")
def _index_select(t: Translation, x: Value, dim: int, index: Any) -> Value:
    if not isinstance(index, Known):
        raise Unsupported("selects the same computed entries for all images; use gather")
    return selected(t, x, dimension(x, dim), index.tensor.flatten().numpy())


@aten("flip.default")
def _flip(t: Translation, x: Value, dims: Sequence[int]) -> Value:
    for dim in dims:
        d = dimension(x, dim)
        x = selected(t, x, d, np.arange(x.type.shape[d])[::-1])
    return x


@aten("roll.default")
def _roll(t: Translation, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if not dims:
        raise Unsupported("rolls over the batch")
    for shift, dim in zip(shifts, dims, strict=True):
        d = dimension(x, dim)
        x = selected(t, x, d, np.roll(np.arange(x.type.shape[d]), shift))
    return x


# ---- pad --------------------------------------------------------------------------------------


@aten("constant_pad_nd.default")
def _constant_pad(t: Translation, x: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    """``pad`` holds (low, high) pairs, last dimension first; negative entries crop."""
    low, high = [0] * x.type.rank, [0] * x.type.rank
    for i in range(len(pad) // 2):
        low[-1 - i], high[-1 - i] = pad[2 * i], pad[2 * i + 1]
    for dim, (a, b) in enumerate(zip(low, high, strict=True)):
        if (a or b) and dim == 0:
            raise Unsupported("pads the batch")
        if a < 0 or b < 0:
            x = sliced(t, x, dim, max(-a, 0), x.type.shape[dim] - max(-b, 0))
    low, high = [max(a, 0) for a in low], [max(b, 0) for b in high]
    return t.op("pad", x, low=low, high=high, value=float(value)) if any(low + high) else x


@aten("pad.default")
def _pad(t: Translation, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    """Modes other than constant are a constant index along each padded dimension."""
    if mode == "constant":
        return _constant_pad(t, x, pad, value or 0.0)
    numpy_mode = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    for i in range(len(pad) // 2):
        dim = dimension(x, -1 - i)
        positions = np.arange(x.type.shape[dim])
        x = selected(t, x, dim, np.pad(positions, (pad[2 * i], pad[2 * i + 1]), mode=numpy_mode))  # type: ignore
    return x


# ---- cat, stack, scatter into slices ----------------------------------------------------------


def concatenated(t: Translation, parts: Sequence[Any], dim: int) -> Value:
    """cat along ``dim`` > 0. A constant has no batch of its own: it becomes padding, where it is not one
    number with its values selected in afterwards."""
    dtype = t.result.dtype
    shape = [1, *t.result.shape[1:]]
    from_constant, held = np.zeros(shape, np.bool_), np.zeros(shape, np.float64)
    constants: list[Known] = []
    pieces: list[tuple[Value, int]] = []  # a value, and how much constant comes before it
    start = pending = 0
    for part in parts:
        size = part.type.shape[dim] if isinstance(part, Value) else part.tensor.shape[dim % part.tensor.ndim]
        if isinstance(part, Value):
            pieces.append((t.value(part, dtype), pending))
            pending = 0
        elif size:
            where = (slice(None),) * dim + (slice(start, start + size),)
            from_constant[where], held[where] = True, part.tensor.double().numpy()
            constants.append(part)
            pending += size
        start += size
    scalars = {c.scalar for c in constants}
    uniform = len(scalars) <= 1 and None not in scalars
    fill = float(next(iter(scalars), 0.0) or 0.0) if uniform else 0.0
    padded = []
    for i, (value, before) in enumerate(pieces):
        after = pending if i == len(pieces) - 1 else 0
        low, high = [0] * len(shape), [0] * len(shape)
        low[dim], high[dim] = before, after
        padded.append(t.op("pad", value, low=low, high=high, value=fill) if before or after else value)
    joined = padded[0] if len(padded) == 1 else t.op("cat", *padded, dim=dim)
    return joined if uniform else t.op("where", t.constant(from_constant, "bool"), t.constant(held, dtype), joined)


@aten("cat.default")
def _cat(t: Translation, parts: Sequence[Any], dim: int = 0) -> Value:
    dim %= t.result.rank
    if dim == 0:
        raise Unsupported("joins tensors along the batch")
    return concatenated(t, parts, dim)


@aten("stack.default")
def _stack(t: Translation, parts: Sequence[Any], dim: int = 0) -> Value:
    dim %= t.result.rank
    if dim == 0:
        raise Unsupported("joins tensors along the batch")
    return concatenated(t, [unsqueezed(t, p, dim) for p in parts], dim)


def unsqueezed(t: Translation, operand: Any, dim: int) -> Any:
    """A dimension of size 1 inserted before ``dim``."""
    if isinstance(operand, Known):
        return Known(operand.tensor.unsqueeze(dim), operand.batched)
    shape = operand.type.shape
    return t.reshape(operand, (*shape[:dim], 1, *shape[dim:]))


@aten("slice_scatter.default")
def _slice_scatter(
    t: Translation, x: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    """x with x[start:end:step] along ``dim`` replaced by ``source``."""
    shape = t.result.shape
    dim %= len(shape)
    if dim == 0:
        whole = (start in (None, 0)) and step == 1 and (end is None or not isinstance(end, int) or end >= 2**31)
        if not whole or (isinstance(source, Value) and source.type.shape != shape):
            raise Unsupported("assigns to some images of the batch")
        return source
    begin, stop, step = slice(start, end, step).indices(shape[dim])
    written = np.arange(begin, stop, step)
    if len(written) == shape[dim]:
        return t.value(source, t.result.dtype) if isinstance(source, Value) else source
    kept = np.setdiff1d(np.arange(shape[dim]), written)
    if step == 1:
        parts = [_part(t, x, dim, 0, begin), source, _part(t, x, dim, stop, shape[dim])]
        return concatenated(t, [p for p in parts if p is not None], dim)
    rest = Known(x.tensor.index_select(dim, torch.from_numpy(kept)), x.batched) if isinstance(x, Known) else None
    joined = concatenated(t, [selected(t, x, dim, kept) if rest is None else rest, source], dim)
    return selected(t, joined, dim, np.argsort(np.concatenate([kept, written])))


def _part(t: Translation, x: Any, dim: int, start: int, stop: int) -> Any:
    if stop <= start:
        return None
    if isinstance(x, Known):
        return Known(x.tensor.narrow(dim, start, stop - start), x.batched)
    return sliced(t, x, dim, start, stop)


@aten("select_scatter.default")
def _select_scatter(t: Translation, x: Any, source: Any, dim: int, index: int) -> Any:
    dim %= t.result.rank
    if dim == 0:
        raise Unsupported("assigns to one image of the batch")
    index %= t.result.shape[dim]
    if isinstance(source, Known) and source.tensor.ndim == 0:
        raise Unsupported("assigns a scalar constant to a selection; use torch.where")
    return _slice_scatter(t, x, unsqueezed(t, source, dim), dim, index, index + 1)
