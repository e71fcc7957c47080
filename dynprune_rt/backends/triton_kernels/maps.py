"""Moving and pooling maps, in Triton (compare csrc/cuda/layout.cuh and pooling.cuh)."""

from __future__ import annotations

import triton
import triton.language as tl

from dynprune_rt.backends.triton_kernels.channel_sets import channel_at, channel_count, place_of


@triton.jit
def larger(a, b):
    """NaN wins over everything."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def smaller(a, b):
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def added(a, b):
    return a + b


@triton.jit
def multiplied(a, b):
    return a * b


@triton.jit
def repack_kernel(data, sets, planes, pixels, channels, PACKED: tl.constexpr, UNPACK: tl.constexpr, BP: tl.constexpr,
                  BN: tl.constexpr):  # fmt: skip
    """Between a map and fp32 [N, C, H, W]; channels that are not stored read as 0 and are not written."""
    tiles = tl.cdiv(pixels, BP)
    image = tl.program_id(0) // tiles
    pixel = (tl.program_id(0) - image * tiles) * BP + tl.arange(0, BP)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    place = place_of(sets, image, channel, channels, channel < channels, PACKED)
    row = (image.to(tl.int64) * pixels + pixel) * ((channels + 7) // 8 * 8)
    plane = (image.to(tl.int64) * channels + channel) * pixels
    in_tile = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    stored = in_tile & (place != 0xFFFF)[None, :]
    at_map = data + row[:, None] + place[None, :]
    at_plane = planes + plane[None, :] + pixel[:, None]
    if UNPACK:
        tl.store(at_plane, tl.load(at_map, mask=stored, other=0.0).to(tl.float32), mask=in_tile)
    else:
        tl.store(at_map, tl.load(at_plane, mask=stored, other=0.0).to(data.dtype.element_ty), mask=stored)


@triton.jit
def pool2d_kernel(
    x, x_sets, y, y_sets, in_h, in_w, out_h, out_w, channels, window_h, window_w, stride_h, stride_w, pad_top, pad_left,
    pad_bottom, pad_right, dilation_h, dilation_w, divisor,
    AVERAGE: tl.constexpr, INCLUDE_PAD: tl.constexpr, ADAPTIVE: tl.constexpr, X_PACKED: tl.constexpr,
    Y_PACKED: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """window_h, window_w: the kernel, or for ADAPTIVE the largest window."""
    pixels = out_h * out_w
    tiles = tl.cdiv(pixels, BP)
    image = tl.program_id(0) // tiles
    pixel = (tl.program_id(0) - image * tiles) * BP + tl.arange(0, BP)
    out_place = tl.program_id(1) * BN + tl.arange(0, BN)
    valid = out_place < channel_count(y_sets, image, channels, Y_PACKED)
    channel = channel_at(y_sets, image, out_place, channels, valid, Y_PACKED)
    place = place_of(x_sets, image, channel, channels, valid, X_PACKED)
    pitch = (channels + 7) // 8 * 8
    oy = pixel // out_w
    ox = pixel % out_w
    if ADAPTIVE:
        top = oy * in_h // out_h
        left = ox * in_w // out_w
        bottom = ((oy + 1) * in_h + out_h - 1) // out_h
        right = ((ox + 1) * in_w + out_w - 1) // out_w
    else:
        top = oy * stride_h - pad_top
        left = ox * stride_w - pad_left
        bottom = top + (window_h - 1) * dilation_h + 1
        right = left + (window_w - 1) * dilation_w + 1
    first = x + image.to(tl.int64) * (in_h * in_w) * pitch
    total = tl.zeros((BP, BN), tl.float32)
    if not AVERAGE:
        total += float("-inf")
    counted = pixel * 0
    for dy in range(window_h):
        for dx in range(window_w):
            iy = top + dy * dilation_h
            ix = left + dx * dilation_w
            inside = (pixel < pixels) & (iy >= 0) & (iy < in_h) & (iy < bottom)
            inside &= (ix >= 0) & (ix < in_w) & (ix < right)
            source = first + (iy * in_w + ix) * pitch
            wanted = inside[:, None] & (place != 0xFFFF)[None, :]
            v = tl.load(source[:, None] + place[None, :], mask=wanted, other=0.0).to(tl.float32)
            if AVERAGE:
                total += v
            else:
                total = tl.where(inside[:, None], larger(v, total), total)
            counted += inside.to(tl.int32)
    if AVERAGE:
        if INCLUDE_PAD:  # a window that ceil_mode lets hang over counts up to the padding's end
            counted = (tl.minimum(bottom, in_h + pad_bottom) - top) * (tl.minimum(right, in_w + pad_right) - left)
        counted = tl.where(divisor > 0, divisor, counted)
        total = total / tl.where(pixel < pixels, counted, 1).to(tl.float32)[:, None]
    row = (image.to(tl.int64) * pixels + pixel) * pitch
    in_tile = (pixel < pixels)[:, None] & valid[None, :]
    tl.store(y + row[:, None] + out_place[None, :], total.to(y.dtype.element_ty), mask=in_tile)


@triton.jit
def spatial_reduce_kernel(x, x_sets, y, pixels, channels, MAXIMUM: tl.constexpr, MINIMUM: tl.constexpr,
                          ABSOLUTE: tl.constexpr, SQUARED: tl.constexpr, MEAN: tl.constexpr, ROOT: tl.constexpr,
                          X_PACKED: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """[N, C] of a map; BP partial results, each of every BP-th pixel in order, then a fixed tree. 0 if not stored."""
    image = tl.program_id(0)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    place = place_of(x_sets, image, channel, channels, channel < channels, X_PACKED)
    stored = place != 0xFFFF
    pitch = (channels + 7) // 8 * 8
    first = x + image.to(tl.int64) * pixels * pitch
    total = tl.zeros((BP, BN), tl.float32)
    if MAXIMUM:
        total += float("-inf")
    if MINIMUM:
        total += float("inf")
    for start in range(0, pixels, BP):
        pixel = start + tl.arange(0, BP)
        wanted = (pixel < pixels)[:, None] & stored[None, :]
        v = tl.load(first + pixel[:, None] * pitch + place[None, :], mask=wanted, other=0.0).to(tl.float32)
        if ABSOLUTE:
            v = tl.abs(v)
        if SQUARED:
            v = v * v
        if MAXIMUM:
            total = tl.where(wanted, larger(v, total), total)
        elif MINIMUM:
            total = tl.where(wanted, smaller(v, total), total)
        else:
            total += v
    if MAXIMUM:
        result = tl.reduce(total, 0, larger)
    elif MINIMUM:
        result = tl.reduce(total, 0, smaller)
    else:
        result = tl.reduce(total, 0, added)
    if MEAN:
        result = result / pixels.to(tl.float32)
    if ROOT:
        result = tl.sqrt(result)
    tl.store(y + image.to(tl.int64) * channels + channel, tl.where(stored, result, 0.0), mask=channel < channels)
