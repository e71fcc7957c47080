"""What static networks reach at the cost of a gated one: the fair comparison, from rows of finished runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

#: Methods whose masks differ per image.
DYNAMIC = ("is", "manidp", "fbs")

#: Rows of `cifar10_methods` by name.
Rows = Mapping[str, Mapping[str, Any]]


def cost(row: Mapping[str, Any], by: str) -> float | None:
    """``by``: "macs" (share left) or "latency" (ms); None where it was not measured."""
    if by == "macs":
        return float(row["activity"]["macs_left"])
    return float(row["latency_ms"]["pruned"]) if "latency_ms" in row else None


def static_front(rows: Rows, arch: str, by: str) -> list[tuple[float, float]]:
    """(cost, accuracy) of the static networks of ``arch`` and of the dense one, without those that another beats."""
    found: list[tuple[float, float]] = []
    for row in rows.values():
        if row["arch"] != arch:
            continue
        x = cost(row, by)
        if x is not None and row["method"] not in DYNAMIC:
            found.append((x, row["test_accuracy"]))
        if x is not None and "dense_accuracy" in row:
            found.append((1.0 if by == "macs" else row["latency_ms"]["dense"], row["dense_accuracy"]))
    front: list[tuple[float, float]] = []
    for x, accuracy in sorted(set(found), key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((x, accuracy))
    return front


def static_accuracy(rows: Rows, name: str, by: str) -> float | None:
    """What static networks reach at the cost of the gated network ``name``; None for a static one or out of range."""
    row = rows[name]
    x = cost(row, by)
    if x is None or row["method"] not in DYNAMIC:
        return None
    front = static_front(rows, row["arch"], by)
    for (x0, a0), (x1, a1) in itertools.pairwise(front):
        if x0 <= x <= x1:
            return a0 + (a1 - a0) * (x - x0) / (x1 - x0)
    return None
