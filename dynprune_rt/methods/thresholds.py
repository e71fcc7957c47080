"""Thresholds of gates, from saliencies or norms of calibration images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dynprune_rt.errors import TrainingError


def quantile_threshold(scores: Tensor, keep: float) -> Tensor:
    """The value that a share ``keep`` of all (image, channel) scores [N, C] reaches; a scalar."""
    if not 0.0 < keep <= 1.0:
        raise TrainingError(f"keep={keep}: must be in (0, 1]")
    flat = scores.flatten()
    count = max(1, math.ceil(keep * flat.numel() - 1e-9))
    return flat.kthvalue(flat.numel() - count + 1).values


def channel_mean_threshold(means: Tensor, keep: float) -> Tensor:
    """ManiDP's rule: the ceil(keep C)-th largest of the channels' mean saliencies [C]; a scalar.

    Being cut from means, it parts channels rather than (image, channel) pairs: gates tend to come out static.
    """
    if not 0.0 < keep <= 1.0:
        raise TrainingError(f"keep={keep}: must be in (0, 1]")
    count = max(1, math.ceil(keep * means.numel() - 1e-9))
    return means.sort(descending=True).values[count - 1]


def coefficient_of_variation(norms: Tensor) -> float:
    """Deviation over mean of an image's channel norms [N, C], averaged over images (instance-wise sparsity)."""
    return float((norms.double().std(1, unbiased=False) / norms.double().mean(1).clamp_min(1e-12)).mean())


def select_uneven(norms: Mapping[str, Tensor], share: float) -> list[str]:
    """The ``share`` of the layers whose norms vary most between channels: small ones are safe to drop there."""
    if not 0.0 < share <= 1.0:
        raise TrainingError(f"share={share}: the share of layers to gate must be in (0, 1]")
    ranked = sorted(norms, key=lambda name: -coefficient_of_variation(norms[name]))
    chosen = set(ranked[: max(1, round(share * len(ranked)))])
    return [name for name in norms if name in chosen]


def valley(importance: Tensor, bins: int = 32) -> float:
    """The emptiest place of a histogram of [C] values between its two highest peaks; the midpoint without two peaks."""
    values = importance.double().flatten()
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return low
    counts = torch.histc(values, bins, low, high)
    smooth = torch.nn.functional.avg_pool1d(counts[None, None], 3, 1, 1)[0, 0]
    first = int(smooth.argmax())
    distance = (torch.arange(bins) - first).abs()
    rest = torch.where(distance > bins // 4, smooth, torch.zeros_like(smooth))
    width = (high - low) / bins
    if float(rest.max()) == 0.0:
        return (low + high) / 2
    left, right = sorted((first, int(rest.argmax())))
    between = counts[left : right + 1]
    empty = (between == between.min()).nonzero().flatten().double().mean()
    return low + (left + float(empty) + 0.5) * width
