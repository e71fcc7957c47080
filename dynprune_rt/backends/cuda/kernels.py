"""What a back end of GPU kernels offers, and the memory that all of them work on.

`native_kernels` calls the CUDA module, `dynprune_rt.backends.triton_kernels` has the same in Triton. Every call goes to
torch's current stream, and none waits for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from dynprune_rt.backends.cuda.maps import (
    CHUNK,
    GROUP_PIXELS,
    PRECISIONS,
    ChannelSet,
    ConvMode,
    DeviceMap,
    Epilogue,
    GroupResults,
    makes_group_results,
    round_up,
    set_record_bytes,
)

Tensor = Any


class Kernels(ABC):
    """The kernels of one back end on one device, for one precision.

    ``gpu``, ``capability``, ``multiprocessors``: facts about the device. ``version`` names the kernels where their
    speed is remembered. ``segments``: whether sums can be cut into segments. ``fused_reductions``: how many reductions
    of its output a convolution makes at once.
    """

    gpu: str
    capability: tuple[int, int]
    multiprocessors: int
    version: str
    segments: bool
    fused_reductions: int

    def __init__(self, device: torch.device, precision: str) -> None:
        self.device = device
        self.precision = precision
        self.dtype, self.element = PRECISIONS[precision]

    def new_map(self, batch: int, channels: int, size: Sequence[int], stored: ChannelSet | None = None) -> DeviceMap:
        shape = (batch, *size, round_up(channels, CHUNK))
        return DeviceMap(torch.empty(shape, dtype=self.dtype, device=self.device), channels, stored)

    def new_vector(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def channel_set(self, mask: Tensor) -> ChannelSet:
        """The set of a mask bool [N, C]."""
        mask = mask.contiguous()
        batch, channels = mask.shape
        records = torch.empty((batch, set_record_bytes(channels)), dtype=torch.uint8, device=self.device)
        self.live_lists(mask, records)
        return ChannelSet(mask, records)

    def pack(self, planes: Tensor, stored: ChannelSet | None = None) -> DeviceMap:
        """A map from fp32 [N, C, H, W]."""
        planes = planes.contiguous()
        batch, channels, height, width = planes.shape
        result = self.new_map(batch, channels, (height, width), stored)
        self.repack(result, planes, unpack=False)
        return result

    def unpack(self, source: DeviceMap) -> Tensor:
        """fp32 [N, C, H, W]; channels that are not stored are 0."""
        planes = self.new_vector(int(source.data.shape[0]), source.channels, source.height, source.width)
        self.repack(source, planes, unpack=True)
        return planes

    def reduce(self, x: Tensor, kind: str, dims: Sequence[int], keepdim: bool) -> Tensor:
        """A reduction of fp32 over ``dims``; ``kind`` as in maps.REDUCE_KINDS."""
        kept = [d for d in range(x.dim()) if d not in dims]
        length = 1
        for d in dims:
            length *= int(x.shape[d])
        lines = x.permute([*kept, *dims]).contiguous()
        result = self.new_vector(*(int(x.shape[d]) for d in kept))
        self.reduce_lines(lines, result, kind, length)
        return result.reshape([1 if d in dims else int(x.shape[d]) for d in range(x.dim())]) if keepdim else result

    def linear(self, x: Tensor, weights: Tensor, bias: Tensor | None, bounds: tuple[float, float]) -> Tensor:
        """fp32 [..., C] -> [..., K], clamped."""
        x = x.contiguous()
        result = self.new_vector(*x.shape[:-1], int(weights.shape[0]))
        self.linear_rows(x, weights, bias, result, bounds)
        return result

    def sort(self, x: Tensor, dim: int, keep: int, descending: bool) -> tuple[Tensor, Tensor]:
        """The first ``keep`` elements of every sorted line of fp32, and their places."""
        x = x.contiguous()
        shape = [int(size) for size in x.shape]
        outer, inner = 1, 1
        for size in shape[:dim]:
            outer *= size
        for size in shape[dim + 1 :]:
            inner *= size
        length, shape[dim] = shape[dim], keep
        values = self.new_vector(*shape)
        index = torch.empty(shape, dtype=torch.int64, device=self.device)
        self.sort_lines(x, values, index, (outer, length, inner), descending)
        return values, index

    def group_results(
        self, y: DeviceMap, kinds: Sequence[str], mode: ConvMode, computed: ChannelSet | None
    ) -> GroupResults | None:
        """Memory for reductions that a convolution makes of its output; None where it makes none."""
        batch, pixels = int(y.data.shape[0]), y.height * y.width
        fused = tuple(kinds[: self.fused_reductions])
        if not fused or not makes_group_results(mode.layout, batch, pixels):
            return None
        return GroupResults(fused, self.new_vector(len(fused), batch, -(-pixels // GROUP_PIXELS), y.channels), computed)

    def spatial_reduce(self, x: DeviceMap, kind: str, made: GroupResults | None = None) -> Tensor:
        """fp32 [N, C]; ``kind`` as in maps.SPATIAL_KINDS; 0 for channels that are not stored.

        ``made``: what the convolution that stored x has done of it; the result is the same, bit for bit.
        """
        result = self.new_vector(int(x.data.shape[0]), x.channels)
        groups = None if made is None else made.of(kind)
        self.spatial_reduce_into(x, result, kind, groups, None if made is None or groups is None else made.computed)
        return result

    @abstractmethod
    def live_lists(self, mask: Tensor, records: Tensor) -> None:
        """Fills the records of channel sets from a mask bool [N, C]."""

    @abstractmethod
    def repack(self, data: DeviceMap, planes: Tensor, unpack: bool) -> None:
        """Between a map and fp32 [N, C, H, W]."""

    @abstractmethod
    def conv_gemm(
        self,
        x: DeviceMap,
        y: DeviceMap,
        computed: ChannelSet | None,
        weights: Tensor,
        mode: ConvMode,
        geometry: Sequence[int],
        epilogue: Epilogue,
        reductions: GroupResults | None = None,
    ) -> None:
        """Dense convolution (groups = 1). ``geometry``: kernel, stride, top and left padding, dilation.

        ``reductions``: memory for those to be made of the output, from `group_results`.
        """

    @abstractmethod
    def conv_direct(
        self,
        x: DeviceMap,
        y: DeviceMap,
        computed: ChannelSet | None,
        weights: Tensor,
        groups: int,
        geometry: Sequence[int],
        epilogue: Epilogue,
    ) -> None:
        """Grouped convolution, weights fp32 [taps, C / groups, K]."""

    @abstractmethod
    def pass_through(self, y: DeviceMap, computed: ChannelSet, epilogue: Epilogue) -> None:
        """Writes the stored channels that a convolution does not compute."""

    @abstractmethod
    def pool2d(
        self, x: DeviceMap, y: DeviceMap, kind: str, window: Sequence[int], include_pad: bool, divisor: int
    ) -> None:
        """``window``: kernel, stride, padding (t, l, b, r), dilation; empty = adaptive."""

    @abstractmethod
    def spatial_reduce_into(
        self, x: DeviceMap, result: Tensor, kind: str, groups: Tensor | None, computed: ChannelSet | None
    ) -> None:
        """See `spatial_reduce`. ``groups``: results [N, groups, C] of the channels in ``computed`` (None = all)."""

    @abstractmethod
    def linear_rows(
        self, x: Tensor, weights: Tensor, bias: Tensor | None, result: Tensor, bounds: tuple[float, float]
    ) -> None:
        """See `linear`."""

    @abstractmethod
    def reduce_lines(self, lines: Tensor, result: Tensor, kind: str, length: int) -> None:
        """Contiguous lines of ``length`` elements to one element each."""

    @abstractmethod
    def sort_lines(
        self, x: Tensor, values: Tensor, index: Tensor, extents: tuple[int, int, int], descending: bool
    ) -> None:
        """Lines of x [outer, length, inner] along the middle."""
