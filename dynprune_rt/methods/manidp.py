"""ManiDP (Tang et al., "Manifold Regularized Dynamic Network Pruning", CVPR 2021), after the authors' code.

Loss = CE + lasso * sum_l mean_i(w_i mean_c pi_lc(x_i)) + graph * sum_l ||cosGram(pi_l) - cosGram(gap F_l)||^2 / N^2,
w_i = (C - CE_i)/C for images easier than C = half of the previous epoch's mean CE, else 0 (detached here). A channel
is kept where its saliency reaches the layer's stored threshold.
Differences from the code: gates start from the pretrained network (`informed`, the published start destroys it), the
saliency is clamped at 4 instead of 1000, and the keep schedule ends at ``end`` of the run, not with the last step.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.attach import Keeps, gates_of, masks_of
from dynprune_rt.methods.base import StepContext
from dynprune_rt.methods.graph import Site
from dynprune_rt.methods.losses import complexity_weights, manifold_similarity, saliency_lasso
from dynprune_rt.methods.saliency_gates import ManiDPGate
from dynprune_rt.methods.saliency_method import SaliencyMethod
from dynprune_rt.methods.thresholds import channel_mean_threshold, quantile_threshold


class ManiDP(SaliencyMethod):
    """See `SaliencyMethod` for the common settings.

    thresholds: "channel_means" as published (the ceil(r C)-th largest of the channels' mean saliencies), or
    "quantile" over images and channels of the last batches. ``every``: steps between updates (published: one epoch).
    """

    name: ClassVar[str] = "manidp"
    keeps: ClassVar[Keeps] = "pooled"

    def __init__(
        self,
        target: float = 0.5,
        end: float = 0.1,
        thresholds: Literal["channel_means", "quantile"] = "quantile",
        lasso: float = 5e-3,
        graph: float = 1.0,
        class_share: float = 0.5,
        gamma: float = 1.0,
        every: int = 88,
        clamp_max: float = 4.0,
        inner_only: bool = False,
        static_part: float = 0.5,
        image_part: float = 0.1,
        centre: float = 0.0,
        balance: float = 0.0,
        shaping: float = 0.0,
    ) -> None:
        super().__init__(target, end, "threshold", inner_only, static_part, image_part, centre, balance, shaping)
        if thresholds not in ("channel_means", "quantile"):
            raise TrainingError(f"thresholds={thresholds!r}: expected 'channel_means' or 'quantile'")
        if thresholds == "channel_means" and centre > 0:
            raise TrainingError("centre > 0 leaves no channel means to cut at; take thresholds='quantile'")
        self.thresholds, self.lasso, self.graph = thresholds, lasso, graph
        self.class_share, self.gamma, self.every, self.clamp_max = class_share, gamma, every, clamp_max
        self.state["mean_loss"] = 0.0
        self._loss_sum, self._loss_count = 0.0, 0
        self._steps = 0
        self._seen: dict[str, list[Tensor]] = {}

    def build(self, site: Site, inputs: int) -> ManiDPGate:
        return ManiDPGate(inputs, site.channels, clamp_max=self.clamp_max, centre=self.centre)

    @property
    def quantile_thresholds(self) -> bool:
        return self.thresholds == "quantile"

    def penalty(self, context: StepContext) -> Tensor:
        gates, masks = gates_of(context.model), masks_of(context.model)
        saliencies = self.saliencies(gates.values())
        weights = complexity_weights(context.losses, self.class_share * self.state["mean_loss"], self.gamma)
        total = self.lasso * saliency_lasso(saliencies, weights)
        if self.graph > 0:
            terms = []
            for key, saliency in zip(gates, saliencies, strict=True):
                pooled = masks[key].pooled
                assert pooled is not None
                terms.append(manifold_similarity(saliency, pooled))
            total = total + self.graph * torch.stack(terms).sum()
        self._loss_sum += float(context.losses.detach().sum())
        self._loss_count += len(context.losses)
        for key, gate in gates.items():
            seen = self._seen.setdefault(key, [])
            assert isinstance(gate, ManiDPGate) and gate.compared is not None
            # Channel means need a sum only; a quantile needs the values, of the last steps.
            value = gate.compared[0].detach()
            seen.append(value.mean(0) if self.thresholds == "channel_means" else value)
            if self.thresholds == "quantile" and len(seen) > 8:
                seen.pop(0)
        variety = self.variety(context.model)
        if variety is not None:
            total = total + variety
        self._steps += 1
        if self._steps >= self.every:
            self._update(context.model)
        return total

    def end_epoch(self, model: nn.Module, progress: float) -> nn.Module | None:
        self._set_keep(model, self._schedule.at(progress))
        self._update(model)
        self.state["mean_loss"] = self._loss_sum / max(1, self._loss_count)
        self._loss_sum, self._loss_count = 0.0, 0
        return None

    def _update(self, model: nn.Module) -> None:
        for key, gate in gates_of(model).items():
            assert isinstance(gate, ManiDPGate)
            if self._seen.get(key) and gate.keep < 1.0:
                if self.thresholds == "channel_means":
                    value = channel_mean_threshold(torch.stack(self._seen[key]).mean(0), gate.keep)
                else:
                    value = quantile_threshold(torch.cat(self._seen[key]), gate.keep)
                gate.threshold.copy_(value)
        self._seen, self._steps = {}, 0
