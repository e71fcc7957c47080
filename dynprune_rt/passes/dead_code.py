"""Removal of nodes and constants that feed no output."""

from __future__ import annotations

from dynprune_rt.ir.graph import Graph, Node, Value


def remove_dead_code(graph: Graph) -> int:
    """Drop, in place, every node without a path to an output (masks are paths), and unused constants.

    Graph inputs stay, used or not: they are the program's signature. Returns the number of nodes removed.
    """
    needed: set[Value] = set(graph.outputs)
    needed.update(v.live for v in graph.outputs if v.live is not None)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(out in needed for out in node.outputs):
            needed.update(node.operands())
            kept.append(node)
    removed = len(graph.nodes) - len(kept)
    graph.nodes = kept[::-1]
    names = {value.name for value in needed}
    graph.constants = {name: array for name, array in graph.constants.items() if name in names}
    return removed
