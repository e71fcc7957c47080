"""ResNet-18/34/50 for large images (version 1.5: the stride sits in the 3x3 convolution)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.models.cifar_resnet import BasicBlock, projection
from dynprune_rt.models.gates import gated_conv
from dynprune_rt.models.placement import GateFactory


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and an addition; ``outputs`` is four times the inner width."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module, factory: GateFactory) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut
        self.gate1, self.gate2, self.gate3 = factory.chain([(inputs, inner), (inner, inner), (inner, outputs)])
        self.branch_gate = factory.branch(inputs)
        self.output_gate = factory.output(inputs, outputs)
        self.relu = nn.ReLU()
        self.identity = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = gated_conv(x, self.conv1, self.bn1, self.relu, self.gate1, x)
        y = gated_conv(y, self.conv2, self.bn2, self.relu, self.gate2, x)
        y = gated_conv(y, self.conv3, self.bn3, self.identity, self.gate3, x)
        if self.branch_gate is not None:
            y = y * self.branch_gate(x)
        y = self.relu(y + self.shortcut(x))
        return y if self.output_gate is None else y * self.output_gate(x)


class ResNet(nn.Module):
    """Stem, four stages of ``depths`` blocks, classifier. ``width`` scales every channel count."""

    def __init__(
        self,
        factory: GateFactory,
        depths: Sequence[int],
        bottleneck: bool = False,
        width: float = 1.0,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        base = max(round(64 * width), 4)
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = base
        self.stages = len(depths)
        for stage, depth in enumerate(depths):
            outputs = (base << stage) * (4 if bottleneck else 1)
            layers = []
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                keeps_shape = stride == 1 and inputs == outputs
                shortcut = nn.Identity() if keeps_shape else projection(inputs, outputs, stride)
                block = Bottleneck if bottleneck else BasicBlock
                layers.append(block(inputs, outputs, stride, shortcut, factory))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits
