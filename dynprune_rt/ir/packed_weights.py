"""Storage of integer weights at 8, 4 or 2 bits per output channel.

A packed tensor is one run of bytes: the width in bits of every channel, then every channel's weights in order, each
channel padded with zero bits to whole bytes. Weights are two's complement, the first one in the lowest bits of a byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Widths that a channel may be stored in, in bits.
WIDTHS = (2, 4, 8)


def channel_bits(weights: np.ndarray) -> np.ndarray:
    """The smallest width in `WIDTHS` that holds each output channel of s8[K, ...], as u8[K]."""
    rows = weights.reshape(weights.shape[0], -1)
    low, high = rows.min(axis=1).astype(np.int64), rows.max(axis=1).astype(np.int64)
    bits = np.full(len(rows), WIDTHS[-1], np.uint8)
    for width in reversed(WIDTHS[:-1]):
        limit = 1 << (width - 1)
        bits[(low >= -limit) & (high < limit)] = width
    return bits


def channel_bytes(bits: np.ndarray, weights_per_channel: int) -> np.ndarray:
    """Bytes of each channel's weights, i64[K]."""
    return (bits.astype(np.int64) * weights_per_channel + 7) // 8


def packed_size(bits: np.ndarray, weights_per_channel: int) -> int:
    """Bytes of a packed tensor, its widths included."""
    return len(bits) + int(channel_bytes(bits, weights_per_channel).sum())


def pack(weights: np.ndarray) -> np.ndarray:
    """s8[K, ...] as u8[bytes], every channel at its smallest width."""
    bits = channel_bits(weights)
    rows = np.ascontiguousarray(weights).reshape(weights.shape[0], -1).view(np.uint8)
    sizes = channel_bytes(bits, rows.shape[1])
    starts = len(bits) + np.cumsum(sizes) - sizes
    packed = np.zeros(packed_size(bits, rows.shape[1]), np.uint8)
    packed[: len(bits)] = bits
    for width in np.unique(bits).tolist():
        chosen = np.flatnonzero(bits == width)
        per_byte, size = 8 // width, int(sizes[chosen[0]])
        padded = np.zeros((len(chosen), size * per_byte), np.uint8)
        padded[:, : rows.shape[1]] = rows[chosen] & ((1 << width) - 1)
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
        # The fields of a byte do not overlap: their sum is their union.
        content = (padded.reshape(len(chosen), size, per_byte) << shifts).sum(axis=2, dtype=np.uint8)
        packed[starts[chosen, None] + np.arange(size)] = content
    return packed


def unpack(packed: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """s8 of ``shape`` from u8[bytes]. Allocates only what the bytes can hold.

    Raises ValueError for an unknown width, a wrong number of bytes, or padding that is not zero.
    """
    channels, per_channel = shape[0], math.prod(shape[1:])
    if packed.ndim != 1 or len(packed) < channels:
        raise ValueError(f"{packed.size} bytes are too few for {channels} channels")
    bits = packed[:channels]
    if not np.isin(bits, WIDTHS).all():
        channel = int(np.flatnonzero(~np.isin(bits, WIDTHS))[0])
        raise ValueError(f"channel {channel} has a width of {bits[channel]} bits, expected one of {WIDTHS}")
    if len(packed) != packed_size(bits, per_channel):
        raise ValueError(f"it has {len(packed)} bytes, expected {packed_size(bits, per_channel)}")
    sizes = channel_bytes(bits, per_channel)
    starts = channels + np.cumsum(sizes) - sizes
    rows = np.empty((channels, per_channel), np.int8)
    for width in np.unique(bits).tolist():
        chosen = np.flatnonzero(bits == width)
        per_byte, size = 8 // width, int(sizes[chosen[0]])
        content = packed[starts[chosen, None] + np.arange(size)]
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
        fields = ((content[:, :, None] >> shifts) & np.uint8((1 << width) - 1)).reshape(len(chosen), -1)
        if fields[:, per_channel:].any():
            raise ValueError("it holds bits beyond its weights")
        # Moved to the top of the byte and back, the sign fills the upper bits.
        unused = np.int8(8 - width)
        rows[chosen] = (fields[:, :per_channel] << np.uint8(unused)).view(np.int8) >> unused
    return rows.reshape(tuple(shape))
