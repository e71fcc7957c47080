"""Setting what training would have set: weights, batch-norm statistics and gate thresholds.

A random network is only a fair stand-in for a trained one when its activations keep their scale and
its masks are mixed. One forward pass in calibration mode sees to both, layer after layer: every batch
norm takes its statistics from the batch, every gate then sets its own threshold from its scores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynprune_rt.models.gates import ImageGate


def initialise(model: nn.Module) -> None:
    """Random weights: He for convolutions, batch-norm scales about 1 and shifts about 0. Gates draw their own."""
    own = {id(m) for gate in model.modules() if isinstance(gate, ImageGate) for m in gate.modules()}
    for module in (m for m in model.modules() if id(m) not in own):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in" if module.groups == 1 else "fan_out")
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.05)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)


def calibrate(model: nn.Module, images: Tensor, statistics: bool) -> None:
    """Let gates adapt to ``images``, and with ``statistics`` batch norms (or convolutions, where there are
    none) as well; leaves eval mode."""
    gates = [m for m in model.modules() if isinstance(m, ImageGate)]
    own = {id(m) for gate in gates for m in gate.modules()}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    backbone_norms = [m for m in norms if id(m) not in own]
    momenta = [norm.momentum for norm in norms]
    hooks = []
    if statistics and not backbone_norms:
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and id(m) not in own]
        hooks = [conv.register_forward_hook(_scale_to_unit_deviation) for conv in convs]
    model.train()
    for norm in norms:
        norm.momentum = 1.0
    if not statistics:
        for norm in backbone_norms:
            norm.eval()
    for gate in gates:
        gate.calibrating = True
    with torch.no_grad():
        model(images)
        if statistics:
            for norm in norms:
                # A channel closed in all of these images has no variance; one that opens it would explode.
                norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()) + 1e-6)
    for gate in gates:
        gate.calibrating = False
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _scale_to_unit_deviation(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook for networks without batch norm: rescales the weights, so that no signal dies out."""
    bias = torch.zeros(1) if conv.bias is None else conv.bias.reshape(1, -1, 1, 1)
    factor = 1.0 / (output - bias).std().clamp_min(1e-6)
    conv.weight.mul_(factor)
    return (output - bias) * factor + bias
