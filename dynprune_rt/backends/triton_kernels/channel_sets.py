"""Channel sets in Triton: the records of csrc/cuda/index_math.h, read and written as 16-bit integers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def set_pitch(channels):
    return (channels + 31) // 32 * 32


@triton.jit
def record_of(sets, image, channels):
    """An image's record; one of [0, 2) holds the count, [2, 4) the count of groups, from 8 on the lists."""
    pitch = set_pitch(channels)
    elements = (16 + 4 * pitch + pitch // 4 + 15) // 16 * 8
    return sets + image.to(tl.int64) * elements


@triton.jit
def unsigned(value):
    return value.to(tl.int32) & 0xFFFF


@triton.jit
def channel_count(sets, image, channels, PACKED: tl.constexpr):
    """How many channels an image stores."""
    count = channels
    if PACKED:
        count = unsigned(tl.load(record_of(sets, image, channels)))
    return count


@triton.jit
def channel_at(sets, image, place, channels, valid, PACKED: tl.constexpr):
    """The channel at a place of an image's rows; where ``valid`` is false, the zero row of the weights."""
    channel = place
    if PACKED:
        index = record_of(sets, image, channels) + 8
        channel = unsigned(tl.load(index + place, mask=valid, other=0))
    return tl.where(valid, channel, channels)


@triton.jit
def place_of(sets, image, channel, channels, valid, PACKED: tl.constexpr):
    """The place of a channel in an image's rows, 0xFFFF where it is not stored or ``valid`` is false."""
    place = channel
    if PACKED:
        position = record_of(sets, image, channels) + 8 + set_pitch(channels)
        place = unsigned(tl.load(position + channel, mask=valid, other=0))
    return tl.where(valid, place, 0xFFFF)


@triton.jit
def live_lists_kernel(mask, sets, channels, BLOCK: tl.constexpr):
    """One program per image; BLOCK a power of two of at least the set's pitch."""
    image = tl.program_id(0)
    pitch = set_pitch(channels)
    i = tl.arange(0, BLOCK)
    in_set = tl.load(mask + image.to(tl.int64) * channels + i, mask=i < channels, other=0) != 0
    ones = in_set.to(tl.int32)
    place = tl.cumsum(ones, 0) - 1
    count = tl.sum(ones, 0)
    record = record_of(sets, image, channels)
    index = record + 8
    tl.store(index + place, i.to(tl.int16), mask=in_set)
    # Readers take whole groups: those past the end name the zero row of the weights.
    tl.store(index + i, (i * 0 + channels).to(tl.int16), mask=(i >= count) & (i < pitch))
    tl.store(index + pitch + i, tl.where(in_set, place, 0xFFFF).to(tl.int16), mask=i < pitch)
    group = tl.arange(0, BLOCK // 8)
    present = tl.max(tl.reshape(ones, (BLOCK // 8, 8)), 1)
    tl.store(index + 2 * pitch + tl.cumsum(present, 0) - 1, group.to(tl.int16), mask=present != 0)
    tl.store(record, count.to(tl.int16))
    tl.store(record + 1, (count * 0).to(tl.int16))
    tl.store(record + 2, tl.sum(present, 0).to(tl.int16))
    tl.store(record + 3, (count * 0).to(tl.int16))
