"""Bounds of values, and which values may hold exact zeros by construction.

`may_be_zero` separates gates from scales: a comparison, a relu or a scatter of zeros produces exact
zeros, a sigmoid or a linear layer does not (a squeeze-excite is no gate). Finite arithmetic is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from dynprune_rt.ir.graph import Graph, Node, Value

INFINITY = math.inf


class Range(NamedTuple):
    """lo <= every element <= hi; ``integral``: every element is a whole number."""

    lo: float = -INFINITY
    hi: float = INFINITY
    integral: bool = False

    @property
    def binary(self) -> bool:
        """Every element is 0 or 1."""
        return self.integral and self.lo >= 0 and self.hi <= 1

    @property
    def nonnegative(self) -> bool:
        return self.lo >= 0


ANY = Range()
BINARY = Range(0.0, 1.0, True)
UNIT = Range(0.0, 1.0)
NONNEGATIVE = Range(0.0)


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _hull(ranges: Iterable[Range]) -> Range:
    ranges = list(ranges)
    return Range(min(r.lo for r in ranges), max(r.hi for r in ranges), all(r.integral for r in ranges))


def _corners(a: Range, b: Range) -> list[float]:
    return [_product(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]


def _monotone(function: Callable[[float], float]) -> Callable[[Range], Range]:
    def bound(v: float) -> float:
        return v if math.isinf(v) else float(function(v))

    return lambda x: Range(bound(x.lo), bound(x.hi), True)


#: Operators whose result consists of elements of the first operand.
_MOVES = frozenset({"reshape", "expand", "permute", "slice", "repeat", "index_select", "gather", "max_pool2d",
                    "adaptive_max_pool2d"})  # fmt: skip

_UNARY: dict[str, Callable[[Range], Range]] = {
    "relu": lambda x: Range(max(x.lo, 0.0), max(x.hi, 0.0), x.integral),
    "neg": lambda x: Range(-x.hi, -x.lo, x.integral),
    "abs": lambda x: x if x.nonnegative else Range(0.0, max(-x.lo, x.hi), x.integral),
    "square": lambda x: Range(0.0, INFINITY, x.integral),
    "sqrt": lambda x: NONNEGATIVE,
    "exp": lambda x: NONNEGATIVE,
    "sigmoid": lambda x: UNIT,
    "hardsigmoid": lambda x: UNIT,
    "softmax": lambda x: UNIT,
    "tanh": lambda x: Range(-1.0, 1.0),
    "sign": lambda x: Range(-1.0 if x.lo < 0 else 0.0, 1.0 if x.hi > 0 else 0.0, True),
    "round": _monotone(round),
    "floor": _monotone(math.floor),
    "ceil": _monotone(math.ceil),
    "trunc": _monotone(math.trunc),
}


def _node_range(node: Node, operands: list[Range]) -> Range:
    """The range of the first output."""
    if node.output.type.dtype == "bool" or node.op == "one_hot":
        return BINARY
    if node.op in _UNARY:
        return _UNARY[node.op](operands[0])
    if node.op in _MOVES:
        return operands[0]
    match node.op:
        case "linear" | "conv2d":
            return Range(*_last_clamp(node))
        case "cast":
            x = operands[0]
            return _monotone(math.trunc)(x) if node.output.type.dtype == "i64" and not x.integral else x
        case "clamp":
            x, lo, hi = operands[0], node.attrs["lo"], node.attrs["hi"]
            whole = x.integral and all(math.isinf(b) or b == int(b) for b in (lo, hi))
            return Range(min(max(x.lo, lo), hi), min(max(x.hi, lo), hi), whole)
        case "add" | "sub":
            a, b = operands
            lo, hi = (a.lo + b.lo, a.hi + b.hi) if node.op == "add" else (a.lo - b.hi, a.hi - b.lo)
            return Range(lo, hi, a.integral and b.integral)
        case "mul":
            corners = _corners(*operands)
            return Range(min(corners), max(corners), all(r.integral for r in operands))
        case "maximum":
            a, b = operands
            return Range(max(a.lo, b.lo), max(a.hi, b.hi), a.integral and b.integral)
        case "minimum":
            a, b = operands
            return Range(min(a.lo, b.lo), min(a.hi, b.hi), a.integral and b.integral)
        case "where":
            return _hull(operands[1:])
        case "cat":
            return _hull(operands)
        case "scatter":
            return _hull([operands[0], operands[2]])
        case "pad":
            value = float(node.attrs["value"])
            return _hull([operands[0], Range(value, value, value == np.floor(value))])
        case "topk" | "sort" | "kthvalue":
            return operands[0]
        case "spatial_reduce" | "reduce":
            x, kind = operands[0], node.attrs["kind"]
            if kind in ("max", "min"):
                return x
            if kind == "mean":
                return Range(x.lo, x.hi)
            return NONNEGATIVE if x.nonnegative or kind not in ("sum", "prod") else ANY
        case "interpolate" if node.attrs["mode"] == "nearest":
            return operands[0]
        case "adaptive_avg_pool2d" | "interpolate":
            return Range(operands[0].lo, operands[0].hi)
        case "avg_pool2d":
            return NONNEGATIVE if operands[0].nonnegative else ANY
        case "argmax" | "argmin":
            return Range(0.0, INFINITY, True)
    return ANY


#: Operators that produce exact zeros from operands without any.
_ZERO_MAKERS = frozenset({"relu", "hardsigmoid", "hardswish", "round", "floor", "ceil", "trunc", "sign", "one_hot",
                          "remainder", "floor_divide"})  # fmt: skip

#: Operators whose zeros are those of the first operand.
_ZERO_KEEPERS = _MOVES | {"neg", "abs", "sqrt", "square", "leaky_relu", "elu", "gelu", "silu", "mish", "tanh", "cast",
                          "pow_scalar", "topk", "sort", "kthvalue", "div"}  # fmt: skip


def _last_clamp(node: Node) -> tuple[float, float]:
    """Bounds that a linear layer or a convolution puts on its result."""
    if node.op == "linear" or not any(v is not None for v in node.inputs[3:]):
        low, high = node.attrs["inner"]
        outer = node.attrs.get("outer", (-INFINITY, INFINITY))
        return min(max(low, outer[0]), outer[1]), min(max(high, outer[0]), outer[1])
    low, high = node.attrs["outer"]
    return low, high


def _may_be_zero(node: Node, operands: list[bool], ranges: list[Range]) -> bool:
    if node.output.type.dtype != "f32" or node.op in _ZERO_MAKERS:
        return True
    if node.op in _ZERO_KEEPERS:
        return operands[0]
    match node.op:
        case "linear" | "conv2d":
            return 0 in _last_clamp(node)
        case "clamp":
            lo, hi = node.attrs["lo"], node.attrs["hi"]
            return lo == 0 or hi == 0 or (lo < 0 < hi and operands[0])
        case "where":
            return operands[1] or operands[2]
        case "scatter":
            return operands[0] or operands[2]
        case "maximum" | "minimum" | "mul":
            return any(operands)
        case "cat":
            return any(operands)
        case "pad":
            return operands[0] or node.attrs["value"] == 0
        case "add":
            return all(operands) or hard_part(node) is not None
        case "sub":
            return all(operands) or all(r.integral for r in ranges) or hard_part(node) is not None or _is_mirror(node)
        case "interpolate":
            return operands[0] and node.attrs["mode"] == "nearest"
        case "reduce":
            return operands[0] and node.attrs["kind"] in ("max", "min", "prod")
    return False


def _is_mirror(node: Node) -> bool:
    """1 - m with a straight-through m."""
    m = node.inputs[1]
    return m is not None and m.producer is not None and hard_part(m.producer) is not None


def hard_part(node: Node) -> Value | None:
    """h of a straight-through sum (h - s) + s, s + (h - s) or (h + s) - s; None if the node is none.

    The sum is exactly zero where h is, for every finite s.
    """

    def inner(value: Value | None, op: str) -> tuple[Value | None, Value | None]:
        producer = None if value is None else value.producer
        return (producer.inputs[0], producer.inputs[1]) if producer is not None and producer.op == op else (None, None)

    if node.op == "add":
        for outer, s in (node.inputs, reversed(node.inputs)):
            h, subtracted = inner(outer, "sub")
            if h is not None and subtracted is s:
                return h
    if node.op == "sub":
        a, b = inner(node.inputs[0], "add")
        if a is not None and b is node.inputs[1]:
            return a
        if b is not None and a is node.inputs[1]:
            return b
    return None


class ValueFacts:
    """Ranges and possible zeros of every value of a graph. The nodes must be in execution order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._ranges: dict[Value, Range] = {}
        self._zeros: dict[Value, bool] = {}
        for node in graph.nodes:
            operands = [v for v in node.inputs if v is not None]
            ranges = [self.range(v) for v in operands]
            zeros = [self.may_be_zero(v) for v in operands]
            for position, value in enumerate(node.outputs):
                if position == 0:
                    self._ranges[value] = _node_range(node, ranges)
                    self._zeros[value] = _may_be_zero(node, zeros, ranges)
                elif node.op == "conv2d":  # pooled sums
                    self._ranges[value], self._zeros[value] = ANY, False
                else:  # indices
                    self._ranges[value], self._zeros[value] = Range(0.0, INFINITY, True), True

    def range(self, value: Value) -> Range:
        found = self._ranges.get(value)
        if found is None:
            found = ANY
            if self._graph.is_constant(value):
                array = self._graph.constant(value)
                if array.size and np.isfinite(array).all():
                    integral = bool((array == np.floor(array)).all()) if array.dtype.kind == "f" else True
                    found = Range(float(array.min()), float(array.max()), integral)
            self._ranges[value] = found
        return found

    def may_be_zero(self, value: Value) -> bool:
        """True where some operator of the value's history makes exact zeros that reach the value."""
        found = self._zeros.get(value)
        if found is None:
            found = self._graph.is_constant(value) and bool((self._graph.constant(value) == 0).any())
            self._zeros[value] = found
        return found
