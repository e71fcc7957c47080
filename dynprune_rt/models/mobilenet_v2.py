"""MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.models.gates import gated_conv
from dynprune_rt.models.placement import GateFactory

#: expansion, channels, repeats, stride of the first repeat
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; an addition where the shape is kept.

    The gate reads the block's input and masks after the depthwise convolution, which hands the mask on
    to the expansion. Gates that mask a convolution's input stand before the projection.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, factory: GateFactory) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.expand_bn = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs
        self.gate = factory.over_depthwise(inputs, hidden)
        self.input_gate = factory.on_input(hidden, outputs)
        self.branch_gate = factory.branch(inputs) if self.residual else None
        self.output_gate = factory.output(inputs, outputs) if self.residual else None
        self.relu6 = nn.ReLU6(inplace=True)
        self.identity = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu6(self.expand_bn(self.expand(x))) if self.expands else x
        y = gated_conv(y, self.depthwise, self.depthwise_bn, self.relu6, self.gate, x)
        y = gated_conv(y, self.project, self.project_bn, self.identity, self.input_gate, y)
        if self.branch_gate is not None:
            y = y * self.branch_gate(x)
        if self.residual:
            y = x + y
        return y if self.output_gate is None else y * self.output_gate(x)


class MobileNetV2(nn.Module):
    """``width`` scales every channel count."""

    def __init__(self, factory: GateFactory, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        inputs = max(round(32 * width), 4)
        last = max(round(1280 * width), 4)
        self.stem = nn.Sequential(nn.Conv2d(3, inputs, 3, 2, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU6())
        blocks = []
        for expansion, channels, repeats, stride in STAGES:
            outputs = max(round(channels * width), 4)
            for i in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expansion, factory))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6())
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
