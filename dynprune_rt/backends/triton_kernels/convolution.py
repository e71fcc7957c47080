"""Convolutions that execute live channels only, in Triton (compare csrc/cuda/conv_gemm.cuh and conv_direct.cuh)."""

from __future__ import annotations

import triton
import triton.language as tl

from dynprune_rt.backends.triton_kernels.channel_sets import (
    channel_at,
    channel_count,
    place_of,
    record_of,
    set_pitch,
    unsigned,
)
from dynprune_rt.backends.triton_kernels.epilogue import gated, store_result
from dynprune_rt.backends.triton_kernels.maps import fold_groups, reduction_start, reduction_value


@triton.jit
def computed_output(computed, image, column, outputs, BY_GROUP: tl.constexpr, GATHERED: tl.constexpr):
    """The output of a column of the product, and whether it is to be computed."""
    output = column
    valid = column < outputs
    if GATHERED:
        record = record_of(computed, image, outputs)
        if BY_GROUP:
            groups = unsigned(tl.load(record + 2))
            inside = column < groups * 8
            group = unsigned(tl.load(record + 8 + 2 * set_pitch(outputs) + column // 8, mask=inside, other=0))
            output = group * 8 + column % 8
            valid = inside & (output < outputs)
            valid &= place_of(computed, image, output, outputs, valid, True) != 0xFFFF
        else:
            valid = column < channel_count(computed, image, outputs, True)
            output = channel_at(computed, image, column, outputs, valid, True)
    return output, valid


@triton.jit
def conv_gemm_kernel(
    x, x_sets, y, y_sets, computed, weights, bias, gate, shift, residual, residual_sets, groups,
    rows, in_h, in_w, out_h, out_w, channels, outputs, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left,
    dilation_h, dilation_w, shift_stride, inner_low, inner_high, outer_low, outer_high,
    DENSE: tl.constexpr, BY_OUTPUT: tl.constexpr, BY_GROUP: tl.constexpr, GATHERED: tl.constexpr,
    X_PACKED: tl.constexpr, Y_PACKED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_GATE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RESIDUAL_PACKED: tl.constexpr, REDUCTION: tl.constexpr,
    WIDEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of pixels, image after image, tiles of outputs). DENSE: tiles run on from image to image.

    The grid follows from shapes; programs past an image's computed outputs end at once. K = (tap, stored input).
    REDUCTION: the number of a kind in maps.SPATIAL_KINDS, whose results of groups of 32 pixels of the stored output go
    to ``groups`` [N, groups, K]; or -1. WIDEN: operands become fp32, for the interpreter, which does not multiply bf16.
    """
    pixels = out_h * out_w
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    tile = tl.program_id(0)
    if DENSE:
        row = tile * BM + tl.arange(0, BM)
        image = row // pixels
        pixel = row - image * pixels
        row_valid = row < rows
        list_image = tile * 0
    else:
        tiles = tl.cdiv(pixels, BM)
        list_image = tile // tiles
        pixel = (tile - list_image * tiles) * BM + tl.arange(0, BM)
        image = pixel * 0 + list_image
        row_valid = pixel < pixels
    output, valid = computed_output(computed, list_image, column, outputs, BY_GROUP, GATHERED)
    if tl.max(valid.to(tl.int32), 0) == 0:
        return
    count = channel_count(x_sets, list_image, channels, X_PACKED)
    in_pitch = (channels + 7) // 8 * 8
    out_pitch = (outputs + 7) // 8 * 8
    top = pixel // out_w * stride_h - pad_top
    left = pixel % out_w * stride_w - pad_left
    first = x + image.to(tl.int64) * (in_h * in_w) * in_pitch
    total = tl.zeros((BM, BN), tl.float32)
    for tap in range(kernel_h * kernel_w):
        iy = top + tap // kernel_w * dilation_h
        ix = left + tap % kernel_w * dilation_w
        inside = row_valid & (iy >= 0) & (iy < in_h) & (ix >= 0) & (ix < in_w)
        source = first + (iy * in_w + ix) * in_pitch
        for start in range(0, count, BK):
            place = start + tl.arange(0, BK)
            stored = place < count
            a = tl.load(source[:, None] + place[None, :], mask=inside[:, None] & stored[None, :], other=0.0)
            wanted = stored[:, None] & valid[None, :]
            if BY_OUTPUT:
                line = (output.to(tl.int64) * (kernel_h * kernel_w) + tap) * in_pitch
                b = tl.load(weights + line[None, :] + place[:, None], mask=wanted, other=0.0)
            else:
                channel = channel_at(x_sets, list_image, place, channels, stored, X_PACKED)
                line = (tap * (channels + 1) + channel).to(tl.int64) * out_pitch
                b = tl.load(weights + line[:, None] + output[None, :], mask=wanted, other=0.0)
            if WIDEN:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            total = tl.dot(a, b, total, input_precision="tf32")
    in_tile = row_valid[:, None] & valid[None, :]
    of_image = image[:, None] if DENSE else list_image
    v = gated(total, bias, gate, shift, of_image, output[None, :], outputs, in_tile, shift_stride,
              inner_low, inner_high, HAS_BIAS, HAS_GATE, HAS_SHIFT)  # fmt: skip
    stored = store_result(v, y, y_sets, residual, residual_sets, of_image, pixel[:, None], pixels, output[None, :],
                          outputs, in_tile, outer_low, outer_high, Y_PACKED, HAS_RESIDUAL, RESIDUAL_PACKED)  # fmt: skip
    if REDUCTION >= 0:
        values = reduction_value(stored.to(tl.float32), REDUCTION)
        values = tl.where(row_valid[:, None], values, reduction_start(REDUCTION))
        part = tl.arange(0, BM // 32)
        if DENSE:  # as many groups as there are: the images' own ones
            line = tile * (BM // 32) + part
            exists = line * 32 < rows
        else:
            count = tl.cdiv(pixels, 32)
            group = (tile - list_image * tiles) * (BM // 32) + part
            line = list_image * count + group
            exists = group < count
        to = groups + line.to(tl.int64)[:, None] * outputs + output[None, :]
        tl.store(to, fold_groups(values, REDUCTION, BM, BN), mask=exists[:, None] & valid[None, :])


@triton.jit
def conv_direct_kernel(
    x, x_sets, y, y_sets, computed, weights, bias, gate, shift, residual, residual_sets,
    in_h, in_w, out_h, out_w, channels, outputs, groups, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left,
    dilation_h, dilation_w, shift_stride, inner_low, inner_high, outer_low, outer_high,
    GATHERED: tl.constexpr, X_PACKED: tl.constexpr, Y_PACKED: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RESIDUAL_PACKED: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grouped convolution, weights fp32 [taps][C / groups][K]; grid: (tiles of pixels, image after image; outputs)."""
    pixels = out_h * out_w
    tiles = tl.cdiv(pixels, BP)
    image = tl.program_id(0) // tiles
    pixel = (tl.program_id(0) - image * tiles) * BP + tl.arange(0, BP)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    output, valid = computed_output(computed, image, column, outputs, False, GATHERED)
    if tl.max(valid.to(tl.int32), 0) == 0:
        return
    in_pitch = (channels + 7) // 8 * 8
    group_inputs = channels // groups
    first_input = output // (outputs // groups) * group_inputs
    top = pixel // out_w * stride_h - pad_top
    left = pixel % out_w * stride_w - pad_left
    first = x + image.to(tl.int64) * (in_h * in_w) * in_pitch
    total = tl.zeros((BP, BN), tl.float32)
    for c in range(group_inputs):
        place = place_of(x_sets, image, first_input + c, channels, valid, X_PACKED)
        for tap in range(kernel_h * kernel_w):
            iy = top + tap // kernel_w * dilation_h
            ix = left + tap % kernel_w * dilation_w
            inside = (pixel < pixels) & (iy >= 0) & (iy < in_h) & (ix >= 0) & (ix < in_w)
            source = first + (iy * in_w + ix) * in_pitch
            a = tl.load(source[:, None] + place[None, :], mask=inside[:, None] & (place != 0xFFFF)[None, :], other=0.0)
            b = tl.load(weights + (tap * group_inputs + c) * outputs + output, mask=valid, other=0.0)
            total += a.to(tl.float32) * b[None, :]
    in_tile = (pixel < pixels)[:, None] & valid[None, :]
    v = gated(total, bias, gate, shift, image, output[None, :], outputs, in_tile, shift_stride,
              inner_low, inner_high, HAS_BIAS, HAS_GATE, HAS_SHIFT)  # fmt: skip
    store_result(v, y, y_sets, residual, residual_sets, image, pixel[:, None], pixels, output[None, :], outputs,
                 in_tile, outer_low, outer_high, Y_PACKED, HAS_RESIDUAL, RESIDUAL_PACKED)  # fmt: skip


@triton.jit
def pass_through_kernel(
    y, y_sets, computed, shift, residual, residual_sets, pixels, outputs, shift_stride, outer_low, outer_high,
    Y_PACKED: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RESIDUAL_PACKED: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Stored channels that a convolution does not compute: y = clamp(shift + residual)."""
    tiles = tl.cdiv(pixels, BP)
    image = tl.program_id(0) // tiles
    pixel = (tl.program_id(0) - image * tiles) * BP + tl.arange(0, BP)
    output = tl.program_id(1) * BN + tl.arange(0, BN)
    valid = output < outputs
    valid &= place_of(computed, image, output, outputs, valid, True) == 0xFFFF
    in_tile = (pixel < pixels)[:, None] & valid[None, :]
    v = tl.zeros((BP, BN), tl.float32)
    if HAS_SHIFT:
        v += tl.load(shift + image * shift_stride + output, mask=valid, other=0.0)[None, :]
    store_result(v, y, y_sets, residual, residual_sets, image, pixel[:, None], pixels, output[None, :], outputs,
                 in_tile, outer_low, outer_high, Y_PACKED, HAS_RESIDUAL, RESIDUAL_PACKED)  # fmt: skip
