"""The canonical forms that the frontend guarantees to the passes (docs/internals.md, section 1)."""

from __future__ import annotations

from dynprune_rt.ir.graph import Graph
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.simplify import simplify


def canonicalise(graph: Graph) -> None:
    """Bring a freshly translated graph to canonical form, in place."""
    simplify(graph)
    remove_dead_code(graph)
