"""One grid for both back ends of GPU kernels: the CUDA sources on the emulator, and Triton in its interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import (
    BY_INPUT,
    BY_OUTPUT,
    DENSE,
    LAYOUT_NAMES,
    REDUCE_KINDS,
    SPATIAL_KINDS,
    TWO_SIDED,
    ConvMode,
    set_record_bytes,
)
from dynprune_rt.backends.cuda.native_kernels import NativeKernels
from dynprune_rt.gpu_check.kernel_grid import (
    CONVS,
    DIRECT,
    TOLERANCE,
    Conv,
    Random,
    Setting,
    check_case,
    compare,
    poisoned,
)

MakeKernels = Callable[[str], Kernels]


@pytest.fixture(params=["cuda", "triton"])
def make_kernels(request: pytest.FixtureRequest) -> MakeKernels:
    """Kernels of one back end, for a precision."""
    if request.param == "cuda":
        emulated: ModuleType = request.getfixturevalue("emulated")
        return lambda precision: NativeKernels(emulated, torch.device("cpu"), precision)
    return request.getfixturevalue("interpreted")


#: All in fp16, and what touches an element's size or type in the others.
GRID = [(case, p) for case in CONVS for p in TOLERANCE if p == "fp16" or case.name in ("3x3 stride 2", "stem")]


@pytest.mark.parametrize(("case", "precision"), GRID, ids=str)
def test_convolution(make_kernels: MakeKernels, case: Conv, precision: str) -> None:
    assert check_case(make_kernels(precision), case) >= len(case.layouts)


@pytest.mark.parametrize("layout", LAYOUT_NAMES, ids=LAYOUT_NAMES.get)
def test_segments_give_the_same_bits_wherever_they_are_summed(emulated: ModuleType, layout: int) -> None:
    case = Conv("3x3", 40, 72, 6, None, 0.5, kernel=3, padding=1, batch=2)
    if layout in (BY_INPUT, TWO_SIDED):
        case = replace(case, live_in=0.5)
    setting = Setting(case, NativeKernels(emulated, torch.device("cpu"), "fp16"))
    here, spread = (setting.kernels.unpack(setting.result(ConvMode(layout, 3, s))) for s in (False, True))
    assert torch.equal(here, spread)
    compare(setting.kernels, setting.result(ConvMode(layout, 3, True)),
            setting.all_computed if layout == DENSE else setting.expected, 3.0)  # fmt: skip


def test_layouts_of_one_storage_give_the_same_bits(make_kernels: MakeKernels) -> None:
    for live_in, layouts in ((0.5, (BY_INPUT, TWO_SIDED)), (None, (BY_INPUT, BY_OUTPUT, DENSE))):
        setting = Setting(Conv("", 40, 24, 6, live_in, 0.5, kernel=3, padding=1), make_kernels("fp16"))
        results = [setting.kernels.unpack(setting.result(ConvMode(layout))) for layout in layouts]
        computed = setting.computed
        assert computed is not None
        assert all(torch.equal(r, results[0]) for r in results[1:])


@pytest.mark.parametrize("case", DIRECT, ids=str)
def test_grouped_convolution(make_kernels: MakeKernels, case: Conv) -> None:
    assert check_case(make_kernels("fp16"), case) == 1


@pytest.mark.parametrize("channels", [1, 8, 31, 32, 33, 200])
def test_channel_sets(make_kernels: MakeKernels, channels: int) -> None:
    kernels = make_kernels("fp16")
    for share in (0.0, 0.3, 1.0):
        mask = Random(channels).mask(4, channels, share)
        records = kernels.channel_set(mask).records.numpy()
        assert records.shape == (4, set_record_bytes(channels)) and records.shape[1] % 16 == 0
        pitch = -(-channels // 32) * 32
        for row, record in zip(mask.numpy(), records, strict=True):
            live = np.flatnonzero(row)
            groups = np.unique(live // 8)
            lists = record[16:].view(np.uint16)
            assert record[:8].view(np.int32).tolist() == [len(live), len(groups)]
            assert lists[:pitch].tolist() == [*live, *[channels] * (pitch - len(live))]
            place = np.full(pitch, 0xFFFF)
            place[live] = np.arange(len(live))
            assert lists[pitch : 2 * pitch].tolist() == place.tolist()
            assert lists[2 * pitch :][: len(groups)].tolist() == groups.tolist()


def test_the_module_has_the_same_records(emulated: ModuleType) -> None:
    assert all(emulated.set_record_bytes(c) == set_record_bytes(c) for c in (1, 31, 32, 33, 64, 2048, 65534))


def test_repacking(make_kernels: MakeKernels) -> None:
    kernels, random = make_kernels("fp16"), Random(3)
    planes = random.values(2, 21, 4, 5)
    packed, held = poisoned(kernels, planes, random.mask(2, 21, 0.5))
    assert torch.equal(kernels.unpack(packed).double(), held)
    compare(kernels, packed, held, 0.0)


WINDOWS = {
    "max": ("max", (3, 3, 2, 2, 1, 1, 1, 1, 1, 1), False, 0),
    "dilated max": ("max", (2, 2, 1, 1, 0, 0, 0, 0, 2, 2), False, 0),
    "average": ("avg", (3, 3, 2, 2, 1, 1, 1, 1, 1, 1), False, 0),
    "average with the padding": ("avg", (3, 3, 2, 2, 1, 1, 1, 1, 1, 1), True, 0),
    "average of a given divisor": ("avg", (2, 2, 2, 2, 0, 0, 0, 0, 1, 1), False, 3),
}


@pytest.mark.parametrize("name", [*WINDOWS, "adaptive"])
def test_pooling(make_kernels: MakeKernels, name: str) -> None:
    kernels, random = make_kernels("fp16"), Random(4)
    mask = random.mask(2, 20, 0.5)
    x, held = poisoned(kernels, random.values(2, 20, 7, 7), mask)
    kind, window, include_pad, divisor = WINDOWS.get(name, ("avg", (), False, 0))
    functional = torch.nn.functional
    if not window:
        expected = functional.adaptive_avg_pool2d(held, (3, 3))
    elif kind == "max":
        expected = functional.max_pool2d(held, window[0], window[2], window[4], window[8])
    else:
        divide = divisor or None
        expected = functional.avg_pool2d(held, window[0], window[2], window[4], False, include_pad, divide)
    stored = kernels.channel_set(mask | random.mask(2, 20, 0.3))  # a channel that is zero in x may be stored in y
    y = kernels.new_map(2, 20, expected.shape[2:], stored)
    y.data.fill_(math.nan)
    kernels.pool2d(x, y, kind, window, include_pad, divisor)
    compare(kernels, y, expected)


@pytest.mark.parametrize("kind", SPATIAL_KINDS)
def test_spatial_reduction(make_kernels: MakeKernels, kind: str) -> None:
    kernels, random = make_kernels("fp16"), Random(5)
    mask = random.mask(3, 37, 0.5)
    x, held = poisoned(kernels, random.values(3, 37, 5, 5), mask)
    flat = held.flatten(2).abs() if kind.endswith("_abs") else held.flatten(2)
    expected = {
        "mean": lambda: flat.mean(2),
        "sum": lambda: flat.sum(2),
        "sum_squares": lambda: flat.square().sum(2),
        "l2": lambda: flat.square().sum(2).sqrt(),
        "max": lambda: flat.amax(2),
        "min": lambda: flat.amin(2),
    }[kind.removesuffix("_abs")]()
    torch.testing.assert_close(kernels.spatial_reduce(x, kind).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", REDUCE_KINDS)
def test_reduction(make_kernels: MakeKernels, kind: str) -> None:
    kernels, x = make_kernels("fp16"), Random(6).values(3, 45, 2)
    expected = {
        "sum": lambda: x.sum(1),
        "mean": lambda: x.mean(1),
        "max": lambda: x.amax(1),
        "min": lambda: x.amin(1),
        "prod": lambda: x.prod(1),
        "l1": lambda: x.abs().sum(1),
        "l2": lambda: x.square().sum(1).sqrt(),
    }[kind]()
    torch.testing.assert_close(kernels.reduce(x, kind, (1,), False), expected, rtol=1e-5, atol=1e-6)
    assert kernels.reduce(x, kind, (1,), True).shape == (3, 1, 2)


def test_nan_wins_a_maximum(make_kernels: MakeKernels) -> None:
    kernels, x = make_kernels("fp16"), Random(7).values(4, 70)
    x[1, 33] = math.nan
    for kind in ("max", "min"):
        result = kernels.reduce(x, kind, (1,), False)
        assert result.isnan().tolist() == [False, True, False, False]


def test_linear(make_kernels: MakeKernels) -> None:
    kernels, random = make_kernels("fp16"), Random(8)
    x, weights, bias = random.values(5, 77), random.values(9, 77), random.values(9)
    expected = torch.nn.functional.linear(x.double(), weights.double(), bias.double()).clamp(-1.0, 2.0)
    result = kernels.linear(x, weights, bias, (-1.0, 2.0))
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    without = kernels.linear(x, weights, None, (-math.inf, math.inf))
    torch.testing.assert_close(without, torch.nn.functional.linear(x, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("descending", [False, True])
def test_sorting(make_kernels: MakeKernels, descending: bool) -> None:
    kernels = make_kernels("fp16")
    x = (Random(9).values(2, 150, 2) * 20).round()  # many equal elements
    x[0, 5, 0] = x[0, 90, 0] = x[1, 7, 1] = math.nan
    values, index = kernels.sort(x, 1, 40, descending)
    wanted, places = torch.sort(x, dim=1, descending=descending, stable=True)
    torch.testing.assert_close(values, wanted[:, :40], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index, places[:, :40])
