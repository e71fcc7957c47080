"""Gates of FBS and ManiDP: a saliency per channel from the pooled input, and a rule that says which survive."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.gates import TrainableGate
from dynprune_rt.methods.thresholds import quantile_threshold

Rule = Literal["topk", "threshold"]


class SaliencyGate(TrainableGate):
    """A saliency >= 0 per channel from the pooled input; survivors are scaled by it, the others are 0.

    rule "topk": per image, the ``count`` largest survive (ties too). rule "threshold": those that reach the stored
    scalar ``threshold``, so that counts vary from image to image; in training it follows the batches' quantile of all
    (image, channel) saliencies, unless ``frozen``; while ``calibrating`` it is that of the batch at hand.

    centre: share of each channel's ``usual`` (mean) saliency that is taken off before the comparison, not before the
    scaling. With 1, a channel is kept where this image wants it more than others do; with 0, as published, channels
    that are loud on average are kept in every image.
    """

    #: Share of the old threshold and means kept per training step.
    momentum: ClassVar[float] = 0.95
    threshold: Tensor
    usual: Tensor

    def __init__(self, channels: int, rule: Rule, frozen: bool = False, centre: float = 0.0) -> None:
        super().__init__(channels)
        if rule not in ("topk", "threshold"):
            raise TrainingError(f"rule={rule!r}: expected 'topk' or 'threshold'")
        if not 0.0 <= centre <= 1.0:
            raise TrainingError(f"centre={centre}: the share of the mean saliency to take off must be in [0, 1]")
        self.rule, self.frozen, self.centre = rule, frozen, centre
        self.calibrating = False
        #: What was compared, and with what, in the last step: [N, C] and [N, 1] or a scalar; None where all were kept.
        self.compared: tuple[Tensor, Tensor] | None = None
        self.register_buffer("threshold", torch.tensor(-10000.0))
        if centre > 0:
            self.register_buffer("usual", torch.full((channels,), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        saliency = self._fp32_scores(x)
        self._record(saliency)
        scores = self._centred(saliency) if self.centre > 0 else saliency
        if self.rule == "topk" and self.count == self.channels:
            if self.training:
                self.compared = None
            return saliency
        if self.rule == "topk":
            limit = scores.topk(self.count, dim=1).values[:, -1:]
        else:
            if self.calibrating:
                self.threshold.copy_(quantile_threshold(scores.detach(), self.keep))
            elif self.training and not self.frozen:
                self._follow(scores.detach())
            limit = self.threshold
        if self.training:
            self.compared = (scores, limit.detach())
        return saliency * (scores >= limit).to(saliency.dtype)

    def _centred(self, saliency: Tensor) -> Tensor:
        if self.training or self.calibrating:
            mean = saliency.detach().mean(0)
            started = not self.calibrating and float(self.usual[0]) >= 0.0  # saliencies are not negative
            self.usual.copy_(torch.lerp(mean, self.usual, self.momentum) if started else mean)
        return saliency - self.centre * self.usual

    def _follow(self, scores: Tensor) -> None:
        if self.keep >= 1.0:
            return
        wanted = quantile_threshold(scores, self.keep)
        started = float(self.threshold) > -10000.0
        self.threshold.copy_(torch.lerp(wanted, self.threshold, self.momentum) if started else wanted)


class FBSGate(SaliencyGate):
    """Feature boosting and suppression (Gao et al., ICLR 2019): relu of one linear layer on the pooled input."""

    def __init__(self, source_channels: int, channels: int, rule: Rule = "topk", centre: float = 0.0) -> None:
        super().__init__(channels, rule, centre=centre)
        self.fc = nn.Linear(source_channels, channels)
        nn.init.kaiming_normal_(self.fc.weight)
        nn.init.ones_(self.fc.bias)

    def scores(self, pooled: Tensor) -> Tensor:
        return F.relu(self.fc(pooled))


class ManiDPGate(SaliencyGate):
    """ManiDP (Tang et al., CVPR 2021): min(relu(W2 relu(W1 a) + b2), clamp_max), kept from a stored threshold on.

    ``reduction``: hidden units are channels / 2 from 80 channels on, else as many as channels (published).
    """

    def __init__(
        self, source_channels: int, channels: int, rule: Rule = "threshold", clamp_max: float = 4.0, centre: float = 0.0
    ) -> None:
        super().__init__(channels, rule, frozen=True, centre=centre)
        hidden = channels // 2 if channels >= 80 else channels
        self.clamp_max = clamp_max
        self.fc1 = nn.Linear(source_channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels)
        nn.init.kaiming_normal_(self.fc1.weight)
        nn.init.kaiming_normal_(self.fc2.weight)
        nn.init.ones_(self.fc2.bias)

    def scores(self, pooled: Tensor) -> Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(pooled)))).clamp(max=self.clamp_max)
