"""Weights at 8, 4 or 2 bits per output channel."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.ir.packed_weights import channel_bits, pack, packed_size, unpack

LIMITS = {2: 2, 4: 8, 8: 128}


def weights(*shape: int, widths: tuple[int, ...] = (8, 4, 2)) -> np.ndarray:
    """Random s8 whose channel k needs ``widths[k % 3]`` bits."""
    random = np.random.default_rng(0)
    rows = []
    for channel in range(shape[0]):
        limit = LIMITS[widths[channel % len(widths)]]
        row = random.integers(-limit, limit, shape[1:])
        row.flat[0] = -limit  # so that no smaller width will do
        rows.append(row)
    return np.array(rows, np.int8)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 1, 1), (7, 3, 3, 3), (16, 5), (6, 1, 3, 3), (4, 8, 1, 1)])
@pytest.mark.parametrize("widths", [(8,), (4,), (2,), (8, 4, 2)])
def test_round_trip_at_the_smallest_size(shape, widths):
    exact = weights(*shape, widths=widths)
    packed = pack(exact)
    bits = channel_bits(exact)
    assert bits.tolist() == [widths[k % len(widths)] for k in range(shape[0])]
    per_channel = exact[0].size
    expected = sum(-(-int(b) * per_channel // 8) for b in bits)
    assert packed.dtype == np.uint8 and packed.size == shape[0] + expected == packed_size(bits, per_channel)
    np.testing.assert_array_equal(unpack(packed, shape), exact)


def test_layout_of_the_bytes():
    rows = np.array([[1, -2, 0, 1, -1], [7, -8, 1, 0, 0], [-128, 127, 0, 1, 2]], np.int8)
    # -2 is 10 in two bits and -1 is 11; the first weight lies lowest
    assert pack(rows).tolist() == [2, 4, 8, 0b01001001, 0b11, 0x87, 0x01, 0, 128, 127, 0, 1, 2]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p[:2], "too few"),
        (lambda p: p[:-1], "bytes, expected"),
        (lambda p: np.append(p, p[-1:]), "bytes, expected"),
        (lambda p: np.concatenate([[3], p[1:]]).astype(np.uint8), "3 bits"),
        (lambda p: np.concatenate([[0], p[1:]]).astype(np.uint8), "0 bits"),
        (lambda p: np.concatenate([p[:4], [p[4] | 0x80], p[5:]]).astype(np.uint8), "beyond its weights"),
    ],
)
def test_damaged_bytes_are_refused(edit, message):
    packed = pack(np.array([[1, -2, 0, 1, -1], [7, -8, 1, 0, 0], [-128, 127, 0, 1, 2]], np.int8))
    with pytest.raises(ValueError, match=message):
        unpack(edit(packed), (3, 5))


def test_bytes_decide_what_is_allocated():
    with pytest.raises(ValueError, match="too few"):
        unpack(np.full(64, 2, np.uint8), (1 << 20, 1 << 10))
    with pytest.raises(ValueError, match="expected"):
        unpack(np.full(64, 2, np.uint8), (1, (1 << 31) - 1))
