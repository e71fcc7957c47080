"""ATen pooling and resizing. A pool over the whole map is a spatial_reduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynprune_rt.frontend.aten_reductions import spatially_reduced
from dynprune_rt.frontend.registry import Handler, Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation


def _pair(values: Any, default: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    values = [values] if isinstance(values, int) else list(values if values is not None else ())
    return (values[0], values[-1]) if values else default


def _padding(values: Any) -> tuple[int, int, int, int]:
    top, left = _pair(values, (0, 0))
    return (top, left, top, left)


def _covers(x: Value, kernel: tuple[int, int], padding: Sequence[int]) -> bool:
    """One window, which is the whole map."""
    return kernel == x.type.shape[2:] and not any(padding)


def _as_map(t: Translation, x: Value) -> Value:
    """[N, C, L] -> [N, C, 1, L]."""
    n, c, length = x.type.shape
    return t.reshape(x, (n, c, 1, length))


def _max_pool(
    t: Translation, x: Value, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Value:
    size, pads = _pair(kernel), _padding(padding)
    if _covers(x, size, pads) and _pair(dilation) == (1, 1):
        return spatially_reduced(t, x, "max", keepdim=True)
    return t.op(
        "max_pool2d",
        x,
        kernel=size,
        stride=_pair(stride, size),
        padding=pads,
        dilation=_pair(dilation),
        ceil_mode=bool(ceil),
    )


aten("max_pool2d.default")(_max_pool)


@aten("max_pool2d_with_indices.default")
def _max_pool_with_indices(t: Translation, x: Value, *rest: Any) -> tuple[Any, ...]:
    return _max_pool(t, x, *rest), None


@aten("max_pool1d.default")
def _max_pool1d(
    t: Translation, x: Value, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Value:
    k, p, d = _pair(kernel)[0], _pair(padding)[0], _pair(dilation)[0]
    s = _pair(stride, (k, k))[0]
    y = _max_pool(t, _as_map(t, x), (1, k), (1, s), (0, p), (1, d), ceil)
    return t.reshape(y, t.result.shape)


@aten("avg_pool2d.default")
def _avg_pool(
    t: Translation,
    x: Value,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Value:
    size, pads = _pair(kernel), _padding(padding)
    if _covers(x, size, pads) and divisor is None:
        return spatially_reduced(t, x, "mean", keepdim=True)
    return t.op(
        "avg_pool2d",
        x,
        kernel=size,
        stride=_pair(stride, size),
        padding=pads,
        ceil_mode=bool(ceil),
        count_include_pad=bool(count_include_pad),
        divisor=divisor or 0,
    )


@aten("avg_pool1d.default")
def _avg_pool1d(
    t: Translation,
    x: Value,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil: bool = False,
    count_include_pad: bool = True,
) -> Value:
    k, p = _pair(kernel)[0], _pair(padding, (0, 0))[0]
    s = _pair(stride, (k, k))[0]
    y = _avg_pool(t, _as_map(t, x), (1, k), (1, s), (0, p), ceil, count_include_pad)
    return t.reshape(y, t.result.shape)


def _adaptive(op: str, kind: str) -> Handler:
    def handler(t: Translation, x: Value, output: Sequence[int]) -> Value:
        size = _pair(output)
        if size == (1, 1):
            return spatially_reduced(t, x, kind, keepdim=True)
        return x if size == x.type.shape[2:] else t.op(op, x, output=size)

    return handler


def _adaptive1d(op: str, kind: str) -> Handler:
    def handler(t: Translation, x: Value, output: Sequence[int]) -> Value:
        y = _adaptive(op, kind)(t, _as_map(t, x), (1, _pair(output)[0]))
        return t.reshape(y, t.result.shape)

    return handler


aten("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")(_adaptive("adaptive_avg_pool2d", "mean"))
aten("adaptive_avg_pool1d.default")(_adaptive1d("adaptive_avg_pool2d", "mean"))


@aten("adaptive_max_pool2d.default")
def _adaptive_max(t: Translation, x: Value, output: Sequence[int]) -> tuple[Any, ...]:
    return _adaptive("adaptive_max_pool2d", "max")(t, x, output), None


@aten("adaptive_max_pool1d.default")
def _adaptive_max1d(t: Translation, x: Value, output: Sequence[int]) -> tuple[Any, ...]:
    return _adaptive1d("adaptive_max_pool2d", "max")(t, x, output), None


# ---- interpolate ------------------------------------------------------------------------------


def _interpolate(t: Translation, x: Value, mode: str, align_corners: bool, scales: Any) -> Value:
    shape = t.result.shape
    if shape == x.type.shape and not scales:
        return x
    if x.type.shape[2:] == (1, 1):
        return t.op("expand", x, shape=shape)
    scale = None if not scales or None in scales else tuple(float(s) for s in scales)
    return t.op("interpolate", x, size=shape[2:], mode=mode, align_corners=align_corners, scale=scale)


@aten("upsample_nearest2d.vec")
def _nearest_vec(t: Translation, x: Value, size: Any, scales: Any = None) -> Value:
    return _interpolate(t, x, "nearest", False, scales)


@aten("upsample_nearest2d.default")
def _nearest(t: Translation, x: Value, size: Any, scale_h: Any = None, scale_w: Any = None) -> Value:
    return _interpolate(t, x, "nearest", False, (scale_h, scale_w))


@aten("upsample_bilinear2d.vec")
def _bilinear_vec(t: Translation, x: Value, size: Any, align_corners: bool, scales: Any = None) -> Value:
    return _interpolate(t, x, "bilinear", bool(align_corners), scales)


@aten("upsample_bilinear2d.default")
def _bilinear(
    t: Translation, x: Value, size: Any, align_corners: bool, scale_h: Any = None, scale_w: Any = None
) -> Value:
    return _interpolate(t, x, "bilinear", bool(align_corners), (scale_h, scale_w))


@aten(
    "_upsample_nearest_exact2d.vec",
    "_upsample_bicubic2d_aa.vec",
    "upsample_bicubic2d.vec",
    "_upsample_bilinear2d_aa.vec",
)
def _other_resizes(t: Translation, *rest: Any, **kwargs: Any) -> Value:
    raise Unsupported("resizes in a mode that the runtime lacks; use nearest or bilinear")
