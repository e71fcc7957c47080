"""FBS (Gao et al., "Dynamic Channel Pruning: Feature Boosting and Suppression", ICLR 2019).

Saliency relu(W gap(x) + b) of the convolution's input, winner-take-all over the channels, survivors scaled by it.
Differences from the paper: the saliency multiplies the feature after batch norm and activation (before the addition at
the end of a branch) instead of replacing the norm's scale, so that a masked channel is exactly 0; gates start from the
pretrained network (`informed`); the keep rate falls within the first part of the run (the paper lowers it by 0.1 with
fine-tuning between).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dynprune_rt.methods.attach import gates_of
from dynprune_rt.methods.base import StepContext
from dynprune_rt.methods.graph import Site
from dynprune_rt.methods.saliency_gates import FBSGate, Rule
from dynprune_rt.methods.saliency_method import SaliencyMethod


class FBS(SaliencyMethod):
    """See `SaliencyMethod` for the common settings.

    rule: "topk" as published, or "threshold": a stored scalar per layer at the quantile over images and channels, so
    that easy images may use fewer channels. lasso: weight of the sum of the saliencies.
    """

    name: ClassVar[str] = "fbs"

    def __init__(
        self,
        target: float = 0.5,
        end: float = 0.1,
        rule: Rule = "topk",
        lasso: float = 1e-8,
        inner_only: bool = False,
        static_part: float = 0.5,
        image_part: float = 0.1,
        centre: float = 0.0,
        balance: float = 0.0,
        shaping: float = 0.0,
    ) -> None:
        super().__init__(target, end, rule, inner_only, static_part, image_part, centre, balance, shaping)
        self.lasso = lasso

    def build(self, site: Site, inputs: int) -> FBSGate:
        return FBSGate(inputs, site.channels, self.rule, self.centre)

    def penalty(self, context: StepContext) -> Tensor | None:
        total = self.variety(context.model)
        if self.lasso > 0:
            saliencies = self.saliencies(gates_of(context.model).values())
            lasso = self.lasso * torch.stack([s.sum(1).mean() for s in saliencies]).sum()
            total = lasso if total is None else total + lasso
        return total
