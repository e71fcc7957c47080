"""SqueezeNet 1.1 (Iandola et al. 2016): fire modules, no batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.models.gates import gated_conv
from dynprune_rt.models.placement import GateFactory

#: Squeeze and expand widths of the eight fire modules; a max-pool stands before modules 0, 2 and 4.
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


class SqueezeNet(nn.Module):
    """Convolutions are numbered conv0 to conv25 as in the published weights. ``width`` scales the channels."""

    def __init__(self, factory: GateFactory, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        inputs = max(round(64 * width), 4)
        self.conv0 = nn.Conv2d(3, inputs, 3, 2)
        for i, (squeeze, expand) in enumerate(FIRES):
            inner, outer = max(round(squeeze * width), 4), max(round(expand * width), 4)
            squeezes, expands1, expands3 = f"{3 * i + 1}", f"{3 * i + 2}", f"{3 * i + 3}"
            self.add_module(f"conv{squeezes}", nn.Conv2d(inputs, inner, 1))
            self.add_module(f"conv{expands1}", nn.Conv2d(inner, outer, 1))
            self.add_module(f"conv{expands3}", nn.Conv2d(inner, outer, 3, padding=1))
            for number, pair in ((squeezes, (inputs, inner)), (expands1, (inner, outer)), (expands3, (inner, outer))):
                setattr(self, f"gate{number}", factory.chain([pair], residual=False)[0])
            inputs = 2 * outer
        self.conv25 = nn.Conv2d(inputs, classes, 1)
        self.maxpool = nn.MaxPool2d(3, 2)
        self.relu = nn.ReLU()
        self.identity = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv0(x))
        for i in range(len(FIRES)):
            if i in (0, 2, 4):
                x = self.maxpool(x)
            x = self._unit(x, 3 * i + 1)
            x = torch.cat([self._unit(x, 3 * i + 2), self._unit(x, 3 * i + 3)], dim=1)
        x = self.relu(self.conv25(x))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def _unit(self, x: Tensor, number: int) -> Tensor:
        conv, gate = getattr(self, f"conv{number}"), getattr(self, f"gate{number}")
        return gated_conv(x, conv, self.identity, self.relu, gate, x)
