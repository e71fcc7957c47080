"""Local rewriting: rules that replace one node's result by another value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Node, Value


class Rewriter(Builder):
    """A builder whose new nodes take name and origin from the node that is being replaced."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.node: Node | None = None

    def append(
        self,
        op: str,
        inputs: tuple[Value | None, ...] | list[Value | None],
        attrs: Mapping[str, Any],
        *,
        name: str = "",
        origin: str = "",
    ) -> tuple[Value, ...]:
        if self.node is not None:
            name, origin = name or self.node.name, origin or self.node.origin
        values = super().append(op, inputs, attrs, name=name, origin=origin)
        if self.node is not None and values[0].producer is not None:
            # A layer keeps its name; what accompanies it gets a name of its own.
            values[0].producer.name = self.node.name if op in ("conv2d", "linear") else values[0].name
        return values

    def make(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Append an operator and return its first result."""
        return self.append(op, inputs, attrs)[0]

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        """``x`` with this shape; ``x`` itself where it has it."""
        return x if x.type.shape == shape else self.make("reshape", x, shape=shape)


#: Returns the value that stands for the node's only result from now on, or None to leave the node.
Rule = Callable[[Rewriter, Node], "Value | None"]


def rewrite(graph: Graph, rules: Mapping[str, Rule]) -> int:
    """Apply, in place and in one walk, the rule for each node's operator; returns how often one applied.

    Nodes that carry or read masks are left alone. Replaced nodes are dropped.
    """
    replaced: dict[Value, Value] = {}
    rewriter = Rewriter(graph)
    old_nodes, graph.nodes = graph.nodes, []
    for node in old_nodes:
        node.inputs = [replaced.get(v, v) if v is not None else None for v in node.inputs]
        rule = None if has_masks(node) or len(node.outputs) > 1 else rules.get(node.op)
        rewriter.node = node
        new = rule(rewriter, node) if rule is not None else None
        if new is None or new is node.output:
            graph.nodes.append(node)
        else:
            replaced[node.output] = new
    substitute(graph, replaced)
    return len(replaced)


def substitute(graph: Graph, replaced: Mapping[Value, Value]) -> None:
    """Let masks and graph outputs follow replacements (operands are followed during the walk)."""
    graph.outputs = [replaced.get(v, v) for v in graph.outputs]
    for node in graph.nodes:
        if node.computed is not None:
            node.computed = replaced.get(node.computed, node.computed)
        for out in node.outputs:
            if out.live is not None:
                out.live = replaced.get(out.live, out.live)


def has_masks(node: Node) -> bool:
    """True for a node that obeys a mask, or whose operands do."""
    return node.computed is not None or any(v is not None and v.live is not None for v in [*node.inputs, *node.outputs])


def made_by(value: Value | None, op: str) -> Node | None:
    """The producer of a value if it is an ``op`` without masks."""
    producer = value.producer if value is not None else None
    return producer if producer is not None and producer.op == op and not has_masks(producer) else None


def operand(node: Node, position: int = 0) -> Value:
    """A mandatory operand."""
    value = node.inputs[position]
    assert value is not None
    return value
