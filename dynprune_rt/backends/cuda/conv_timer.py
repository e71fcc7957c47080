"""Times one convolution on the GPU, with made-up values and masks."""

from __future__ import annotations

from typing import Any, Final

import torch

from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import BY_OUTPUT, CHUNK, DENSE, ChannelSet, ConvMode, DeviceMap, Epilogue, round_up
from dynprune_rt.backends.cuda.modes import ConvProblem

Tensor = Any

#: Share of channels that are live in what is measured.
LIVE_SHARE: Final = 0.5
_REPEATS: Final = 7
_LAUNCHES: Final = 4


class ConvTimer:
    """Callable as `tuning.Timer`."""

    def __init__(self, kernels: Kernels, live_share: float = LIVE_SHARE) -> None:
        self._kernels = kernels
        self._share = live_share

    def __call__(self, problem: ConvProblem, mode: ConvMode, batch: int) -> float:
        """Milliseconds: the median of a few launches, by events on the device."""
        run = conv_call(self._kernels, problem, mode, batch, self._share)
        for _ in range(2):
            run()
        times = []
        for _ in range(_REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(_LAUNCHES):
                run()
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)) / _LAUNCHES)
        return max(sorted(times)[_REPEATS // 2], 1e-6)


def conv_call(kernels: Kernels, problem: ConvProblem, mode: ConvMode, batch: int, live_share: float | Tensor) -> Any:
    """A function that queues the convolution once. Masks differ from image to image and are always the same ones.

    ``live_share``: of channels, for all images or [N, 1].
    """
    generator = torch.Generator().manual_seed(0)

    def channel_set(channels: int) -> ChannelSet:
        mask = torch.rand((batch, channels), generator=generator) < live_share
        return kernels.channel_set(mask.to(kernels.device))

    def filled(channels: int, size: tuple[int, int], stored: ChannelSet | None = None) -> DeviceMap:
        new = kernels.new_map(batch, channels, size, stored)
        new.data.fill_(0.5)
        return new

    taps = problem.geometry[0] * problem.geometry[1]
    rows = (taps, problem.channels + 1, round_up(problem.outputs, CHUNK))
    if mode.layout == BY_OUTPUT:
        rows = (problem.outputs, taps, round_up(problem.channels, CHUNK))
    weights = torch.full(rows, 0.01, dtype=kernels.dtype, device=kernels.device)
    x = filled(problem.channels, problem.in_size, channel_set(problem.channels) if problem.packed else None)
    outputs = channel_set(problem.outputs) if problem.gated else None
    y = kernels.new_map(batch, problem.outputs, problem.out_size, outputs)
    residual = filled(problem.outputs, problem.out_size) if problem.residual else None
    bias = kernels.new_vector(problem.outputs).zero_()
    epilogue = Epilogue(bias, None, None, residual, (float("-inf"), float("inf")), (0.0, float("inf")))
    computed = None if mode.layout == DENSE else outputs

    def call() -> None:
        made = kernels.group_results(y, ("mean",) if problem.reduced else (), mode, computed)
        kernels.conv_gemm(x, y, computed, weights, mode, problem.geometry, epilogue, made)
        if problem.reduced:
            kernels.spatial_reduce(y, "mean", made)

    return call
