"""What follows a convolution's sum, in Triton: v = clamp(sum + bias) * gate + shift + residual, clamped."""

from __future__ import annotations

import triton
import triton.language as tl

from dynprune_rt.backends.triton_kernels.channel_sets import place_of


@triton.jit
def clamp(v, low, high):
    """Lets NaN pass."""
    return tl.where(v < low, low, tl.where(v > high, high, v))


@triton.jit
def gated(v, bias, gate, shift, image, output, outputs, valid, shift_stride, inner_low, inner_high,
          HAS_BIAS: tl.constexpr, HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr):  # fmt: skip
    """The steps between the sum and the residual. ``image`` and ``output`` broadcast to v."""
    if HAS_BIAS:
        v += tl.load(bias + output, mask=valid, other=0.0)
    v = clamp(v, inner_low, inner_high)
    if HAS_GATE:
        v *= tl.load(gate + image * outputs + output, mask=valid, other=0.0)
    if HAS_SHIFT:
        v += tl.load(shift + image * shift_stride + output, mask=valid, other=0.0)
    return v


@triton.jit
def store_result(v, y, y_sets, residual, residual_sets, image, pixel, pixels, output, outputs, valid,
                 outer_low, outer_high, Y_PACKED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
                 RESIDUAL_PACKED: tl.constexpr):  # fmt: skip
    """Adds the residual, clamps, and stores what the map y stores; returns it as it was rounded. ``valid`` has the
    shape of v.
    """
    pitch = (outputs + 7) // 8 * 8
    row = (image.to(tl.int64) * pixels + pixel) * pitch
    if HAS_RESIDUAL:
        place = place_of(residual_sets, image, output, outputs, valid, RESIDUAL_PACKED)
        v += tl.load(residual + row + place, mask=place != 0xFFFF, other=0.0).to(tl.float32)
    v = clamp(v, outer_low, outer_high)
    place = place_of(y_sets, image, output, outputs, valid, Y_PACKED)
    rounded = v.to(y.dtype.element_ty)
    tl.store(y + row + place, rounded, mask=place != 0xFFFF)
    return rounded
