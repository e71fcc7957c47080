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
def reduction_start(KIND: tl.constexpr):
    """What a reduction starts from. KIND numbers maps.SPATIAL_KINDS."""
    start = 0.0
    if KIND == 6 or KIND == 8:
        start = float("-inf")
    if KIND == 7:
        start = float("inf")
    return start


@triton.jit
def reduction_value(v, KIND: tl.constexpr):
    """What a reduction does with each value: absolute values, squares, or nothing."""
    if KIND == 2 or KIND == 3 or KIND == 8:
        v = tl.abs(v)
    if KIND == 4 or KIND == 5:
        v = v * v
    return v


@triton.jit
def reduction_combine(a, b, KIND: tl.constexpr):
    if KIND == 6 or KIND == 8:
        combined = larger(b, a)
    elif KIND == 7:
        combined = smaller(b, a)
    else:
        combined = a + b
    return combined


@triton.jit
def fold(v, KIND: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr):
    """Combines neighbouring rows of [ROWS, BN]: in this order, however the compiler spreads them over threads."""
    a, b = tl.split(tl.permute(tl.reshape(v, (ROWS // 2, 2, BN)), (0, 2, 1)))
    return reduction_combine(a, b, KIND)


@triton.jit
def fold_groups(v, KIND: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr):
    """Results of groups of 32 pixels, [ROWS // 32, BN]; rows that are no pixels hold `reduction_start`."""
    v = fold(v, KIND, ROWS, BN)
    v = fold(v, KIND, ROWS // 2, BN)
    v = fold(v, KIND, ROWS // 4, BN)
    v = fold(v, KIND, ROWS // 8, BN)
    return fold(v, KIND, ROWS // 16, BN)


@triton.jit
def spatial_reduce_kernel(x, x_sets, y, groups, computed, pixels, channels, KIND: tl.constexpr, GIVEN: tl.constexpr,
                          SOME_GIVEN: tl.constexpr, X_PACKED: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """[N, C] of a map, 0 if not stored: eight chains, each of every eighth group of pixels in order, then a fixed tree.

    GIVEN: a convolution has made the results of groups, [N, groups, C]; SOME_GIVEN: of the channels in ``computed``.
    """
    image = tl.program_id(0)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = channel < channels
    place = place_of(x_sets, image, channel, channels, inside, X_PACKED)
    stored = place != 0xFFFF
    count = tl.cdiv(pixels, 32)
    chain = tl.arange(0, 8)
    total = tl.zeros((8, BN), tl.float32) + reduction_start(KIND)
    missing = stored
    if GIVEN:
        given = stored
        if SOME_GIVEN:
            given &= place_of(computed, image, channel, channels, inside, True) != 0xFFFF
        missing = stored & (given == 0)
        for start in range(0, count, 8):
            group = start + chain
            wanted = (group < count)[:, None] & given[None, :]
            line = (image.to(tl.int64) * count + group) * channels
            v = tl.load(groups + line[:, None] + channel[None, :], mask=wanted, other=0.0)
            total = tl.where(wanted, reduction_combine(total, v, KIND), total)
    if tl.max(missing.to(tl.int32), 0) != 0:
        pitch = (channels + 7) // 8 * 8
        first = x + image.to(tl.int64) * pixels * pitch
        for start in range(0, pixels, 256):
            pixel = start + tl.arange(0, 256)
            wanted = (pixel < pixels)[:, None] & missing[None, :]
            v = tl.load(first + pixel[:, None] * pitch + place[None, :], mask=wanted, other=0.0).to(tl.float32)
            v = tl.where(wanted, reduction_value(v, KIND), reduction_start(KIND))
            exists = (start // 32 + chain < count)[:, None] & missing[None, :]
            total = tl.where(exists, reduction_combine(total, fold_groups(v, KIND, 256, BN), KIND), total)
    folded = fold(fold(fold(total, KIND, 8, BN), KIND, 4, BN), KIND, 2, BN)
    result = tl.reshape(folded, (BN,))
    if KIND == 0 or KIND == 2:
        result = result / pixels.to(tl.float32)
    if KIND == 5:
        result = tl.sqrt(result)
    tl.store(y + image.to(tl.int64) * channels + channel, tl.where(stored, result, 0.0), mask=inside)
