"""One grid of cases for every back end of GPU kernels, against plain convolutions in double.

The tests run it on the emulator and in Triton's interpreter, `gpu_check` on the GPU. Whatever nobody may read is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import (
    BY_INPUT,
    BY_OUTPUT,
    DENSE,
    SPATIAL_KINDS,
    TWO_SIDED,
    ChannelSet,
    ConvMode,
    DeviceMap,
    Epilogue,
)
from dynprune_rt.backends.cuda.weights import by_input, by_output, grouped

Tensor = Any

#: Of the largest value: one rounding of the result, sums in fp32; tf32 rounds the operands.
TOLERANCE: Final = {"fp16": 1e-3, "bf16": 8e-3, "tf32": 2e-3}


class Random:
    """Values and masks, the same for a seed on every device."""

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._device = device or torch.device("cpu")

    def values(self, *shape: int) -> Tensor:
        """fp32 in [-1, 1)."""
        return torch.from_numpy(self._rng.uniform(-1, 1, shape).astype(np.float32)).to(self._device)

    def mask(self, batch: int, channels: int, share: float) -> Tensor:
        """Shares of 0 and 1 are exact."""
        return torch.from_numpy(self._rng.uniform(0, 1, (batch, channels)) < share).to(self._device)


def poisoned(kernels: Kernels, planes: Tensor, mask: Tensor | None) -> tuple[DeviceMap, Tensor]:
    """A map of these planes with NaN wherever nothing is stored, and what it holds, in double."""
    planes = planes.to(kernels.dtype).float()  # Triton's interpreter truncates to bf16
    stored = None if mask is None else kernels.channel_set(mask)
    batch, channels, height, width = planes.shape
    packed = kernels.new_map(batch, channels, (height, width), stored)
    packed.data.fill_(math.nan)
    kernels.repack(packed, planes.contiguous(), unpack=False)
    held = planes.to(kernels.dtype).double()
    return packed, held if mask is None else torch.where(mask[:, :, None, None], held, 0.0)


def compare(kernels: Kernels, actual: DeviceMap, expected: Tensor, scale: float = 1.0) -> None:
    """What a map stores is as expected, and nothing else in it was written."""
    stored = actual.stored
    everything = torch.ones(expected.shape[:2], dtype=torch.bool, device=expected.device)
    mask = everything if stored is None else stored.mask
    unpacked = kernels.unpack(actual).double()
    wanted = torch.where(mask[:, :, None, None], expected, 0.0)
    error = (unpacked - wanted).abs() / (1 + wanted.abs())
    if bool(unpacked.isnan().any()) or float(error.max()) > TOLERANCE[kernels.precision] * scale:
        raise AssertionError(f"relative error {float(error.max()):.3g}")
    for image, row in zip(actual.data.float(), mask, strict=True):
        if not bool(image[..., int(row.sum()) :].isnan().all()):
            raise AssertionError("wrote past the stored channels")


@dataclass(frozen=True)
class Conv:
    """A convolution; live shares of None mean a map that stores all channels."""

    name: str
    channels: int
    outputs: int
    size: int
    live_in: float | None
    live_out: float | None
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    batch: int = 2
    residual: bool = False
    more_stored: bool = False  # outputs that are stored without being computed
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def layouts(self) -> list[int]:
        packed = self.live_in is not None
        return [BY_INPUT, TWO_SIDED] if packed else [BY_INPUT, BY_OUTPUT, TWO_SIDED, DENSE]


CONVS: Final = [
    Conv("3x3", 40, 24, 5, 0.5, 0.5, kernel=3, padding=1, batch=3, more_stored=True),
    Conv("3x3 stride 2", 24, 72, 7, 0.4, 0.4, kernel=3, stride=2, padding=1, residual=True, more_stored=True),
    Conv("1x1 of many channels", 136, 70, 9, 0.5, 0.5, residual=True),
    Conv("1x1 stride 2", 16, 24, 6, 0.6, 0.6, stride=2),
    Conv("no live input", 16, 16, 4, 0.0, 1.0, kernel=3, padding=1, residual=True),
    Conv("no computed output", 16, 16, 4, 0.5, 0.0, residual=True, more_stored=True),
    Conv("stem", 3, 20, 11, None, None, kernel=7, stride=2, padding=3),
    Conv("dense to gated", 24, 40, 5, None, 0.5, residual=True, batch=3),
    Conv("gated to dense", 40, 24, 5, 0.5, None, residual=True),
    Conv("dense to gated, tiles of one image", 16, 24, 8, None, 0.5, residual=True, more_stored=True),
    Conv("dilated", 8, 16, 7, 0.7, 0.7, kernel=3, padding=2, dilation=2),
    Conv("one pixel, one channel", 1, 1, 1, 0.5, 0.5, batch=5),
]
DIRECT: Final = [
    Conv("depthwise", 12, 12, 6, 0.5, 0.5, kernel=3, padding=1, groups=12),
    Conv("depthwise, multiplied", 12, 24, 5, 0.6, 0.6, kernel=3, stride=2, padding=1, groups=12),
    Conv("grouped", 12, 18, 5, 0.5, None, kernel=3, padding=1, groups=3, residual=True),
]


class Setting:
    """A convolution's operands for one precision, and its result in double."""

    def __init__(self, case: Conv, kernels: Kernels, seed: int = 0) -> None:
        random, self.kernels = Random(seed, kernels.device), kernels
        batch, outputs = case.batch, case.outputs
        self.geometry = (*[case.kernel] * 2, *[case.stride] * 2, *[case.padding] * 2, *[case.dilation] * 2)
        masks = {
            side: None if share is None else random.mask(batch, channels, share)
            for side, share, channels in (("in", case.live_in, case.channels), ("out", case.live_out, outputs))
        }
        planes = random.values(batch, case.channels, case.size, case.size)
        self.x, held = poisoned(kernels, planes, masks["in"])
        weight = random.values(outputs, case.channels // case.groups, case.kernel, case.kernel)
        self.weight: Tensor = weight.to(kernels.dtype).float()
        bias, gate = random.values(outputs), random.values(batch, outputs)
        shift = random.values(batch, outputs) if case.residual else random.values(outputs)
        v = torch.nn.functional.conv2d(
            held, self.weight.double(), bias.double(), case.stride, case.padding, case.dilation, case.groups
        )
        self.out_size = (int(v.shape[2]), int(v.shape[3]))
        residual, added = None, torch.zeros((), device=kernels.device)
        if case.residual:
            planes = random.values(batch, outputs, *self.out_size)
            residual, added = poisoned(kernels, planes, random.mask(batch, outputs, 0.6))
        inner, outer = (-4.0, 6.0), (-3.0, 5.0)
        self.epilogue = Epilogue(bias, gate, shift, residual, inner, outer)
        v = v.clamp(*inner) * gate[:, :, None, None]
        computed = masks["out"]
        if computed is not None:
            self.all_computed = (v + shift.reshape(-1, outputs, 1, 1) + added).clamp(*outer)
            v = torch.where(computed[:, :, None, None], v, 0.0)
        self.expected = (v + shift.reshape(-1, outputs, 1, 1) + added).clamp(*outer)
        if computed is None:
            self.all_computed = self.expected
        self.computed = None if computed is None else kernels.channel_set(computed)
        self.stored: ChannelSet | None = self.computed
        if computed is not None and case.more_stored:
            self.stored = kernels.channel_set(computed | random.mask(batch, outputs, 0.3))

    def result(self, mode: ConvMode | None, groups: int = 1, kinds: Sequence[str] = ()) -> DeviceMap:
        """What the kernels make of it; ``mode`` None: the grouped kernel.

        ``kinds``: reductions that the convolution makes of its output. Raises AssertionError where they differ in a bit
        from those of the finished map.
        """
        kernels, computed, made = self.kernels, self.computed, None
        if mode is not None and mode.layout == DENSE:
            computed = None
        y = kernels.new_map(int(self.x.data.shape[0]), int(self.weight.shape[0]), self.out_size, self.stored)
        y.data.fill_(math.nan)
        if mode is None:
            table = grouped(self.weight.cpu().numpy()).to(kernels.device)
            kernels.conv_direct(self.x, y, computed, table, groups, self.geometry, self.epilogue)
        else:
            layout = by_output if mode.layout == BY_OUTPUT else by_input
            table = layout(self.weight.cpu().numpy(), kernels.dtype).to(kernels.device)
            made = kernels.group_results(y, kinds, mode, computed)
            if made is not None:
                made.data.fill_(math.nan)
            kernels.conv_gemm(self.x, y, computed, table, mode, self.geometry, self.epilogue, made)
        if computed is not None and computed is not self.stored:
            kernels.pass_through(y, computed, self.epilogue)
        for kind in kinds:
            if not torch.equal(kernels.spatial_reduce(y, kind, made), kernels.spatial_reduce(y, kind)):
                raise AssertionError(f"{kind} of the output as the convolution makes it")
        return y


def check_case(kernels: Kernels, case: Conv) -> int:
    """Every mode of a case; returns how many. Raises AssertionError for a wrong result."""
    setting = Setting(case, kernels)
    if case.groups != 1:
        compare(kernels, setting.result(None, case.groups), setting.expected)
        return 1
    modes = [ConvMode(layout) for layout in case.layouts]
    if kernels.segments:
        modes += [ConvMode(layout, 3, spread) for layout in case.layouts for spread in (False, True)]
    kinds = [*SPATIAL_KINDS] * 2
    for number, mode in enumerate(modes):
        expected = setting.all_computed if mode.layout == DENSE else setting.expected
        first = (number + case.channels) % len(SPATIAL_KINDS)
        try:
            result = setting.result(mode, kinds=kinds[first : first + kernels.fused_reductions])
            compare(kernels, result, expected, 1 + math.sqrt(case.channels) / 4)
        except AssertionError as error:
            raise AssertionError(f"{case}, {mode}, {kernels.precision}: {error}") from None
    return len(modes)
