"""Copies of a graph, node by node, for graphs that measure something beside or instead of it."""

from __future__ import annotations

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Node, Value


class GraphCopy:
    """A growing copy: ``add`` a node after those it reads, or put another ``copies[value]`` in a value's place."""

    def __init__(self, graph: Graph) -> None:
        self._old = graph
        self.builder = Builder(fold=False)
        self.copies = {value: self.graph.add_input(value.name, value.type) for value in graph.inputs}

    @property
    def graph(self) -> Graph:
        return self.builder.graph

    def value(self, old: Value) -> Value:
        """The copy of a value whose node was added, or of a constant."""
        if old not in self.copies:
            self.copies[old] = self.graph.add_constant(old.name, self._old.constant(old))
        return self.copies[old]

    def optional(self, old: Value | None) -> Value | None:
        return None if old is None else self.value(old)

    def add(self, node: Node) -> None:
        inputs = [self.optional(v) for v in node.inputs]
        outputs = self.builder.append(node.op, inputs, node.attrs, name=node.output.name, origin=node.origin)
        new = outputs[0].producer
        assert new is not None
        new.name, new.computed = node.name, self.optional(node.computed)
        for old, copy in zip(node.outputs, outputs, strict=True):
            copy.live = self.optional(old.live)
            self.copies[old] = copy
