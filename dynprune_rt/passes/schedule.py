"""Execution order."""

from __future__ import annotations

from dynprune_rt.ir.graph import Graph


def schedule(graph: Graph) -> None:
    """Order the nodes so that every operand, masks included, is there first.

    A gate that the model computes after the convolution it masks moves in front of it; otherwise the
    model's order stays. The analysis grants no mask that would make this impossible.
    """
    graph.sort()
