"""Removal of operators that change nothing, merging of chains, and common subexpression elimination.

Every rule gives the same numbers bit for bit, up to the sign of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import Channels, operator

#: Elementwise operators broadcast, so an expand of one operand is idle where the others give the full shape.
_BROADCASTING = frozenset(
    (
        *("add", "sub", "mul", "div", "maximum", "minimum", "pow", "remainder", "floor_divide", "where"),
        *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"),
    )
)


def simplify(graph: Graph) -> int:
    """Apply the rules and merge equal nodes, in place, until nothing changes.

    Nodes that carry masks are left alone. Returns the number of nodes that were replaced; what that
    leaves without readers is removed by `remove_dead_code`.
    """
    total = 0
    while True:
        changes = _one_round(graph)
        total += changes
        if not changes:
            return total


def _one_round(graph: Graph) -> int:
    replaced: dict[Value, Value] = {}
    seen: dict[Any, Node] = {}
    constants = _ConstantKeys(graph)
    # Rules append their new nodes to a builder of their own, whose graph shares names and constants.
    old_nodes, graph.nodes = graph.nodes, []
    builder = Builder(graph)
    for node in old_nodes:
        node.inputs = [replaced.get(v, v) if v is not None else None for v in node.inputs]
        if _has_masks(node):
            graph.nodes.append(node)
            continue
        rule = _RULES.get(node.op)
        new = rule(builder, node) if rule is not None else None
        if new is None and node.op in _BROADCASTING:
            new = _without_idle_expand(builder, node)
        if new is not None:
            if new.producer is not None and new.producer not in (None, node) and not new.producer.origin:
                new.producer.origin = node.origin
            replaced[node.output] = new
            continue
        key = (node.op, tuple(constants.key(v) for v in node.inputs), tuple(sorted(node.attrs.items())))
        twin = seen.setdefault(key, node)
        if twin is node:
            graph.nodes.append(node)
        else:
            replaced.update(zip(node.outputs, twin.outputs, strict=True))
    graph.outputs = [replaced.get(v, v) for v in graph.outputs]
    for node in graph.nodes:
        if node.computed is not None:
            node.computed = replaced.get(node.computed, node.computed)
        for out in node.outputs:
            if out.live is not None:
                out.live = replaced.get(out.live, out.live)
    return len(replaced)


def _has_masks(node: Node) -> bool:
    return node.computed is not None or any(v is not None and v.live is not None for v in [*node.inputs, *node.outputs])


class _ConstantKeys:
    """Identifies operands: constants by content, other values by identity."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._keys: dict[Value, Any] = {}

    def key(self, value: Value | None) -> Any:
        if value is None or not self._graph.is_constant(value):
            return value
        if value not in self._keys:
            array = self._graph.constant(value)
            self._keys[value] = (array.dtype.str, array.shape, array.tobytes())
        return self._keys[value]


# ---- rules ------------------------------------------------------------------------------------
# Each takes a node and returns the value that replaces its (only) result, or None.

Rule = Callable[[Builder, Node], "Value | None"]
_RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for op in ops:
            _RULES[op] = rule
        return rule

    return register


def _x(node: Node) -> Value:
    x = node.inputs[0]
    assert x is not None
    return x


def _made_by(value: Value | None, op: str) -> Node | None:
    """The producer of a value if it is an ``op`` without masks."""
    producer = value.producer if value is not None else None
    return producer if producer is not None and producer.op == op and not _has_masks(producer) else None


@_rule("cast")
def _cast(b: Builder, node: Node) -> Value | None:
    x = _x(node)
    if x.type == node.output.type:
        return x
    inner = _made_by(x, "cast")
    # bool -> f32 -> bool and the like lose nothing on the way.
    if inner is not None and _x(inner).type.dtype == "bool":
        return _x(inner) if node.output.type.dtype == "bool" else b.op("cast", _x(inner), dtype=node.attrs["dtype"])
    return None


@_rule("reshape")
def _reshape(b: Builder, node: Node) -> Value | None:
    x = _x(node)
    if x.type == node.output.type:
        return x
    inner = _made_by(x, "reshape")
    if inner is None:
        return None
    source = _x(inner)
    if source.type == node.output.type:
        return source
    return b.op("reshape", source, shape=node.attrs["shape"])  # type: ignore[no-any-return]


@_rule("permute")
def _permute(b: Builder, node: Node) -> Value | None:
    x, dims = _x(node), node.attrs["dims"]
    if dims == tuple(range(len(dims))):
        return x
    inner = _made_by(x, "permute")
    if inner is not None:
        combined = tuple(inner.attrs["dims"][d] for d in dims)
        source = _x(inner)
        if combined == tuple(range(len(dims))):
            return source
        return b.op("permute", source, dims=combined)  # type: ignore[no-any-return]
    wide = [d for d in dims if x.type.shape[d] != 1]
    if wide == sorted(wide):  # moves dimensions of size 1 only
        return b.op("reshape", x, shape=node.output.type.shape)  # type: ignore[no-any-return]
    return None


@_rule("expand", "repeat", "pad", "slice")
def _same_type(b: Builder, node: Node) -> Value | None:
    return _x(node) if _x(node).type == node.output.type else None


@_rule("cat")
def _cat(b: Builder, node: Node) -> Value | None:
    return _x(node) if len(node.inputs) == 1 else None


@_rule("index_select")
def _index_select(b: Builder, node: Node) -> Value | None:
    x, index, dim = _x(node), node.inputs[1], node.attrs["dim"]
    assert index is not None
    positions = b.graph.constant(index)
    if np.array_equal(positions, np.arange(x.type.shape[dim])):
        return x
    inner = _made_by(x, "index_select")
    if inner is None or inner.attrs["dim"] != dim or inner.inputs[1] is None:
        return None
    composed = b.graph.constant(inner.inputs[1])[positions]
    return b.op("index_select", _x(inner), b.constant(index.name, composed), dim=dim)  # type: ignore[no-any-return]


@_rule("relu")
def _relu(b: Builder, node: Node) -> Value | None:
    return _merged_clamp(b, _x(node), 0.0, math.inf)


@_rule("clamp")
def _clamp(b: Builder, node: Node) -> Value | None:
    low, high = node.attrs["lo"], node.attrs["hi"]
    if (low, high) == (-math.inf, math.inf):
        return _x(node)
    if (low, high) == (0.0, math.inf):
        return b.op("relu", _x(node))  # type: ignore[no-any-return]
    return _merged_clamp(b, _x(node), low, high)


def _merged_clamp(b: Builder, x: Value, low: float, high: float) -> Value | None:
    """clamp(clamp(x, inner), low, high) as one clamp."""
    inner = x.producer
    if inner is None or inner.op not in ("relu", "clamp") or _has_masks(inner):
        return None
    inner_low, inner_high = (0.0, math.inf) if inner.op == "relu" else (inner.attrs["lo"], inner.attrs["hi"])
    new_low, new_high = (min(max(bound, low), high) for bound in (inner_low, inner_high))
    if (new_low, new_high) == (inner_low, inner_high):
        return x
    if (new_low, new_high) == (0.0, math.inf):
        return b.op("relu", _x(inner))  # type: ignore[no-any-return]
    return b.op("clamp", _x(inner), lo=new_low, hi=new_high)  # type: ignore[no-any-return]


@_rule("affine")
def _affine(b: Builder, node: Node) -> Value | None:
    _, scale, shift = node.inputs
    identity = _is_constant(b.graph, scale, 1.0) and _is_constant(b.graph, shift, 0.0)
    return _x(node) if identity else None


@_rule("logical_not")
def _logical_not(b: Builder, node: Node) -> Value | None:
    inner = _made_by(_x(node), "logical_not")
    return _x(inner) if inner is not None else None


@_rule("mul")
def _mul(b: Builder, node: Node) -> Value | None:
    return _neutral(b.graph, node, 1.0, both_sides=True)


@_rule("div")
def _div(b: Builder, node: Node) -> Value | None:
    return _neutral(b.graph, node, 1.0, both_sides=False)


@_rule("add")
def _add(b: Builder, node: Node) -> Value | None:
    return _neutral(b.graph, node, 0.0, both_sides=True)


@_rule("sub")
def _sub(b: Builder, node: Node) -> Value | None:
    return _neutral(b.graph, node, 0.0, both_sides=False)


def _neutral(graph: Graph, node: Node, neutral: float, both_sides: bool) -> Value | None:
    left, right = node.inputs
    if left is not None and left.type == node.output.type and _is_constant(graph, right, neutral):
        return left
    if both_sides and right is not None and right.type == node.output.type and _is_constant(graph, left, neutral):
        return right
    return None


@_rule("where")
def _where(b: Builder, node: Node) -> Value | None:
    condition, a, otherwise = node.inputs
    for chosen, value in ((True, a), (False, otherwise)):
        if value is not None and value.type == node.output.type and _is_constant(b.graph, condition, chosen):
            return value
    return a if a is otherwise and a is not None and a.type == node.output.type else None


@_rule("interpolate")
def _interpolate(b: Builder, node: Node) -> Value | None:
    return _x(node) if _x(node).type == node.output.type and node.attrs["scale"] is None else None


def _is_constant(graph: Graph, value: Value | None, number: float) -> bool:
    return value is not None and graph.is_constant(value) and bool((graph.constant(value) == number).all())


def _without_idle_expand(b: Builder, node: Node) -> Value | None:
    """op(expand(m), x) as op(m, x), where x alone has the full shape: masks stay vectors."""
    for position, value in enumerate(node.inputs):
        expand = _made_by(value, "expand")
        if expand is None:
            continue
        inputs = list(node.inputs)
        inputs[position] = _x(expand)
        row = operator(node.op)
        assert row.channels is Channels.POINTWISE
        if row.infer_types([v.type if v is not None else None for v in inputs], node.attrs) == (node.output.type,):
            return b.op(node.op, *inputs, attrs=node.attrs, name=node.name, origin=node.origin)  # type: ignore
    return None
