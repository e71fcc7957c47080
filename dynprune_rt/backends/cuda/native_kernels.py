"""The kernels of the CUDA module: tensors become pointers."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import (
    DENSE,
    POOL_KINDS,
    REDUCE_KINDS,
    SPATIAL_KINDS,
    ChannelSet,
    ConvMode,
    DeviceMap,
    Epilogue,
    GroupResults,
    round_up,
)

Tensor = Any
_TILE = 64  # pixels and outputs of a tile
_BLOCKS_PER_MULTIPROCESSOR = 4


class NativeKernels(Kernels):
    """``module``: dynprune_rt._cu, or the same kernels on the emulator, with ``device`` the CPU."""

    segments = True
    fused_reductions = 4  # kMaxFusedReductions

    def __init__(self, module: ModuleType, device: torch.device, precision: str) -> None:
        super().__init__(device, precision)
        self.module = module
        index = device.index if device.type == "cuda" else 0
        self.gpu, major, minor, self.multiprocessors = module.device_facts(index or 0)
        self.capability = (major, minor)
        self.version = f"cuda {module.VERSION}"

    @property
    def stream(self) -> int:
        return int(torch.cuda.current_stream(self.device).cuda_stream) if self.device.type == "cuda" else 0

    def live_lists(self, mask: Tensor, records: Tensor) -> None:
        batch, channels = mask.shape
        self.module.live_lists(mask.data_ptr(), records.data_ptr(), batch, channels, self.stream)

    def repack(self, data: DeviceMap, planes: Tensor, unpack: bool) -> None:
        call = self.module.unpack_map if unpack else self.module.pack_map
        call(data.args, planes.data_ptr(), int(data.data.shape[0]), self.element, self.stream)

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
        batch, pixels = int(x.data.shape[0]), y.height * y.width
        row_tiles = -(-batch * pixels // _TILE) if mode.layout == DENSE else batch * -(-pixels // _TILE)
        tiles = row_tiles * -(-round_up(y.channels, 8) // _TILE)
        most = _BLOCKS_PER_MULTIPROCESSOR * self.multiprocessors
        partials = None
        if mode.spread:
            upper = batch * -(-pixels // _TILE) * -(-y.channels // _TILE)
            partials = self.new_vector(upper * mode.segments * _TILE * _TILE)
        arguments = (
            x.args, y.args, 0 if computed is None else computed.pointer, weights.data_ptr(), epilogue.args,
            list(geometry), mode.layout, batch, mode.segments, 0 if partials is None else partials.data_ptr(),
            0 if reductions is None else reductions.data.data_ptr(),
            [] if reductions is None else [SPATIAL_KINDS[kind] for kind in reductions.kinds], self.element,
        )  # fmt: skip
        work = tiles * (mode.segments if mode.spread else 1)
        self.module.conv_gemm(*arguments, min(work, most), self.stream)
        if mode.spread:
            self.module.conv_gemm_finish(*arguments, min(tiles, most), self.stream)

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
        self.module.conv_direct(
            x.args, y.args, 0 if computed is None else computed.pointer, weights.data_ptr(), epilogue.args,
            list(geometry), groups, int(x.data.shape[0]), self.element, self.stream,
        )  # fmt: skip

    def pass_through(self, y: DeviceMap, computed: ChannelSet, epilogue: Epilogue) -> None:
        batch = int(y.data.shape[0])
        self.module.pass_through(y.args, computed.pointer, epilogue.args, batch, self.element, self.stream)

    def pool2d(
        self, x: DeviceMap, y: DeviceMap, kind: str, window: Sequence[int], include_pad: bool, divisor: int
    ) -> None:
        self.module.pool2d(
            x.args, y.args, POOL_KINDS[kind], list(window) or [1] * 10, include_pad, divisor, not window,
            int(x.data.shape[0]), self.element, self.stream,
        )  # fmt: skip

    def spatial_reduce_into(
        self, x: DeviceMap, result: Tensor, kind: str, groups: Tensor | None, computed: ChannelSet | None
    ) -> None:
        self.module.spatial_reduce(
            x.args, result.data_ptr(), SPATIAL_KINDS[kind], 0 if groups is None else groups.data_ptr(),
            0 if computed is None else computed.pointer, int(x.data.shape[0]), self.element, self.stream,
        )  # fmt: skip

    def linear_rows(
        self, x: Tensor, weights: Tensor, bias: Tensor | None, result: Tensor, bounds: tuple[float, float]
    ) -> None:
        outputs, features = weights.shape
        self.module.linear(
            x.data_ptr(), weights.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr(), *bounds,
            result.numel() // outputs, features, outputs, self.stream,
        )  # fmt: skip

    def reduce_lines(self, lines: Tensor, result: Tensor, kind: str, length: int) -> None:
        self.module.reduce(
            lines.data_ptr(), result.data_ptr(), REDUCE_KINDS[kind], result.numel(), length, 1, self.stream
        )

    def sort_lines(
        self, x: Tensor, values: Tensor, index: Tensor, extents: tuple[int, int, int], descending: bool
    ) -> None:
        keep = values.numel() // (extents[0] * extents[2])
        self.module.sort(x.data_ptr(), values.data_ptr(), index.data_ptr(), *extents, keep, descending, self.stream)
