"""MobileNetV1 (Howard et al. 2017), with TensorFlow's "same" padding as the published weights need."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dynprune_rt.models.gates import gated_conv
from dynprune_rt.models.placement import GateFactory

#: Output channels of the thirteen pointwise convolutions, and the stride of the depthwise one before each.
POINTWISE = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


class SameConv(nn.Module):
    """A 3x3 convolution padded as TensorFlow does: the odd pixel goes to the bottom and right."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        stride = self.conv.stride[0]
        rows, columns = (max((-(-s // stride) - 1) * stride + 3 - s, 0) for s in x.shape[2:])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.conv.weight, None, stride, groups=self.conv.groups)


class MobileNetV1(nn.Module):
    """Module names follow the published weights: conv1, conv_dw_i, conv_pw_i (with ``_bn``), conv_preds.

    A gate on pointwise convolution i is applied after depthwise convolution i + 1, which hands the mask
    on: both convolutions' channels die. ``same_padding=False`` pads by one on every side instead.
    """

    def __init__(
        self, factory: GateFactory, width: float = 1.0, classes: int = 1000, same_padding: bool = True
    ) -> None:
        super().__init__()
        inputs = max(round(32 * width), 4)
        padding = 0 if same_padding else 1
        self.same_padding = same_padding
        self.conv1 = nn.Conv2d(3, inputs, 3, 2, padding, bias=False)
        self.conv1_bn = nn.BatchNorm2d(inputs, eps=1e-3)
        self.relu6 = nn.ReLU6()
        pointwise_input = inputs
        for i, (channels, stride) in enumerate(zip(POINTWISE, STRIDES, strict=True), 1):
            depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding, groups=inputs, bias=False)
            self.add_module(f"conv_dw_{i}", depthwise)
            self.add_module(f"conv_dw_{i}_bn", nn.BatchNorm2d(inputs, eps=1e-3))
            masks_depthwise = i > 1 and not factory.gates_inputs
            setattr(self, f"gate_dw_{i}", factory.over_depthwise(pointwise_input, inputs) if masks_depthwise else None)
            outputs = max(round(channels * width), 4)
            self.add_module(f"conv_pw_{i}", nn.Conv2d(inputs, outputs, 1, bias=False))
            self.add_module(f"conv_pw_{i}_bn", nn.BatchNorm2d(outputs, eps=1e-3))
            last = i == len(POINTWISE)
            gated = factory.gates_inputs or last
            gate = factory.chain([(inputs, outputs)], residual=False)[0] if gated else None
            setattr(self, f"gate_pw_{i}", gate)
            pointwise_input, inputs = inputs, outputs
        self.conv_preds = nn.Conv2d(inputs, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.conv1_bn(self._spatial(self.conv1)(x)))
        before = x
        for i in range(1, len(POINTWISE) + 1):
            depthwise = self._spatial(getattr(self, f"conv_dw_{i}"))
            bn, gate = getattr(self, f"conv_dw_{i}_bn"), getattr(self, f"gate_dw_{i}")
            x = gated_conv(x, depthwise, bn, self.relu6, gate, before)
            before = x
            pointwise, gate = getattr(self, f"conv_pw_{i}"), getattr(self, f"gate_pw_{i}")
            x = gated_conv(x, pointwise, getattr(self, f"conv_pw_{i}_bn"), self.relu6, gate, x)
        return self.conv_preds(F.adaptive_avg_pool2d(x, 1)).flatten(1)

    def _spatial(self, conv: nn.Conv2d) -> nn.Module:
        return SameConv(conv) if self.same_padding else conv
