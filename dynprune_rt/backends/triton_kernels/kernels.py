"""The Triton kernels behind the interface of `dynprune_rt.backends.cuda.kernels`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import triton

from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import (
    BY_INPUT,
    BY_OUTPUT,
    CHUNK,
    DENSE,
    REDUCE_KINDS,
    SPATIAL_KINDS,
    ChannelSet,
    ConvMode,
    DeviceMap,
    Epilogue,
    GroupResults,
    round_up,
)
from dynprune_rt.backends.triton_kernels import channel_sets, convolution, maps, vectors

Tensor = Any
#: Starts a kernel: kernel, grid, arguments by name, options.
Launch = Callable[[Any, tuple[int, ...], Mapping[str, Any], Mapping[str, int]], None]

#: Pixels and outputs of a tile, and channels per step, of the products.
_TILE: Final = {"BM": 64, "BN": 64, "BK": 32}
_BLOCK: Final = {"BP": 32, "BN": 64}
_PADDING: Final = ("pad_top", "pad_left", "pad_bottom", "pad_right")


def launch(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Mapping[str, int]) -> None:
    """On torch's current device and stream; nothing is fused into multiply-adds, so that gates see plain fp32."""
    kernel[grid](**arguments, **options, enable_fp_fusion=False)


class TritonKernels(Kernels):
    """On a GPU, or with ``device`` the CPU in Triton's interpreter (tests); ``start`` launches the kernels."""

    segments = False
    fused_reductions = 1

    def __init__(self, device: torch.device, precision: str, start: Launch = launch) -> None:
        super().__init__(device, precision)
        self._start = start
        self._interpreted = triton.knobs.runtime.interpret
        self.version = f"triton {triton.__version__}"
        self.gpu, self.capability, self.multiprocessors = "Triton's interpreter", (9, 0), 1
        if device.type == "cuda":
            facts = torch.cuda.get_device_properties(device)
            self.gpu, self.multiprocessors = facts.name, facts.multi_processor_count
            self.capability = (facts.major, facts.minor)
        # Stands in for tensors that a call does not have.
        self._nothing = torch.zeros(8, dtype=torch.float32, device=device)
        self._no_records = torch.zeros(8, dtype=torch.int16, device=device)

    def _launch(self, kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], **options: int) -> None:
        if self.device.type != "cuda":
            self._start(kernel, grid, arguments, options)
            return
        with torch.cuda.device(self.device):
            self._start(kernel, grid, arguments, options)

    def _records(self, stored: ChannelSet | None) -> Tensor:
        return self._no_records if stored is None else stored.records.view(torch.int16)

    def _epilogue(self, epilogue: Epilogue, y: DeviceMap) -> dict[str, Any]:
        """Arguments that every convolution takes: where results go, and what happens to them on the way."""
        shift, residual = epilogue.shift, epilogue.residual
        per_image = shift is not None and shift.dim() == 2 and shift.shape[0] > 1
        packed_residual = residual is not None and residual.stored is not None
        return {
            "y": y.data,
            "y_sets": self._records(y.stored),
            "bias": self._nothing if epilogue.bias is None else epilogue.bias,
            "gate": self._nothing if epilogue.gate is None else epilogue.gate,
            "shift": self._nothing if shift is None else shift,
            "shift_stride": int(shift.shape[1]) if per_image and shift is not None else 0,
            "residual": y.data if residual is None else residual.data,
            "residual_sets": self._records(None if residual is None else residual.stored),
            "inner_low": epilogue.inner[0],
            "inner_high": epilogue.inner[1],
            "outer_low": epilogue.outer[0],
            "outer_high": epilogue.outer[1],
            "Y_PACKED": y.stored is not None,
            "HAS_BIAS": epilogue.bias is not None,
            "HAS_GATE": epilogue.gate is not None,
            "HAS_SHIFT": shift is not None,
            "HAS_RESIDUAL": residual is not None,
            "RESIDUAL_PACKED": packed_residual,
        }

    def _geometry(self, x: DeviceMap, y: DeviceMap, geometry: Sequence[int]) -> dict[str, int]:
        names = ["kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w"]
        sizes = {"in_h": x.height, "in_w": x.width, "out_h": y.height, "out_w": y.width}
        return {**sizes, "channels": x.channels, "outputs": y.channels, **dict(zip(names, geometry, strict=True))}

    def live_lists(self, mask: Tensor, records: Tensor) -> None:
        batch, channels = mask.shape
        arguments = {
            "mask": mask.view(torch.uint8),
            "sets": records.view(torch.int16),
            "channels": channels,
            "BLOCK": triton.next_power_of_2(round_up(channels, 32)),
        }
        self._launch(channel_sets.live_lists_kernel, (batch,), arguments)

    def repack(self, data: DeviceMap, planes: Tensor, unpack: bool) -> None:
        batch, pixels = int(data.data.shape[0]), data.height * data.width
        arguments = {
            "data": data.data,
            "sets": self._records(data.stored),
            "planes": planes,
            "pixels": pixels,
            "channels": data.channels,
            "PACKED": data.stored is not None,
            "UNPACK": unpack,
            **_BLOCK,
        }
        self._launch(maps.repack_kernel, self._map_grid(batch, pixels, data.channels), arguments)

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
        if mode.segments != 1:
            raise ValueError("the Triton kernels do not cut sums into segments")
        batch, pixels, dense = int(x.data.shape[0]), y.height * y.width, mode.layout == DENSE
        tile = {**_TILE, "BK": 16} if x.channels <= 16 else _TILE
        row_tiles = -(-batch * pixels // tile["BM"]) if dense else batch * -(-pixels // tile["BM"])
        columns = round_up(y.channels, CHUNK)
        arguments = {
            "x": x.data,
            "x_sets": self._records(x.stored),
            "computed": self._records(computed),
            "weights": weights,
            "groups": self._nothing if reductions is None else reductions.data,
            "REDUCTION": -1 if reductions is None else SPATIAL_KINDS[reductions.kinds[0]],
            "rows": batch * pixels,
            **self._geometry(x, y, geometry),
            **self._epilogue(epilogue, y),
            "DENSE": dense,
            "BY_OUTPUT": mode.layout == BY_OUTPUT,
            "BY_GROUP": mode.layout == BY_INPUT,
            "GATHERED": computed is not None,
            "X_PACKED": x.stored is not None,
            "WIDEN": self._interpreted and self.dtype == torch.bfloat16,
            **tile,
        }
        grid = (row_tiles, -(-columns // tile["BN"]))
        self._launch(convolution.conv_gemm_kernel, grid, arguments, num_warps=4, num_stages=3)

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
        arguments = {
            "x": x.data,
            "x_sets": self._records(x.stored),
            "computed": self._records(computed),
            "weights": weights,
            "groups": groups,
            **self._geometry(x, y, geometry),
            **self._epilogue(epilogue, y),
            "GATHERED": computed is not None,
            "X_PACKED": x.stored is not None,
            **_BLOCK,
        }
        grid = self._map_grid(int(x.data.shape[0]), y.height * y.width, y.channels)
        self._launch(convolution.conv_direct_kernel, grid, arguments)

    def pass_through(self, y: DeviceMap, computed: ChannelSet, epilogue: Epilogue) -> None:
        wanted = ["y", "y_sets", "shift", "residual", "residual_sets", "shift_stride", "outer_low", "outer_high"]
        wanted += ["Y_PACKED", "HAS_SHIFT", "HAS_RESIDUAL", "RESIDUAL_PACKED"]
        given = self._epilogue(epilogue, y)
        pixels = y.height * y.width
        arguments = {
            "computed": self._records(computed),
            "pixels": pixels,
            "outputs": y.channels,
            **{name: given[name] for name in wanted},
            **_BLOCK,
        }
        grid = self._map_grid(int(y.data.shape[0]), pixels, y.channels)
        self._launch(convolution.pass_through_kernel, grid, arguments)

    def pool2d(
        self, x: DeviceMap, y: DeviceMap, kind: str, window: Sequence[int], include_pad: bool, divisor: int
    ) -> None:
        names = [
            "window_h",
            "window_w",
            "stride_h",
            "stride_w",
            "pad_top",
            "pad_left",
            "pad_bottom",
            "pad_right",
            "dilation_h",
            "dilation_w",
        ]
        adaptive = not window
        if adaptive:  # no window is larger than this
            window = (-(-x.height // y.height) + 1, -(-x.width // y.width) + 1, *[1] * 8)
        arguments = {
            "x": x.data,
            "x_sets": self._records(x.stored),
            "y": y.data,
            "y_sets": self._records(y.stored),
            "in_h": x.height,
            "in_w": x.width,
            "out_h": y.height,
            "out_w": y.width,
            "channels": x.channels,
            **dict(zip(names, window, strict=True)),
            "divisor": divisor,
            "AVERAGE": kind == "avg",
            "INCLUDE_PAD": bool(include_pad),
            "ADAPTIVE": adaptive,
            "X_PACKED": x.stored is not None,
            "Y_PACKED": y.stored is not None,
            **_BLOCK,
        }
        grid = self._map_grid(int(x.data.shape[0]), y.height * y.width, y.channels)
        self._launch(maps.pool2d_kernel, grid, arguments)

    def spatial_reduce_into(
        self, x: DeviceMap, result: Tensor, kind: str, groups: Tensor | None, computed: ChannelSet | None
    ) -> None:
        arguments = {
            "x": x.data,
            "x_sets": self._records(x.stored),
            "y": result,
            "groups": self._nothing if groups is None else groups,
            "computed": self._records(computed),
            "pixels": x.height * x.width,
            "channels": x.channels,
            "KIND": SPATIAL_KINDS[kind],
            "GIVEN": groups is not None,
            "SOME_GIVEN": computed is not None,
            "X_PACKED": x.stored is not None,
            "BN": 32,
        }
        grid = (int(x.data.shape[0]), -(-x.channels // 32))
        self._launch(maps.spatial_reduce_kernel, grid, arguments)

    def linear_rows(
        self, x: Tensor, weights: Tensor, bias: Tensor | None, result: Tensor, bounds: tuple[float, float]
    ) -> None:
        outputs, features = (int(size) for size in weights.shape)
        arguments = {
            "x": x,
            "weights": weights,
            "bias": self._nothing if bias is None else bias,
            "y": result,
            "low": bounds[0],
            "high": bounds[1],
            "features": features,
            "outputs": outputs,
            "HAS_BIAS": bias is not None,
            "BN": 16,
            "BF": 128,
        }
        self._launch(vectors.linear_kernel, (result.numel() // outputs, -(-outputs // 16)), arguments)

    def reduce_lines(self, lines: Tensor, result: Tensor, kind: str, length: int) -> None:
        arguments = {
            "x": lines,
            "y": result,
            "lines": result.numel(),
            "length": length,
            "KIND": REDUCE_KINDS[kind],
            "BN": 16,
            "BL": 64,
        }
        self._launch(vectors.reduce_kernel, (-(-result.numel() // 16),), arguments)

    def sort_lines(
        self, x: Tensor, values: Tensor, index: Tensor, extents: tuple[int, int, int], descending: bool
    ) -> None:
        outer, length, inner = extents
        arguments = {
            "x": x,
            "values": values,
            "index": index,
            "inner": inner,
            "length": length,
            "keep": values.numel() // (outer * inner),
            "DESCENDING": descending,
            "BI": 64,
            "BJ": 64,
        }
        self._launch(vectors.sort_kernel, (outer * inner, -(-length // 64)), arguments)

    def _map_grid(self, batch: int, pixels: int, channels: int) -> tuple[int, int]:
        return (batch * -(-pixels // _BLOCK["BP"]), -(-channels // _BLOCK["BN"]))
