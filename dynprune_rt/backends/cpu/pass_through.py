"""Residual channels that a convolution stores but does not compute."""

from __future__ import annotations

import math

from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.operators.convolution import UNBOUNDED


def passes_unchanged(residual: Value, shift: Value | None, outer: tuple[float, float]) -> bool:
    """True when ``clamp(residual, outer)`` is the residual itself, so that skipped channels cost nothing."""
    if shift is not None or residual.live is not None:
        return False
    low, high = outer
    return high == math.inf and (low == -math.inf or (low <= 0 and is_non_negative(residual)))


def is_non_negative(value: Value) -> bool:
    node = value.producer
    if node is None:
        return False
    if node.op == "conv2d":
        plain = all(v is None for v in node.inputs[3:])  # nothing comes after the inner clamp
        inner, outer = (float(node.attrs.get(name, UNBOUNDED)[0]) for name in ("inner", "outer"))
        return outer >= 0 or (plain and inner >= 0)
    if node.op == "clamp":
        return float(node.attrs["lo"]) >= 0
    if node.op in ("max_pool2d", "avg_pool2d", "index_select", "slice", "cast"):
        source = node.inputs[0]
        return source is not None and is_non_negative(source)
    if node.op == "cat":
        return all(v is not None and is_non_negative(v) for v in node.inputs)
    return node.op in ("relu", "abs", "square", "sigmoid", "hardsigmoid", "softplus", "exp")
