"""ATen convolutions. One-dimensional ones become two-dimensional with one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynprune_rt.frontend.registry import Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation

Padding = tuple[int, int, int, int]


def _pair(values: Any) -> tuple[int, int]:
    values = [values] if isinstance(values, int) else list(values)
    return (values[0], values[-1])


def _emit(
    t: Translation,
    x: Value,
    weight: Any,
    bias: Any,
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int],
    groups: int,
) -> Value:
    w, b = t.weight(weight, "convolution weight"), t.weight(bias, "convolution bias")
    assert w is not None
    one_row = x.type.rank == 3
    if one_row:  # [N, C, L] -> [N, C, 1, L]
        n, c, length = x.type.shape
        x = t.reshape(x, (n, c, 1, length))
        w = np.expand_dims(w, 2)
    if x.type.rank != 4 or w.ndim != 4:
        raise Unsupported("convolves over other than one or two dimensions")
    y = t.op(
        "conv2d",
        x,
        t.value(weight) if not one_row else t.constant(w),
        None if b is None else t.value(bias),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return t.reshape(y, (*y.type.shape[:2], y.type.shape[3])) if one_row else y


def _settings(rank: int, stride: Any, padding: Any, dilation: Any) -> tuple[tuple[int, int], Padding, tuple[int, int]]:
    if rank == 3:
        s, p, d = (_pair(v)[0] for v in (stride, padding, dilation))
        return (1, s), (0, p, 0, p), (1, d)
    (top, left) = _pair(padding)
    return _pair(stride), (top, left, top, left), _pair(dilation)


@aten("conv2d.default", "conv1d.default")
def _conv(
    t: Translation,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    s, p, d = _settings(x.type.rank, stride, padding, dilation)
    return _emit(t, x, weight, bias, s, p, d, groups)


@aten("conv2d.padding", "conv1d.padding")
def _conv_padding(
    t: Translation,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """padding="same": for an even extent the extra column goes right, the extra row to the bottom."""
    s, _, d = _settings(x.type.rank, stride, 0, dilation)
    if padding == "valid":
        return _emit(t, x, weight, bias, s, (0, 0, 0, 0), d, groups)
    w = t.weight(weight, "convolution weight")
    assert w is not None
    kernel = (1, w.shape[2]) if x.type.rank == 3 else (w.shape[2], w.shape[3])
    extent = [d[i] * (kernel[i] - 1) for i in range(2)]
    top, left = extent[0] // 2, extent[1] // 2
    return _emit(t, x, weight, bias, s, (top, left, extent[0] - top, extent[1] - left), d, groups)


@aten("convolution.default")
def _convolution(
    t: Translation,
    x: Value,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    if transposed:
        raise Unsupported("is a transposed convolution; use interpolate and a convolution")
    return _conv(t, x, weight, bias, stride, padding, dilation, groups)


@aten("conv_transpose2d.input", "conv_transpose1d.default", "conv3d.default", "conv3d.padding")
def _other_convolutions(t: Translation, *rest: Any, **kwargs: Any) -> Value:
    raise Unsupported("is a convolution of a kind that the runtime lacks (transposed, three-dimensional)")
