"""How the GPU stores feature maps and channel sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

Tensor = Any
CHUNK: Final = 8  # rows of channels are padded to a multiple of so many

#: What `precision` may be: name -> (torch type of activations and weights, number of the kernels' Element).
PRECISIONS: Final = {"fp16": (torch.float16, 0), "bf16": (torch.bfloat16, 1), "tf32": (torch.float32, 2)}

#: Channel numbers and places are 16 bit, and the last value means "not stored".
MAX_CHANNELS: Final = 0xFFFE
#: Pixels of an image whose values are reduced together.
GROUP_PIXELS: Final = 32
#: Longest lines that the kernels sort.
MAX_SORT_LENGTH: Final = 8192

# Numbers of the kernels' enums (csrc/cuda/kernels.h).
BY_INPUT, BY_OUTPUT, TWO_SIDED, DENSE = 0, 1, 2, 3
LAYOUT_NAMES: Final = {BY_INPUT: "by_input", BY_OUTPUT: "by_output", TWO_SIDED: "two_sided", DENSE: "dense"}
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


def set_record_bytes(channels: int) -> int:
    """Bytes of one image's channel set (csrc/cuda/index_math.h)."""
    pitch = round_up(channels, 32)
    return round_up(16 + 4 * pitch + pitch // 4, 16)


@dataclass(frozen=True, order=True)
class ConvMode:
    """How a convolution is executed (csrc/cuda/kernels.h): the layout of its weights, and with it what is gathered;
    into how many segments the sum over K is cut, and whether each is spread to blocks of its own.

    Two modes give the same bits where the input is stored alike and the number of segments is the same.
    """

    layout: int
    segments: int = 1
    spread: bool = False

    def __str__(self) -> str:
        cut = f"_{self.segments}{'_spread' if self.spread else ''}" if self.segments > 1 else ""
        return f"conv_gemm_{LAYOUT_NAMES[self.layout]}{cut}"


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
    """A feature map, channels last: [N, H, W, pitch] elements.

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


def makes_group_results(layout: int, batch: int, pixels: int) -> bool:
    """Whether a convolution can make `GroupResults`: dense tiles run on from image to image (csrc/cuda/kernels.h)."""
    return layout != DENSE or batch == 1 or pixels % GROUP_PIXELS == 0


@dataclass(eq=False)
class GroupResults:
    """Reductions of a convolution's output, made while it is stored: per kind, image and group of 32 pixels.

    ``computed``: the channels that have results; None = all.
    """

    kinds: tuple[str, ...]
    data: Tensor  # fp32 [kinds, N, groups, K]
    computed: ChannelSet | None

    def of(self, kind: str) -> Tensor | None:
        """[N, groups, K] of one kind, or None where the convolution did not make it."""
        return self.data[self.kinds.index(kind)] if kind in self.kinds else None


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
