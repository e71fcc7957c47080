"""Operators over the space of each channel: pools, whole-plane reductions, interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dynprune_rt.ir.bfloat16 import from_bfloat16, to_bfloat16
from dynprune_rt.ir.operators import rules
from dynprune_rt.ir.operators.attributes import (
    Attribute,
    choice,
    flag,
    integer,
    integers,
    positive_pair_or_none,
)
from dynprune_rt.ir.operators.registry import Arrays, Attrs, Channels, Operator, Types, register
from dynprune_rt.ir.types import CHANNELS_PER_WORD, DTYPES, TensorType


def window_view(x: np.ndarray, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """All windows of the two last dimensions, as a view: [N,C,H,W] -> [N,C,H',W',R,S]."""
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(2, 3))
    return windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def pool_output_size(size: int, kernel: int, stride: int, low: int, high: int, dilation: int, ceil_mode: bool) -> int:
    """Length of one pooled dimension. Every window starts inside the input or its leading pad, as in torch."""
    extent = dilation * (kernel - 1) + 1
    if low >= extent or high >= extent:
        raise ValueError(f"the padding {max(low, high)} must be less than the extent {extent} of the window")
    if dilation > size and (low or high):
        raise ValueError(f"dilation {dilation} with padding lets a window miss the input of size {size}")
    room = size + low + high - extent
    if room < 0:
        raise ValueError(f"the window {extent} does not fit into the padded input {size + low + high}")
    out = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + low:
        out -= 1
    return out


def _pool_axes(shape: Sequence[int], attrs: Attrs) -> list[tuple[int, int, int, int, int, int, bool]]:
    """Arguments of `pool_output_size` for H and W."""
    dilation = attrs.get("dilation", (1, 1))
    return [
        (
            shape[2 + axis],
            attrs["kernel"][axis],
            attrs["stride"][axis],
            attrs["padding"][axis],
            attrs["padding"][axis + 2],
            dilation[axis],
            attrs["ceil_mode"],
        )
        for axis in range(2)
    ]


def _infer_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    rules.require_map(rules.operand(types, 0))
    return _infer_max_pool(types, attrs)


def _infer_max_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_map_of(x, ("f32", *CHANNELS_PER_WORD))
    height, width = (pool_output_size(*arguments) for arguments in _pool_axes(x.shape, attrs))
    return (TensorType(x.dtype, (*x.shape[:2], height, width)),)


def _pool_windows(x: np.ndarray, attrs: Attrs, fill: float) -> np.ndarray:
    """Windows [N,C,H',W',R,S] over x padded with ``fill``, as far as the last window reaches."""
    pads = [(0, 0), (0, 0)]
    sizes = []
    for size, kernel, stride, low, high, dilation, ceil_mode in _pool_axes(x.shape, attrs):
        out = pool_output_size(size, kernel, stride, low, high, dilation, ceil_mode)
        reach = (out - 1) * stride + dilation * (kernel - 1) + 1
        pads.append((low, max(0, reach - size - low)))
        sizes.append(out)
    padded = np.pad(x, pads, constant_values=fill)
    windows = window_view(padded, attrs["kernel"], attrs["stride"], attrs.get("dilation", (1, 1)))
    return windows[:, :, : sizes[0], : sizes[1]]


def _max_pool2d(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    assert x is not None
    if x.dtype == DTYPES["bf16"]:
        return (to_bfloat16(_max_pool2d([from_bfloat16(x)], attrs)[0]),)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return (_pool_windows(x, attrs, lowest).max(axis=(4, 5)),)


def _avg_pool2d(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    assert x is not None
    sums = _pool_windows(x.astype(np.float64), attrs, 0.0).sum(axis=(4, 5))
    if attrs["divisor"]:
        return ((sums / attrs["divisor"]).astype(np.float32),)
    # Taps that count: those inside the input, plus those inside the declared padding.
    counts = []
    for axis, (size, kernel, stride, low, high, _, _) in enumerate(_pool_axes(x.shape, attrs)):
        first = np.arange(sums.shape[2 + axis]) * stride - low
        begin, end = (-low, size + high) if attrs["count_include_pad"] else (0, size)
        counts.append(np.minimum(first + kernel, end) - np.maximum(first, begin))
    return ((sums / np.multiply.outer(*counts)).astype(np.float32),)


_POOL_ATTRS = {
    "kernel": Attribute(integers(2, low=1)),
    "stride": Attribute(integers(2, low=1)),
    "padding": Attribute(integers(4), (0, 0, 0, 0)),  # top, left, bottom, right
    "ceil_mode": Attribute(flag, False),
}

register(
    Operator(
        "max_pool2d",
        (1, 1),
        _infer_max_pool,
        _max_pool2d,
        Channels.SPATIAL,
        zero_preserving=True,  # no window misses the input: pool_output_size refuses such shapes
        attrs={**_POOL_ATTRS, "dilation": Attribute(integers(2, low=1), (1, 1))},
    )
)
register(
    Operator(
        "avg_pool2d",
        (1, 1),
        _infer_pool,
        _avg_pool2d,
        Channels.SPATIAL,
        zero_preserving=True,
        attrs={**_POOL_ATTRS, "count_include_pad": Attribute(flag, True), "divisor": Attribute(integer(0), 0)},
    )
)


def _infer_adaptive(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_map(x)
    return (TensorType("f32", (*x.shape[:2], *attrs["output"])),)


def _adaptive(reduce: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays, Attrs], tuple[np.ndarray, ...]]:
    def reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        (x,) = arrays
        assert x is not None
        (height, width), (rows, columns) = x.shape[2:], attrs["output"]
        out = np.empty((*x.shape[:2], rows, columns), np.float32)
        for i in range(rows):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            for j in range(columns):
                left, right = j * width // columns, -(-(j + 1) * width // columns)
                out[:, :, i, j] = reduce(x[:, :, top:bottom, left:right])
        return (out,)

    return reference


def _mean(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.mean(x, axis=(2, 3), dtype=np.float64))


for _name, _function in (("adaptive_avg_pool2d", _mean), ("adaptive_max_pool2d", lambda x: np.max(x, axis=(2, 3)))):
    register(
        Operator(
            _name,
            (1, 1),
            _infer_adaptive,
            _adaptive(_function),
            Channels.SPATIAL,
            zero_preserving=True,
            attrs={"output": Attribute(integers(2, low=1))},
        )
    )


def _sum(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sum(x, axis=(2, 3), dtype=np.float64))


_REDUCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": _mean,
    "sum": _sum,
    "mean_abs": lambda x: _mean(np.abs(x)),
    "sum_abs": lambda x: _sum(np.abs(x)),
    "sum_squares": lambda x: _sum(np.square(x, dtype=np.float64)),
    "l2": lambda x: np.sqrt(_sum(np.square(x, dtype=np.float64))),
    "max": lambda x: np.max(x, axis=(2, 3)),
    "min": lambda x: np.min(x, axis=(2, 3)),
    "max_abs": lambda x: np.max(np.abs(x), axis=(2, 3)),
}

#: Kinds of spatial_reduce, and of the pools that conv2d may return.
SPATIAL_REDUCTIONS = tuple(_REDUCTIONS)


def spatial_reduction(kind: str, x: np.ndarray) -> np.ndarray:
    """Reduce every plane: [N,C,H,W] -> [N,C]."""
    return _REDUCTIONS[kind](x).astype(np.float32)


def _infer_spatial_reduce(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_map_of(x, ("f32", "bf16"))
    return (TensorType("f32", x.shape[:2]),)


def _spatial_reduce(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    assert x is not None
    return (spatial_reduction(attrs["kind"], from_bfloat16(x) if x.dtype == DTYPES["bf16"] else x),)


register(
    Operator(
        "spatial_reduce",
        (1, 1),
        _infer_spatial_reduce,
        _spatial_reduce,
        Channels.SPATIAL,
        zero_preserving=True,
        attrs={"kind": Attribute(choice(*SPATIAL_REDUCTIONS))},
    )
)


def _infer_interpolate(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_map(x)
    if attrs["align_corners"] and attrs["mode"] == "nearest":
        raise ValueError("align_corners has no meaning for mode nearest")
    return (TensorType("f32", (*x.shape[:2], *attrs["size"])),)


def _step(size: int, out: int, scale: float | None) -> np.float32:
    """Input pixels per output pixel: from the scale factor where the user gave one, else from the sizes."""
    step: np.float32 = np.float32(1.0 / scale if scale is not None else size / out)
    return step


def nearest_source(size: int, out: int, scale: float | None) -> np.ndarray:
    """Source index of every output position, in float32 arithmetic as torch computes it."""
    position = np.arange(out, dtype=np.float32) * _step(size, out, scale)
    index: np.ndarray = np.minimum(np.floor(position).astype(np.int64), size - 1)
    return index


def linear_source(
    size: int, out: int, align_corners: bool, scale: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index and weight of the upper one, for every output position (float32, as torch)."""
    i = np.arange(out, dtype=np.float32)
    if align_corners:
        step = np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
        position = i * step
    else:
        half = np.float32(0.5)
        position = np.maximum((i + half) * _step(size, out, scale) - half, np.float32(0))
    low = np.minimum(position.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    return low, high, np.clip(position - low.astype(np.float32), np.float32(0), np.float32(1))


def _interpolate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    assert x is not None
    scale = attrs["scale"] or (None, None)
    sizes = list(zip(x.shape[2:], attrs["size"], scale, strict=True))
    if attrs["mode"] == "nearest":
        rows, columns = (nearest_source(size, out, s) for size, out, s in sizes)
        return (np.ascontiguousarray(x[:, :, rows][:, :, :, columns]),)
    (top, bottom, down), (left, right, across) = (
        linear_source(size, out, attrs["align_corners"], s) for size, out, s in sizes
    )
    y = x.astype(np.float64)
    y = y[:, :, top] * (1.0 - down[:, None]) + y[:, :, bottom] * down[:, None]
    y = y[:, :, :, left] * (1.0 - across) + y[:, :, :, right] * across
    return (y.astype(np.float32),)


register(
    Operator(
        "interpolate",
        (1, 1),
        _infer_interpolate,
        _interpolate,
        Channels.SPATIAL,
        zero_preserving=True,
        attrs={
            "size": Attribute(integers(2, low=1)),
            "mode": Attribute(choice("nearest", "bilinear")),
            "align_corners": Attribute(flag, False),
            # The user's scale factors, where these and not the sizes define the sampling positions.
            "scale": Attribute(positive_pair_or_none, None),
        },
    )
)
