"""Element types and shapes of IR values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Symbolic batch size. It may stand only in dimension 0 of a shape.
BATCH = -1

#: IR element types and the numpy types that the reference interpreter uses for them.
DTYPES: dict[str, np.dtype] = {
    "f32": np.dtype(np.float32),
    "i64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
    "u8": np.dtype(np.uint8),
    "s8": np.dtype(np.int8),
    "bf16": np.dtype(np.uint16),  # the bits; see ir/bfloat16.py
}

#: Element types of quantised maps and weights: value = scale * integer, so that zero is exact in all of them.
QUANTIZED = ("u8", "s8")

#: Element types of maps that hold several channels in one 32-bit word when they run, and how many.
CHANNELS_PER_WORD = {"u8": 4, "s8": 4, "bf16": 2}

#: Largest rank of a value, the batch included.
MAX_RANK = 8

#: Largest number of elements of a value, per image. Offsets inside one tensor then fit 32 bits.
MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a value.

    ``shape[0] == BATCH`` marks a *batched* value: one slice per image. A value without it is the
    same for every image (a constant, or computed from constants only).
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def batched(self) -> bool:
        return bool(self.shape) and self.shape[0] == BATCH

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_map(self) -> bool:
        """True for a feature map [N, C, H, W]."""
        return self.batched and self.rank == 4

    @property
    def channels(self) -> int:
        """C of a batched value [N, C, ...]."""
        if not self.batched or self.rank < 2:
            raise ValueError(f"{self} has no channel dimension")
        return self.shape[1]

    @property
    def elements(self) -> int:
        """Number of elements of one image (of the whole tensor where it is not batched)."""
        return math.prod(self.shape[1:] if self.batched else self.shape)

    def check(self) -> None:
        """Raise ValueError unless this is a type that a value may have."""
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown element type {self.dtype!r}; expected one of {sorted(DTYPES)}")
        if self.rank > MAX_RANK:
            raise ValueError(f"{self} has rank {self.rank}; at most {MAX_RANK} is supported")
        if any(d < 1 and not (i == 0 and d == BATCH) for i, d in enumerate(self.shape)):
            raise ValueError(f"{self} has an empty dimension, or the batch outside dimension 0")
        if self.elements > MAX_ELEMENTS:
            raise ValueError(f"{self} has {self.elements} elements per image; at most {MAX_ELEMENTS} are supported")

    def __str__(self) -> str:
        dims = ", ".join("N" if d == BATCH else str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"
