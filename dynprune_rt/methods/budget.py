"""Choosing which channels to remove under a budget of MACs or of estimated latency."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.graph import LayerCost
from dynprune_rt.methods.macs import macs_at_widths


def greedy_removal(
    layers: list[LayerCost],
    scores: Mapping[str, Tensor],
    target: float,
    minimum: float = 0.1,
    rates: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Remove the channel with the least (score / cost saved) until ``target`` of the cost is left.

    ``scores``: non-negative [C] per removable site; each site's are divided by their sum first (by their mean, wide
    and cheap layers would be kept and narrow ones emptied). ``minimum``: share of channels that every site keeps.
    ``rates``: see `macs_at_widths`; with them the budget is one of latency. Returns kept indices, ascending, per site.

    Raises TrainingError when the target cannot be met.
    """
    if not 0.0 < target <= 1.0:
        raise TrainingError(f"target={target}: the share of the MACs to leave must be in (0, 1]")
    order = {site: torch.argsort(s, stable=True).tolist() for site, s in scores.items()}
    share = {site: (s / s.sum().clamp_min(1e-30)).tolist() for site, s in scores.items()}
    widths: dict[str, float] = {site: len(s) for site, s in scores.items()}
    floor = {site: max(1, round(minimum * len(s))) for site, s in scores.items()}
    dense = macs_at_widths(layers, {}, rates)
    cost = dense
    while cost > target * dense:
        best, best_ratio, best_cost = None, float("inf"), cost
        for site, width in widths.items():
            if width <= floor[site]:
                continue
            smaller = macs_at_widths(layers, {**widths, site: width - 1}, rates)
            channel = order[site][len(order[site]) - int(width)]
            ratio = share[site][channel] / max(cost - smaller, 1e-30)
            if ratio < best_ratio:
                best, best_ratio, best_cost = site, ratio, smaller
        if best is None:
            raise TrainingError(
                f"target={target}: with {minimum:.0%} of every removable layer kept, {cost / dense:.1%} of the cost is "
                "still left; choose a higher target or a lower minimum"
            )
        widths[best] -= 1
        cost = best_cost
    return {site: torch.tensor(sorted(order[site][len(order[site]) - int(width) :])) for site, width in widths.items()}
