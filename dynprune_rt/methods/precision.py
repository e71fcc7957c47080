"""Intra-layer mixed precision from discriminant information: bits per output channel under a size budget.

The abstract of arXiv 2005.13796 names "intra-layer mixed precision quantization" guided by DI; details were not
readable. Reconstruction: channels of much information get more bits. Raising channel c of a layer from one width to
the next is worth its share of the layer's DI times the relative squared error this removes from its weights; upgrades
are taken greedily by worth per bit of storage, until the budget is spent. Weights are quantised symmetrically with one
scale per output channel and stored de-quantised: size and accuracy are reported, arithmetic stays fp32.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynprune_rt.errors import TrainingError

#: Widths that channels may get, in bits.
WIDTHS = (2, 3, 4, 6, 8)

_SCALE_BITS = 32


@dataclass(frozen=True)
class MixedPrecision:
    """``bits``: i64 [C] per convolution; sizes in bytes of those weights, scales included, and as fp32."""

    bits: dict[str, Tensor]
    size: int
    size_fp32: int

    @property
    def mean_bits(self) -> float:
        channels = torch.cat(list(self.bits.values()))
        return float(channels.double().mean())


def quantise(weight: Tensor, bits: Tensor) -> Tensor:
    """Quantise and de-quantise weight [C, ...] symmetrically to ``bits`` [C] per output channel."""
    flat = weight.flatten(1)
    top = (2.0 ** (bits.to(flat.device).double() - 1) - 1).to(flat.dtype)[:, None]
    scale = flat.abs().amax(1, keepdim=True) / top
    levels = (flat / scale.clamp_min(torch.finfo(flat.dtype).tiny)).round()
    return (torch.minimum(torch.maximum(levels, -top), top) * scale).reshape(weight.shape)


def allocate_bits(
    weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], mean_bits: float, widths: Sequence[int] = WIDTHS
) -> MixedPrecision:
    """Bits per output channel such that weights take at most ``mean_bits`` each on average.

    weights: [C, ...] per convolution; scores: DI [C] of the same ones. Raises TrainingError for a budget below the
    smallest width, or scores that do not match.
    """
    ladder = sorted(widths)
    if len(ladder) < 1 or ladder[0] < 2 or ladder[-1] > 16:
        raise TrainingError(f"widths={tuple(widths)}: expected widths from 2 to 16 bits")
    if mean_bits < ladder[0]:
        raise TrainingError(f"mean_bits={mean_bits}: below the smallest width, {ladder[0]} bits")
    for name, weight in weights.items():
        if name not in scores or len(scores[name]) != len(weight):
            raise TrainingError(f"{name}: no DI score for each of its {len(weight)} channels")
    budget = mean_bits * sum(w.numel() for w in weights.values())
    bits = {name: torch.full((len(w),), ladder[0]) for name, w in weights.items()}
    spent = float(sum(ladder[0] * w.numel() for w in weights.values()))
    gains = {name: _upgrade_gains(w, scores[name], ladder) for name, w in weights.items()}
    heap = [(-float(gain[c, 0]), name, c, 0) for name, gain in gains.items() for c in range(len(gain)) if gain.shape[1]]
    heapq.heapify(heap)
    while heap:
        _, name, channel, level = heapq.heappop(heap)
        cost = (ladder[level + 1] - ladder[level]) * weights[name][channel].numel()
        if spent + cost > budget + 1e-6:
            continue
        spent += cost
        bits[name][channel] = ladder[level + 1]
        if level + 2 < len(ladder):
            heapq.heappush(heap, (-float(gains[name][channel, level + 1]), name, channel, level + 1))
    scales = _SCALE_BITS * sum(len(w) for w in weights.values())
    fp32 = 4 * sum(w.numel() for w in weights.values())
    return MixedPrecision(bits, int((spent + scales + 7) // 8), fp32)


def apply_precision(model: nn.Module, precision: MixedPrecision) -> None:
    """Replace the weights of the named convolutions by their quantised, de-quantised values."""
    modules = dict(model.named_modules())
    for name, bits in precision.bits.items():
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            weight.copy_(quantise(weight, bits))


def _upgrade_gains(weight: Tensor, score: Tensor, ladder: list[int]) -> Tensor:
    """[C, steps]: share of DI times relative squared error removed, per bit of storage that the step costs."""
    flat = weight.detach().flatten(1).double()
    energy = flat.square().sum(1).clamp_min(1e-30)
    errors = [(quantise(flat, torch.full((len(flat),), width)) - flat).square().sum(1) / energy for width in ladder]
    share = (score / score.sum().clamp_min(1e-30)).double()
    steps = [
        share * (errors[i] - errors[i + 1]).clamp_min(0) / ((ladder[i + 1] - ladder[i]) * flat.shape[1])
        for i in range(len(ladder) - 1)
    ]
    return torch.stack(steps, dim=1) if steps else flat.new_zeros(len(flat), 0)
