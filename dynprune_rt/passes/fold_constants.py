"""Evaluation of nodes whose operands are all constants."""

from __future__ import annotations

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.interpreter import evaluate

#: A fold that would store more elements than this and than it reads is left to run time.
MAX_GROWTH = 1 << 20


def fold_constants(graph: Graph) -> int:
    """Replace, in place, every node on constants alone by its result. Returns the number of nodes folded."""
    replaced: dict[Value, Value] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        node.inputs = [replaced.get(v, v) if v is not None else None for v in node.inputs]
        if not _foldable(graph, node):
            kept.append(node)
            continue
        results = evaluate(node, [None if v is None else graph.constant(v) for v in node.inputs])
        for value, array in zip(node.outputs, results, strict=True):
            replaced[value] = graph.add_constant(value.name, array)
    folded = len(graph.nodes) - len(kept)
    graph.nodes = kept
    graph.outputs = [replaced.get(v, v) for v in graph.outputs]
    for node in kept:
        node.computed = replaced.get(node.computed, node.computed) if node.computed is not None else None
        for out in node.outputs:
            out.live = replaced.get(out.live, out.live) if out.live is not None else None
    return folded


def _foldable(graph: Graph, node: Node) -> bool:
    present = [v for v in node.inputs if v is not None]
    if any(v.type.batched for v in node.outputs) or not all(graph.is_constant(v) for v in present):
        return False
    read = sum(v.type.elements for v in present)
    return sum(v.type.elements for v in node.outputs) <= max(read, MAX_GROWTH)
