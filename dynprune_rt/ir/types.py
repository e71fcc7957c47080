"""Element types and shapes of IR values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Symbolic batch size. It may stand only in dimension 0 of a shape.
BATCH = -1

#: IR element types and the numpy types that the reference interpreter uses for them.
DTYPES: dict[str, np.dtype] = {
    "f32": np.dtype(np.float32),
    "i64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}


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

    def __str__(self) -> str:
        dims = ", ".join("N" if d == BATCH else str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"
