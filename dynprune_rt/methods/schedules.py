"""Schedules over a training run, as functions of its progress in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynprune_rt.errors import TrainingError


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up over ``warmup`` steps, then half a cosine to 0 at ``total``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class KeepSchedule:
    """Share of channels to keep: 1 at the start, ``final`` from ``end`` of the run on, half a cosine between.

    ManiDP's published schedule is end=1, which reaches its target when the learning rate is 0; end=0 keeps the final
    rate from the first step.
    """

    final: float
    end: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.final <= 1.0:
            raise TrainingError(f"keep rate {self.final}: must be in (0, 1]")
        if not 0.0 <= self.end <= 1.0:
            raise TrainingError(f"end={self.end}: the schedule must end within the run, in [0, 1]")

    def at(self, progress: float) -> float:
        if progress >= self.end:
            return self.final
        return (1.0 - self.final) / 2.0 * math.cos(math.pi * progress / self.end) + (1.0 + self.final) / 2.0
