"""Bits per output channel under a size budget: 8, 4 or 2, where they do the least damage.

Channels are independent: ``damage[k, i]`` is what storing channel k at ``WIDTHS[i]`` costs, in any unit that adds up.
The allotment is that of one Lagrange multiplier on the total size: channels climb the lower convex hull of (bits,
damage) in the order of damage removed per bit, until the budget is spent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from dynprune_rt.errors import QuantizationError
from dynprune_rt.ir.packed_weights import WIDTHS, channel_bytes


def row_bits(weights_per_channel: int) -> np.ndarray:
    """Bits that one channel takes in storage at each width, whole bytes, i64[len(WIDTHS)]."""
    return 8 * channel_bytes(np.array(WIDTHS, np.uint8), weights_per_channel)


def budget_of_bytes(channels: Mapping[str, tuple[int, int]], total: int) -> int:
    """Bits left for weights when the packed tensors of all layers may take ``total`` bytes.

    ``channels``: (output channels, weights of each) by layer. The width of a channel takes a byte beside its weights.
    """
    return 8 * (total - sum(count for count, _ in channels.values()))


def budget_of_mean(channels: Mapping[str, tuple[int, int]], mean_bits: float) -> float:
    """Bits for weights at ``mean_bits`` on average; at least what the smallest width takes in whole bytes."""
    weights = sum(count * size for count, size in channels.values())
    return max(mean_bits * weights, _smallest(channels))


def given_bits(
    wanted: Mapping[str, int | Sequence[int]], channels: Mapping[str, tuple[int, int]]
) -> dict[str, np.ndarray]:
    """Widths that the caller chose, by layer; 8 where nothing is said. Raises QuantizationError for wrong ones."""
    unknown = sorted(set(wanted) - set(channels))
    if unknown:
        raise QuantizationError(f"no int8 convolution is called {unknown[0]!r}; there are {', '.join(channels)}")
    bits = {}
    for name, (count, _) in channels.items():
        widths = np.asarray(wanted.get(name, WIDTHS[-1])).reshape(-1)
        if len(widths) not in (1, count) or not np.isin(widths, WIDTHS).all():
            raise QuantizationError(
                f"layer {name!r}: expected a width of {', '.join(map(str, WIDTHS))} bits, or one for each of its "
                f"{count} output channels"
            )
        bits[name] = np.broadcast_to(widths, count).astype(np.uint8)
    return bits


def _smallest(channels: Mapping[str, tuple[int, int]]) -> int:
    return sum(int(row_bits(size)[0]) * count for count, size in channels.values())


def allocate_bits(
    damage: Mapping[str, np.ndarray], channels: Mapping[str, tuple[int, int]], budget: float
) -> dict[str, np.ndarray]:
    """Widths u8[K] by layer whose weights take at most ``budget`` bits in storage.

    ``damage``: f64[K, len(WIDTHS)] by layer; ``channels``: as in `budget_of_bytes`.
    Raises QuantizationError for a budget that even the smallest width exceeds.
    """
    costs = {name: row_bits(size) for name, (_, size) in channels.items()}
    spent = _smallest(channels)
    if spent > budget:
        raise QuantizationError(
            f"{int(budget)} bits are too few for the weights: at {WIDTHS[0]} bits each they take {spent}"
        )
    bits = {name: np.full(count, WIDTHS[0], np.uint8) for name, (count, _) in channels.items()}
    steps = []
    for name, table in damage.items():
        for channel, losses in enumerate(table):
            corners = _hull(costs[name], losses)
            for i, (low, high) in enumerate(pairwise(corners)):
                cost = int(costs[name][high] - costs[name][low])
                steps.append((-(losses[low] - losses[high]) / cost, name, channel, i, cost, high))
    closed = set()
    for _, name, channel, _, cost, high in sorted(steps):
        if (name, channel) in closed:
            continue
        if spent + cost > budget:
            closed.add((name, channel))
            continue
        spent += cost
        bits[name][channel] = WIDTHS[high]
    return bits


def _hull(costs: np.ndarray, losses: np.ndarray) -> list[int]:
    """Indices of the corners of the lower convex hull of (cost, loss), from the cheapest on, losses falling."""
    corners = [0]
    while True:
        here = corners[-1]
        later = [i for i in range(here + 1, len(costs)) if losses[i] < losses[here] and costs[i] > costs[here]]
        if not later:
            return corners
        corners.append(max(later, key=lambda i: ((losses[here] - losses[i]) / (costs[i] - costs[here]), i)))
