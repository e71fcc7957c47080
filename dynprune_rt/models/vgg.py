"""VGG-16 with batch norm for 32x32 images: thirteen 3x3 convolutions, one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from dynprune_rt.models.gates import gated_conv
from dynprune_rt.models.placement import GateFactory

#: Output channels of the convolutions, stage by stage; a 2x2 max-pool follows each stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class ConvUnit(nn.Module):
    """3x3 convolution, batch norm, ReLU, under a gate that reads the convolution's input."""

    def __init__(self, inputs: int, outputs: int, factory: GateFactory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        (self.gate,) = factory.chain([(inputs, outputs)], residual=False)

    def forward(self, x: Tensor) -> Tensor:
        return gated_conv(x, self.conv, self.bn, self.relu, self.gate, x)


class VGG16BN(nn.Module):
    """``width`` scales every channel count."""

    def __init__(self, factory: GateFactory, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in STAGES:
            for channels in stage:
                outputs = max(round(channels * width), 4)
                layers.append(ConvUnit(inputs, outputs, factory))
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
