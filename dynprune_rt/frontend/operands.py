"""What an fx node stands for during translation, besides IR values and plain Python arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dynprune_rt.ir.graph import Value


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor whose value is known now: a weight, a constant, or computed from these alone.

    ``batched``: dimension 0 stands for the batch and all images hold the same; ``tensor`` has one of them.
    """

    tensor: torch.Tensor
    batched: bool = False
    name: str = ""

    @property
    def scalar(self) -> bool | int | float | None:
        """The value if every element is the same, else None."""
        if self.tensor.numel() == 0:
            return None
        first = self.tensor.flatten()[0]
        same = bool((self.tensor == first).all())
        return first.item() if same else None


@dataclass(frozen=True)
class Symbolic:
    """A size that depends on the batch: a sympy expression."""

    expression: Any


@dataclass(frozen=True)
class BatchIndex:
    """arange(N), possibly with trailing dimensions of 1 or broadcast: every element is its image's number."""


@dataclass(frozen=True, eq=False)
class Masked:
    """x[mask] with a computed bool mask: exists only to be written back by y[mask] = x[mask]."""

    source: Value
    mask: Value


class Failed:
    """Marks the result of a node that has been reported; its users are skipped silently."""


FAILED = Failed()
