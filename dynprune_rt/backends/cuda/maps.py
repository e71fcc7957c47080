"""How the GPU stores feature maps and channel sets, and the calls of the module's kernels on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch

Tensor = Any
CHUNK: Final = 8  # channels in 16 bytes: every pixel's row starts on such a boundary

#: What `precision` may be: name -> (torch type, number of the kernels' Element).
PRECISIONS: Final = {"fp16": (torch.float16, 0), "bf16": (torch.bfloat16, 1)}

# Numbers of the kernels' enums (csrc/cuda/kernels.h).
BY_INPUT, BY_OUTPUT, TWO_SIDED = 0, 1, 2
POOL_KINDS: Final = {"max": 0, "avg": 1}
_SPATIAL_NAMES = "mean sum mean_abs sum_abs sum_squares l2 max min max_abs"
SPATIAL_KINDS: Final = {kind: number for number, kind in enumerate(_SPATIAL_NAMES.split())}
_REDUCE_NAMES = "sum mean max min prod l1 l2"
REDUCE_KINDS: Final = {kind: number for number, kind in enumerate(_REDUCE_NAMES.split())}

#: (data, sets or 0, channels, h, w), as the module takes a map.
MapArgs = tuple[int, int, int, int, int]
NO_MAP: Final[MapArgs] = (0, 0, 0, 0, 0)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(eq=False)
class ChannelSet:
    """For every image, which channels exist: the mask bool [N, C], and the records that kernels read."""

    mask: Tensor
    records: Tensor  # uint8 [N, bytes]

    @property
    def pointer(self) -> int:
        return int(self.records.data_ptr())


@dataclass(eq=False)
class DeviceMap:
    """A feature map, channels last: [N, H, W, pitch] of 16-bit elements.

    ``stored`` None: all channels, in order. Otherwise each image's set, packed at the start of every pixel's row;
    the rest of the row is undefined.
    """

    data: Tensor
    channels: int
    stored: ChannelSet | None = None

    @property
    def height(self) -> int:
        return int(self.data.shape[1])

    @property
    def width(self) -> int:
        return int(self.data.shape[2])

    @property
    def args(self) -> MapArgs:
        sets = 0 if self.stored is None else self.stored.pointer
        return (int(self.data.data_ptr()), sets, self.channels, self.height, self.width)


@dataclass(frozen=True)
class Epilogue:
    """What follows a convolution's sum; vectors are fp32 and contiguous. ``shift`` is [K] or [N, K]."""

    bias: Tensor | None
    gate: Tensor | None
    shift: Tensor | None
    residual: DeviceMap | None
    inner: tuple[float, float]
    outer: tuple[float, float]

    @property
    def args(self) -> tuple[Any, ...]:
        vectors = (0 if v is None else int(v.data_ptr()) for v in (self.bias, self.gate, self.shift))
        stride = 0
        if self.shift is not None and self.shift.dim() == 2 and self.shift.shape[0] > 1:
            stride = int(self.shift.shape[1])  # one shift per image
        return (*vectors, stride, NO_MAP if self.residual is None else self.residual.args, *self.inner, *self.outer)


class Kernels:
    """The kernels of one module on one device; every call goes to torch's current stream.

    ``module``: dynprune_rt._cu, or the same kernels on the emulator, with ``device`` the CPU.
    """

    def __init__(self, module: ModuleType, device: torch.device, precision: str) -> None:
        self.module = module
        self.device = device
        self.dtype, self.element = PRECISIONS[precision]
        index = device.index if device.type == "cuda" else 0
        self.gpu, major, minor, self.multiprocessors = module.device_facts(index or 0)
        self.capability = (major, minor)

    @property
    def stream(self) -> int:
        return int(torch.cuda.current_stream(self.device).cuda_stream) if self.device.type == "cuda" else 0

    def new_map(self, batch: int, channels: int, size: Sequence[int], stored: ChannelSet | None = None) -> DeviceMap:
        shape = (batch, *size, round_up(channels, CHUNK))
        return DeviceMap(torch.empty(shape, dtype=self.dtype, device=self.device), channels, stored)

    def new_vector(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def channel_set(self, mask: Tensor) -> ChannelSet:
        """The set of a mask bool [N, C]."""
        mask = mask.contiguous()
        batch, channels = mask.shape
        size = self.module.set_record_bytes(channels)
        records = torch.empty((batch, size), dtype=torch.uint8, device=self.device)
        self.module.live_lists(mask.data_ptr(), records.data_ptr(), batch, channels, self.stream)
        return ChannelSet(mask, records)

    def pack(self, planes: Tensor, stored: ChannelSet | None = None) -> DeviceMap:
        """A map from fp32 [N, C, H, W]."""
        planes = planes.contiguous()
        batch, channels, height, width = planes.shape
        result = self.new_map(batch, channels, (height, width), stored)
        self.module.pack_map(result.args, planes.data_ptr(), batch, self.element, self.stream)
        return result

    def unpack(self, source: DeviceMap) -> Tensor:
        """fp32 [N, C, H, W]; channels that are not stored are 0."""
        batch = int(source.data.shape[0])
        planes = self.new_vector(batch, source.channels, source.height, source.width)
        self.module.unpack_map(source.args, planes.data_ptr(), batch, self.element, self.stream)
        return planes

    def conv_gemm(
        self,
        x: DeviceMap,
        y: DeviceMap,
        computed: ChannelSet | None,
        weights: Tensor,
        layout: int,
        geometry: Sequence[int],
        epilogue: Epilogue,
    ) -> None:
        """Dense convolution (groups = 1). ``geometry``: kernel, stride, top and left padding, dilation."""
        batch = int(x.data.shape[0])
        tiles = batch * -(-y.height * y.width // 64) * -(-round_up(y.channels, CHUNK) // 64)
        blocks = min(tiles, 4 * self.multiprocessors)
        self.module.conv_gemm(
            x.args, y.args, 0 if computed is None else computed.pointer, weights.data_ptr(), epilogue.args,
            list(geometry), layout, batch, self.element, blocks, self.stream,
        )  # fmt: skip

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
        self.module.conv_direct(
            x.args, y.args, 0 if computed is None else computed.pointer, weights.data_ptr(), epilogue.args,
            list(geometry), groups, int(x.data.shape[0]), self.element, self.stream,
        )  # fmt: skip

    def pass_through(self, y: DeviceMap, computed: ChannelSet, epilogue: Epilogue) -> None:
        """Writes the stored channels that a convolution does not compute."""
        batch = int(y.data.shape[0])
        self.module.pass_through(y.args, computed.pointer, epilogue.args, batch, self.element, self.stream)

    def pool2d(
        self, x: DeviceMap, y: DeviceMap, kind: str, window: Sequence[int], include_pad: bool, divisor: int
    ) -> None:
        """``window``: kernel, stride, padding (t, l, b, r), dilation; empty = adaptive."""
        self.module.pool2d(
            x.args, y.args, POOL_KINDS[kind], list(window) or [1] * 10, include_pad, divisor, not window,
            int(x.data.shape[0]), self.element, self.stream,
        )  # fmt: skip

    def spatial_reduce(self, x: DeviceMap, kind: str) -> Tensor:
        """fp32 [N, C]."""
        batch = int(x.data.shape[0])
        result = self.new_vector(batch, x.channels)
        number = SPATIAL_KINDS[kind]
        self.module.spatial_reduce(x.args, result.data_ptr(), number, batch, self.element, self.stream)
        return result

    def linear(self, x: Tensor, weights: Tensor, bias: Tensor | None, bounds: tuple[float, float]) -> Tensor:
        """fp32 [..., C] -> [..., K]."""
        x = x.contiguous()
        outputs, features = weights.shape
        result = self.new_vector(*x.shape[:-1], outputs)
        self.module.linear(
            x.data_ptr(), weights.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr(), *bounds,
            result.numel() // outputs, features, outputs, self.stream,
        )  # fmt: skip
        return result

    def reduce(self, x: Tensor, kind: str, dims: Sequence[int], keepdim: bool) -> Tensor:
        """A reduction of fp32 over ``dims``."""
        kept = [d for d in range(x.dim()) if d not in dims]
        order = [*kept, *dims]
        length = 1
        for d in dims:
            length *= int(x.shape[d])
        lines = x.permute(order).contiguous()
        result = self.new_vector(*(int(x.shape[d]) for d in kept))
        self.module.reduce(
            lines.data_ptr(), result.data_ptr(), REDUCE_KINDS[kind], result.numel(), length, 1, self.stream
        )
        return result.reshape([1 if d in dims else int(x.shape[d]) for d in range(x.dim())]) if keepdim else result

    def sort(self, x: Tensor, dim: int, keep: int, descending: bool) -> tuple[Tensor, Tensor]:
        """The first ``keep`` elements of every sorted line of fp32, and their places."""
        x = x.contiguous()
        shape = [*x.shape]
        outer, inner = 1, 1
        for size in shape[:dim]:
            outer *= int(size)
        for size in shape[dim + 1 :]:
            inner *= int(size)
        length, shape[dim] = int(shape[dim]), keep
        values = self.new_vector(*shape)
        index = torch.empty(shape, dtype=torch.int64, device=self.device)
        self.module.sort(
            x.data_ptr(), values.data_ptr(), index.data_ptr(), outer, length, inner, keep, descending, self.stream
        )
        return values, index
