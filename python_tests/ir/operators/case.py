"""One comparison of an operator's row with torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.types import BATCH, DTYPES, TensorType


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def integers(high: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, high, *shape]).integers(0, high, shape)


def booleans(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, 2, *shape]).random(shape) < 0.5


@dataclass(frozen=True)
class Case:
    """``torch`` receives the operands as tensors. Operands in ``unbatched`` are the same for all images."""

    op: str
    inputs: Sequence[np.ndarray | None]
    torch: Callable[..., Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    unbatched: frozenset[int] = frozenset()
    label: str = ""
    atol: float = 2e-6
    rtol: float = 2e-6

    def __str__(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op

    def types(self) -> list[TensorType | None]:
        return [
            None if array is None else type_of(array, batched=i not in self.unbatched)
            for i, array in enumerate(self.inputs)
        ]


def constants(*positions: int) -> frozenset[int]:
    return frozenset(positions)


def type_of(array: np.ndarray, batched: bool = True) -> TensorType:
    dtype = next(name for name, numpy_type in DTYPES.items() if array.dtype == numpy_type)
    return TensorType(dtype, (BATCH, *array.shape[1:]) if batched else array.shape)


def check_against_torch(case: Case) -> None:
    """The reference equals torch, and has the inferred types."""
    row = OPERATORS[case.op]
    types = row.infer_types(case.types(), case.attrs)
    actual = row.compute(case.inputs, case.attrs)
    expected = case.torch(*(None if a is None else torch.from_numpy(np.array(a)) for a in case.inputs))
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    assert len(actual) == len(expected) == len(types)
    batch = next((a.shape[0] for i, a in enumerate(case.inputs) if a is not None and i not in case.unbatched), 0)
    for type, array, tensor in zip(types, actual, expected, strict=True):
        assert array.dtype == DTYPES[type.dtype]
        assert array.shape == tuple(batch if d == BATCH else d for d in type.shape)
        np.testing.assert_allclose(array, tensor.numpy(), rtol=case.rtol, atol=case.atol, strict=True)
