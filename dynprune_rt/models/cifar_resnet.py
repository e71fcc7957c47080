"""ResNet-20/32/44/56/110 for 32x32 images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.models.gates import gated_conv
from dynprune_rt.models.placement import GateFactory


class PadShortcut(nn.Module):
    """Option A: every second pixel, with zero channels on both sides; no parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option B: a strided 1x1 convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an addition."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module, factory: GateFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut
        self.gate1, self.gate2 = factory.chain([(inputs, outputs), (outputs, outputs)])
        self.branch_gate = factory.branch(inputs)
        self.output_gate = factory.output(inputs, outputs)
        self.relu = nn.ReLU()
        self.identity = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = gated_conv(x, self.conv1, self.bn1, self.relu, self.gate1, x)
        y = gated_conv(y, self.conv2, self.bn2, self.identity, self.gate2, x)
        if self.branch_gate is not None:
            y = y * self.branch_gate(x)
        y = self.relu(y + self.shortcut(x))
        return y if self.output_gate is None else y * self.output_gate(x)


class CifarResNet(nn.Module):
    """Three stages of ``blocks`` basic blocks with ``width``, 2 ``width`` and 4 ``width`` channels.

    ``shortcut``: "A" (padding, as the published CIFAR weights) or "B" (projection).
    """

    def __init__(
        self, factory: GateFactory, blocks: int, width: int = 16, classes: int = 10, shortcut: str = "A"
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut={shortcut!r}: expected 'A' or 'B'")
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage in range(3):
            outputs = width << stage
            layers = []
            for i in range(blocks):
                stride = 2 if stage and i == 0 else 1
                skip: nn.Module = nn.Identity()
                if stride != 1:
                    skip = PadShortcut(inputs, outputs) if shortcut == "A" else projection(inputs, outputs, stride)
                layers.append(BasicBlock(inputs, outputs, stride, skip, factory))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
