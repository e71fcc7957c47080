"""Removal of operators that change nothing, merging of chains, and common subexpression elimination.

Every rule gives the same numbers bit for bit, up to the sign of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import operator
from dynprune_rt.passes.rewrite import Rewriter, Rule, has_masks, made_by, operand, rewrite, substitute

#: Elementwise operators broadcast, so an expand of one operand is idle where the others give the full shape.
_BROADCASTING = frozenset(
    (
        *("add", "sub", "mul", "div", "maximum", "minimum", "pow", "remainder", "floor_divide", "where"),
        *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"),
    )
)

#: Constants up to this size are compared by content. Larger ones are weights, which exist once each.
_COMPARED_ELEMENTS = 1 << 14


def simplify(graph: Graph) -> int:
    """Apply the rules and merge equal nodes, in place, until nothing changes.

    Nodes that carry masks are left alone. Returns the number of nodes that were replaced; what that
    leaves without readers is removed by `remove_dead_code`.
    """
    total = 0
    while True:
        changes = rewrite(graph, _RULES) + merge_equal_nodes(graph)
        total += changes
        if not changes:
            return total


def merge_equal_nodes(graph: Graph) -> int:
    """Common subexpression elimination, in place: of nodes with equal operands and attributes the first stays."""
    replaced: dict[Value, Value] = {}
    seen: dict[Any, Node] = {}
    constants = _ConstantKeys(graph)
    kept: list[Node] = []
    for node in graph.nodes:
        node.inputs = [replaced.get(v, v) if v is not None else None for v in node.inputs]
        key = (node.op, tuple(constants.key(v) for v in node.inputs), tuple(sorted(node.attrs.items())))
        twin = node if has_masks(node) else seen.setdefault(key, node)
        if twin is node:
            kept.append(node)
        else:
            replaced.update(zip(node.outputs, twin.outputs, strict=True))
    graph.nodes = kept
    substitute(graph, replaced)
    return len(replaced)


class _ConstantKeys:
    """Identifies operands: small constants by content, other values by identity."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._keys: dict[Value, Any] = {}

    def key(self, value: Value | None) -> Any:
        if value is None or not self._graph.is_constant(value) or value.type.elements > _COMPARED_ELEMENTS:
            return value
        if value not in self._keys:
            array = self._graph.constant(value)
            self._keys[value] = (array.dtype.str, array.shape, array.tobytes())
        return self._keys[value]


# ---- rules ------------------------------------------------------------------------------------
# Each takes a node and returns the value that replaces its (only) result, or None.

_RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for op in ops:
            _RULES[op] = rule
        return rule

    return register


@_rule("cast")
def _cast(b: Rewriter, node: Node) -> Value | None:
    x = operand(node)
    if x.type == node.output.type:
        return x
    inner = made_by(x, "cast")
    # bool -> f32 -> bool and the like lose nothing on the way.
    if inner is None or operand(inner).type.dtype != "bool":
        return None
    if node.output.type.dtype == "bool":
        return operand(inner)
    return b.make("cast", operand(inner), dtype=node.attrs["dtype"])


@_rule("reshape")
def _reshape(b: Rewriter, node: Node) -> Value | None:
    x = operand(node)
    if x.type == node.output.type:
        return x
    inner = made_by(x, "reshape")
    if inner is None:
        return None
    source = operand(inner)
    if source.type == node.output.type:
        return source
    return b.make("reshape", source, shape=node.attrs["shape"])


@_rule("permute")
def _permute(b: Rewriter, node: Node) -> Value | None:
    x, dims = operand(node), node.attrs["dims"]
    if dims == tuple(range(len(dims))):
        return x
    inner = made_by(x, "permute")
    if inner is not None:
        combined = tuple(inner.attrs["dims"][d] for d in dims)
        source = operand(inner)
        if combined == tuple(range(len(dims))):
            return source
        return b.make("permute", source, dims=combined)
    wide = [d for d in dims if x.type.shape[d] != 1]
    if wide == sorted(wide):  # moves dimensions of size 1 only
        return b.make("reshape", x, shape=node.output.type.shape)
    return None


@_rule("expand", "repeat", "pad", "slice")
def _same_type(b: Rewriter, node: Node) -> Value | None:
    return operand(node) if operand(node).type == node.output.type else None


@_rule("cat")
def _cat(b: Rewriter, node: Node) -> Value | None:
    return operand(node) if len(node.inputs) == 1 else None


@_rule("index_select")
def _index_select(b: Rewriter, node: Node) -> Value | None:
    x, index, dim = operand(node), node.inputs[1], node.attrs["dim"]
    assert index is not None
    positions = b.graph.constant(index)
    if np.array_equal(positions, np.arange(x.type.shape[dim])):
        return x
    inner = made_by(x, "index_select")
    if inner is None or inner.attrs["dim"] != dim or inner.inputs[1] is None:
        return None
    composed = b.graph.constant(inner.inputs[1])[positions]
    return b.make("index_select", operand(inner), b.constant(index.name, composed), dim=dim)


@_rule("relu")
def _relu(b: Rewriter, node: Node) -> Value | None:
    return _merged_clamp(b, operand(node), 0.0, math.inf)


@_rule("clamp")
def _clamp(b: Rewriter, node: Node) -> Value | None:
    low, high = node.attrs["lo"], node.attrs["hi"]
    if (low, high) == (-math.inf, math.inf):
        return operand(node)
    if (low, high) == (0.0, math.inf):
        return b.make("relu", operand(node))
    return _merged_clamp(b, operand(node), low, high)


def _merged_clamp(b: Rewriter, x: Value, low: float, high: float) -> Value | None:
    """clamp(clamp(x, inner), low, high) as one clamp."""
    inner = x.producer
    if inner is None or inner.op not in ("relu", "clamp") or has_masks(inner):
        return None
    inner_low, inner_high = (0.0, math.inf) if inner.op == "relu" else (inner.attrs["lo"], inner.attrs["hi"])
    new_low, new_high = (min(max(bound, low), high) for bound in (inner_low, inner_high))
    if (new_low, new_high) == (inner_low, inner_high):
        return x
    if (new_low, new_high) == (0.0, math.inf):
        return b.make("relu", operand(inner))
    return b.make("clamp", operand(inner), lo=new_low, hi=new_high)


@_rule("affine")
def _affine(b: Rewriter, node: Node) -> Value | None:
    _, scale, shift = node.inputs
    identity = _is_constant(b.graph, scale, 1.0) and _is_constant(b.graph, shift, 0.0)
    return operand(node) if identity else None


@_rule("logical_not")
def _logical_not(b: Rewriter, node: Node) -> Value | None:
    inner = made_by(operand(node), "logical_not")
    return operand(inner) if inner is not None else None


@_rule("mul")
def _mul(b: Rewriter, node: Node) -> Value | None:
    return _neutral(b.graph, node, 1.0, both_sides=True)


@_rule("div")
def _div(b: Rewriter, node: Node) -> Value | None:
    return _neutral(b.graph, node, 1.0, both_sides=False)


@_rule("add")
def _add(b: Rewriter, node: Node) -> Value | None:
    return _neutral(b.graph, node, 0.0, both_sides=True)


@_rule("sub")
def _sub(b: Rewriter, node: Node) -> Value | None:
    return _neutral(b.graph, node, 0.0, both_sides=False)


def _neutral(graph: Graph, node: Node, neutral: float, both_sides: bool) -> Value | None:
    left, right = node.inputs
    if left is not None and left.type == node.output.type and _is_constant(graph, right, neutral):
        return left
    if both_sides and right is not None and right.type == node.output.type and _is_constant(graph, left, neutral):
        return right
    return None


@_rule("where")
def _where(b: Rewriter, node: Node) -> Value | None:
    condition, a, otherwise = node.inputs
    for chosen, value in ((True, a), (False, otherwise)):
        if value is not None and value.type == node.output.type and _is_constant(b.graph, condition, chosen):
            return value
    return a if a is otherwise and a is not None and a.type == node.output.type else None


@_rule("conv2d")
def _conv2d(b: Rewriter, node: Node) -> Value | None:
    """Zero padding before a convolution is the convolution's own ("same" padding, asymmetric strides)."""
    pad = made_by(operand(node), "pad")
    if pad is None or pad.attrs["value"] != 0 or any(pad.attrs["low"][:2]) or any(pad.attrs["high"][:2]):
        return None
    (y0, x0), (y1, x1) = pad.attrs["low"][2:], pad.attrs["high"][2:]
    top, left, bottom, right = node.attrs["padding"]
    padding = (top + y0, left + x0, bottom + y1, right + x1)
    return b.append("conv2d", [operand(pad), *node.inputs[1:]], {**node.attrs, "padding": padding})[0]


@_rule("interpolate")
def _interpolate(b: Rewriter, node: Node) -> Value | None:
    return operand(node) if operand(node).type == node.output.type and node.attrs["scale"] is None else None


def _is_constant(graph: Graph, value: Value | None, number: float) -> bool:
    return value is not None and graph.is_constant(value) and bool((graph.constant(value) == number).all())


def _without_idle_expand(b: Rewriter, node: Node) -> Value | None:
    """op(expand(m), x) as op(m, x), where x alone has the full shape: masks stay vectors."""
    for position, value in enumerate(node.inputs):
        expand = made_by(value, "expand")
        if expand is None:
            continue
        inputs = list(node.inputs)
        inputs[position] = operand(expand)
        types = [v.type if v is not None else None for v in inputs]
        if operator(node.op).infer_types(types, node.attrs) == (node.output.type,):
            return b.append(node.op, inputs, node.attrs)[0]
    return None


def _broadcasting(rule: Rule | None) -> Rule:
    def apply(b: Rewriter, node: Node) -> Value | None:
        new = rule(b, node) if rule is not None else None
        return new if new is not None else _without_idle_expand(b, node)

    return apply


for _op in _BROADCASTING:
    _RULES[_op] = _broadcasting(_RULES.get(_op))
