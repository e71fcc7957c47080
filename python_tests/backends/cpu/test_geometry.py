"""Pitch, guards and taps against the definition of a convolution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dynprune_rt.backends.cpu.geometry import BLOCK, PitchClass, Reach, convolution_taps
from dynprune_rt.backends.cpu.storage import Arena, FlatStorage, PlaneStorage


def output_size(size, kernel, stride, padding, dilation):
    return tuple(
        (size[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    )


CASES = [
    pytest.param(size, kernel, stride, padding, dilation, id=f"{size}-{kernel}-s{stride}-p{padding}-d{dilation}")
    for size, kernel, stride, padding, dilation in itertools.product(
        [(7, 7), (5, 9)],
        [(1, 1), (3, 3), (1, 5), (7, 7)],
        [(1, 1), (2, 2), (2, 1), (3, 3)],
        [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0), (3, 3, 3, 3)],
        [(1, 1), (2, 2)],
    )
    if min(output_size(size, kernel, stride, padding, dilation)) > 0
]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), CASES)
def test_taps_address_what_a_convolution_reads(size, kernel, stride, padding, dilation, split):
    top, left, bottom, right = padding
    out = output_size(size, kernel, stride, padding, dilation)
    taps = convolution_taps(size, out, kernel, stride, padding, dilation, split)
    phases, step = (stride, (1, 1)) if split else ((1, 1), stride)
    pitch_class = PitchClass(max(out[1], taps.phase_size[1]), max(out[0], taps.phase_size[0]))
    pitch_class.require(taps.reach)
    pitch, plane_stride = pitch_class.pitch, pitch_class.plane_stride

    # The map in memory: guards, then one plane per phase; NaN where nothing may be read.
    before = pitch_class.guard_before
    memory = np.zeros(before + phases[0] * phases[1] * plane_stride + pitch_class.guard_after)
    image = np.arange(1, size[0] * size[1] + 1, dtype=float).reshape(size)
    for r, s in itertools.product(range(phases[0]), range(phases[1])):
        phase = image[r :: phases[0], s :: phases[1]]
        start = before + (r * phases[1] + s) * plane_stride
        for y, row in enumerate(phase):
            memory[start + y * pitch : start + y * pitch + len(row)] = row

    offsets = taps.flat(pitch, plane_stride)
    padded = np.pad(image, ((top, bottom), (left, right)))
    for y, x in itertools.product(range(out[0]), range(out[1])):
        window = padded[
            y * stride[0] : y * stride[0] + dilation[0] * (kernel[0] - 1) + 1 : dilation[0],
            x * stride[1] : x * stride[1] + dilation[1] * (kernel[1] - 1) + 1 : dilation[1],
        ]
        read = memory[[before + y * step[0] * pitch + x * step[1] + offset for offset in offsets]]
        np.testing.assert_array_equal(read, window.reshape(-1))


def test_united_classes_share_the_widest_pitch():
    a, b = PitchClass(14, 14), PitchClass(15, 13)
    a.require(Reach(left=1, right=1))
    b.require(Reach(left=2, right=0, bottom=3))
    a.unite(b)
    assert a.pitch == b.pitch == 17
    assert a.plane_stride == b.plane_stride
    assert a.guard_after >= 3 * a.pitch


def test_planes_alive_together_do_not_overlap():
    pitch_class = PitchClass(8, 8)
    rng = np.random.default_rng(0)
    storages = []
    for _ in range(40):
        first = int(rng.integers(0, 30))
        storages.append(
            PlaneStorage(first, first + int(rng.integers(0, 8)), int(rng.integers(1, 9)), 8, 8, pitch_class)
        )
    arena = Arena()
    arena.place_planes(storages)
    zero = arena.zero_plane(8, 8, pitch_class.pitch)
    stride = pitch_class.plane_stride
    for a in storages:
        assert a.offset % BLOCK == 0
        assert a.offset >= zero + stride
        assert a.plane_offset(a.planes) + pitch_class.guard_after <= arena.size + stride
        for b in storages:
            if a is not b and a.first <= b.last and b.first <= a.last:
                assert a.plane_offset(a.planes) <= b.offset or b.plane_offset(b.planes) <= a.offset
    assert arena.size < sum(s.planes for s in storages) * stride, "memory is reused"


def test_flats_alive_together_do_not_overlap():
    rng = np.random.default_rng(1)
    storages = []
    for _ in range(40):
        first = int(rng.integers(0, 30))
        storages.append(FlatStorage(first, first + int(rng.integers(0, 8)), int(rng.integers(0, 70))))
    arena = Arena()
    arena.place_flats(storages)
    for a in storages:
        for b in storages:
            if a is not b and a.first <= b.last and b.first <= a.last and a.size and b.size:
                assert a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
