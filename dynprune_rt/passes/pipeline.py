"""The passes between a frontend and the artifact, in order."""

from __future__ import annotations

from typing import Any

from dynprune_rt.ir.graph import Graph
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.channel_activity import annotate, clear
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.fold_batch_norm import fold_batch_norm
from dynprune_rt.passes.fold_constants import fold_constants
from dynprune_rt.passes.fuse_epilogues import fuse_epilogues
from dynprune_rt.passes.redundant_masks import drop_redundant_masks
from dynprune_rt.passes.schedule import schedule
from dynprune_rt.passes.simplify import simplify
from dynprune_rt.passes.static_pruning import prune_static_channels


def optimize(graph: Graph, report: dict[str, Any]) -> Graph:
    """Prepare a verified graph for execution; it is changed in place and returned.

    The function computed stays the same up to rounding. Masks that the graph may carry are replaced.
    ``report`` receives what `channel_activity.annotate` says, and under "static_pruning" how many channels
    went for good.

    The activity analysis runs on the fused graph, so that its masks describe exactly the nodes that
    will be executed.
    """
    clear(graph)
    fold_constants(graph)
    simplify(graph)
    remove_dead_code(graph)
    if drop_redundant_masks(graph):
        remove_dead_code(graph)
    fold_batch_norm(graph)
    report["static_pruning"] = prune_static_channels(graph)
    if any(report["static_pruning"].values()):
        remove_dead_code(graph)
        simplify(graph)
        remove_dead_code(graph)
        fold_batch_norm(graph)
    fuse_epilogues(graph)
    schedule(graph)
    remove_dead_code(graph)
    annotate(graph, report)
    schedule(graph)
    remove_dead_code(graph)
    verify(graph)
    return graph
