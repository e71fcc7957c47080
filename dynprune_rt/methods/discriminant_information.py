"""DI pruning: remove the channels of least discriminant information, then fine-tune with the dense teacher.

Criterion: `dynprune_rt.methods.discriminant`. Greedy removal under a budget follows the abstract of arXiv 2005.13796
(score per cost saved; a reconstruction), "structure distillation" is read as training the pruned structure with the
dense network as teacher (a reconstruction too).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from dynprune_rt.methods.base import Calibration, Method
from dynprune_rt.methods.budget import greedy_removal
from dynprune_rt.methods.discriminant import RHO, score_sites
from dynprune_rt.methods.graph import TracedModel, require_inner
from dynprune_rt.methods.removal import remove_channels


class DiscriminantInformation(Method):
    """Static pruning to ``target`` of the dense cost before the first step.

    ``rates``: milliseconds per MAC of each layer (`latency.layer_rates`) make the budget one of latency.
    """

    name: ClassVar[str] = "di"

    def __init__(
        self, target: float = 0.5, minimum: float = 0.1, rho: float = RHO, rates: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.target, self.minimum, self.rho = target, minimum, rho
        self._rates = rates

    def config(self) -> dict[str, Any]:
        return {**super().config(), "latency_budget": self._rates is not None}

    def prepare(self, traced: TracedModel, calibration: Calibration, classes: int) -> nn.Module:
        names = [site.conv for site in require_inner(traced)]
        scores = score_sites(traced.module, names, calibration, classes, self.rho)
        self.state["kept"] = greedy_removal(traced.layers, scores, self.target, self.minimum, self._rates)
        return self.rebuild(traced)

    def rebuild(self, traced: TracedModel) -> nn.Module:
        remove_channels(traced, self.state["kept"])
        return traced.module
