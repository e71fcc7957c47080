"""DenseNet (Huang et al. 2017): DenseNet-121, and the 40-layer bottleneck form for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.models.gates import gated_conv
from dynprune_rt.models.placement import GateFactory


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3; the result is concatenated to the input."""

    def __init__(self, inputs: int, growth: int, factory: GateFactory) -> None:
        super().__init__()
        inner = 4 * growth
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)
        self.gate1, self.gate2 = factory.chain([(inputs, inner), (inner, growth)])
        self.relu = nn.ReLU()
        self.identity = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(x))
        y = gated_conv(y, self.conv1, self.norm2, self.relu, self.gate1, y)
        y = gated_conv(y, self.conv2, self.identity, self.identity, self.gate2, y)
        return torch.cat([x, y], 1)


class Transition(nn.Module):
    """BN, ReLU, 1x1 to half the channels, 2x2 average pool."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.conv(F.relu(self.norm(x))))
        return pooled


class DenseNet(nn.Module):
    """``depths`` dense layers per stage. ``large`` puts the strided 7x7 stem and max-pool of ImageNet nets first."""

    def __init__(
        self,
        factory: GateFactory,
        depths: Sequence[int],
        growth: int = 32,
        large: bool = True,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        channels = 2 * growth
        if large:
            stem = [nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        else:
            self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False))
        layers: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            if stage:
                layers.append(Transition(channels, channels // 2))
                channels //= 2
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth, factory))
                channels += growth
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.features(self.stem(x))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
