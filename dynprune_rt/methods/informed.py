"""Starting gates from the pretrained network instead of from noise.

The published initialisations (Kaiming weights, bias 1) multiply a pretrained network's features by random numbers,
layer after layer: its first loss is that of a destroyed network. Here a ridge regression predicts each channel's
relative energy from the pooled input; the gate starts as 1 plus damped parts of it, and the batch norm before the
mask is divided by the gate's mean, so that the gated network starts as the dense one. Undamped, a loud channel would
be scaled up at every gate without end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynprune_rt.methods.saliency_gates import FBSGate, ManiDPGate


def ridge(inputs: Tensor, targets: Tensor, strength: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Weights [K, C] and means of the ridge regression targets [N, K] ~ W (inputs [N, C] - mean), in float64.

    ``strength`` is relative to the inputs' mean variance.
    """
    x = inputs.double() - inputs.double().mean(0)
    y = targets.double() - targets.double().mean(0)
    gram = x.T @ x
    ridge_term = strength * gram.diagonal().mean().clamp_min(1e-12)
    solution = torch.linalg.solve(gram + ridge_term * torch.eye(len(gram), dtype=gram.dtype), x.T @ y)
    return solution.T, inputs.double().mean(0)


def start_gate(
    gate: FBSGate | ManiDPGate,
    norm: nn.BatchNorm2d | None,
    pooled: Tensor,
    energy: Tensor,
    static_part: float = 0.5,
    image_part: float = 0.1,
) -> None:
    """Set ``gate`` so that its saliency is 1 + static_part (e - 1) + image_part (deviation of the image from e).

    pooled [N, C_in]: global means of the gate's input; energy [N, C]: mean magnitudes of the masked feature; e is the
    channel's mean energy over the mean of all channels, at most 4. ``norm`` is divided by the channel's mean saliency.
    """
    relative = (energy / energy.mean(1, keepdim=True).clamp_min(1e-12)).double()
    weights, centre = ridge(pooled, relative)
    mean = (1.0 + static_part * (relative.mean(0).clamp(max=4.0) - 1.0)).clamp_min(0.1)
    linear = image_part * weights
    with torch.no_grad():
        if isinstance(gate, FBSGate):
            gate.fc.weight.copy_(linear)
            gate.fc.bias.copy_(mean - linear @ centre)
        else:
            _start_perceptron(gate, linear, mean - linear @ centre)
        if norm is not None and norm.weight is not None:
            norm.weight.div_(mean.to(norm.weight))
            norm.bias.div_(mean.to(norm.bias))


def _start_perceptron(gate: ManiDPGate, linear: Tensor, bias: Tensor) -> None:
    """The same linear map through the hidden layer: pairs of units carry plus and minus one input direction each.

    The map is first reduced to half as many directions as there are hidden units (its largest singular values).
    """
    hidden = gate.fc1.out_features
    rank = min(hidden // 2, *linear.shape)
    left, values, right = torch.linalg.svd(linear, full_matrices=False)
    root = values[:rank].sqrt()
    down, up = root[:, None] * right[:rank], left[:, :rank] * root
    gate.fc1.weight[: 2 * rank].copy_(torch.cat([down, -down]))
    gate.fc2.weight[:, : 2 * rank].copy_(torch.cat([up, -up], dim=1))
    gate.fc2.weight[:, 2 * rank :].mul_(0.05)
    gate.fc2.bias.copy_(bias)
