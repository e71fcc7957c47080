"""Gates as they are trained. In eval mode they are the published inference operators, ready for conversion.

A gate maps a feature map to a mask [N, C]; a `ChannelMask` multiplies. Gates compute in float32 whatever the network's
precision is: a threshold decides on small differences.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.autograd import channel_norms, channel_scale, global_mean


class TrainableGate(nn.Module):
    """Base: ``keep`` is the wanted share of live channels, ``saliency`` the last scores [N, C] before the decision.

    ``reads``: the map that a gate looks at, the convolution's "input" or its own "output".
    """

    reads: ClassVar[Literal["input", "output"]] = "input"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.keep = 1.0
        self.saliency: Tensor | None = None

    @property
    def count(self) -> int:
        """Channels that a fixed-count rule keeps: ceil(keep C), at least 1."""
        return max(1, math.ceil(self.keep * self.channels - 1e-9))

    def macs(self) -> int:
        """Multiply-accumulates of one decision."""
        return sum(m.in_features * m.out_features for m in self.modules() if isinstance(m, nn.Linear))

    def scores(self, pooled: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _fp32_scores(self, x: Tensor) -> Tensor:
        """Scores of the pooled map, outside autocast; the context is not entered where a model is exported."""
        if not torch.is_autocast_enabled(x.device.type):
            return self.scores(global_mean(x))
        with torch.autocast(x.device.type, enabled=False):
            return self.scores(global_mean(x))

    def _record(self, saliency: Tensor) -> None:
        """Keep the scores for losses and thresholds; nothing outside training and measuring needs them."""
        if not torch.compiler.is_compiling():
            self.saliency = saliency


class SoftMaskGate(TrainableGate):
    """CWP's soft mask: a sigmoid perceptron on the pooled input, divided by its mean over the channels.

    Never zero, so nothing is skipped until it is made static.
    """

    def __init__(self, source_channels: int, channels: int) -> None:
        super().__init__(channels)
        hidden = max(4, channels // 4)
        self.fc1 = nn.Linear(source_channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        nn.init.zeros_(self.fc2.weight)
        nn.init.constant_(self.fc2.bias, 2.0)

    def scores(self, pooled: Tensor) -> Tensor:
        soft = torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))
        return soft / soft.mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        saliency = self._fp32_scores(x)
        self._record(saliency)
        return saliency


class NormGate(TrainableGate):
    """Instance-wise sparsity (Liu et al., IJCAI 2019): channels whose own l2 norm falls short are dropped.

    rule "mean": the limit is ``level`` times the mean norm of the image's channels; "max": times the largest;
    "quantile": ``level`` itself, a calibrated norm; "topk": the ``count`` largest survive. The mask is binary and has
    no gradient; the kept features are not scaled.
    """

    reads = "output"
    RULES: ClassVar[tuple[str, ...]] = ("mean", "max", "quantile", "topk")
    level: Tensor

    def __init__(self, channels: int, rule: str = "mean") -> None:
        super().__init__(channels)
        if rule not in self.RULES:
            raise TrainingError(f"rule={rule!r}: expected one of {', '.join(self.RULES)}")
        self.rule = rule
        self.register_buffer("level", torch.tensor(0.0))

    def macs(self) -> int:
        return 0

    def forward(self, x: Tensor) -> Tensor:
        norms = channel_norms(x.detach())
        self._record(norms)
        if self.rule == "mean":
            limit = self.level * norms.mean(1, keepdim=True)
        elif self.rule == "max":
            limit = self.level * norms.amax(1, keepdim=True)
        elif self.rule == "quantile":
            limit = self.level
        else:
            limit = norms.topk(self.count, dim=1).values[:, -1:]
        return (norms >= limit).to(x.dtype)


class ChannelMask(nn.Module):
    """feature [N, C, H, W] times mask [N, C].

    ``keeps``: what of the unmasked feature a loss needs in training, its global mean ("pooled"), itself ("feature") or
    nothing ("").
    """

    def __init__(self, keeps: Literal["", "pooled", "feature"] = "") -> None:
        super().__init__()
        self.keeps = keeps
        self.pooled: Tensor | None = None
        self.feature: Tensor | None = None

    def forward(self, feature: Tensor, mask: Tensor) -> Tensor:
        if not self.training:
            return feature * mask.unsqueeze(2).unsqueeze(3)
        if self.keeps == "pooled":
            self.pooled = global_mean(feature)
        elif self.keeps == "feature":
            self.feature = feature
        return channel_scale(feature, mask)
