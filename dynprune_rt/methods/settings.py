"""Optimisation settings of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dynprune_rt.errors import TrainingError


@dataclass(frozen=True)
class Settings:
    """Optimisation settings.

    ``epochs`` = 0 prepares and calibrates only. ``distillation`` is the weight of the teacher's term, the rest is
    cross-entropy.
    """

    epochs: int = 20
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_steps: int = 50
    clip_norm: float = 5.0
    distillation: float = 0.7
    temperature: float = 4.0
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "epochs": self.epochs >= 0,
            "learning_rate": 0 <= self.learning_rate < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "warmup_steps": self.warmup_steps >= 0,
            "clip_norm": self.clip_norm > 0,
            "distillation": 0 <= self.distillation <= 1,
            "temperature": 0 < self.temperature < math.inf,
            "precision": self.precision in ("fp32", "bf16"),
        }
        wrong = [f"{name}={getattr(self, name)!r}" for name, fine in ranges.items() if not fine]
        if wrong:
            raise TrainingError(f"settings out of range: {', '.join(wrong)}")
