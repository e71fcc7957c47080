"""The canonical forms that the frontend guarantees to the passes (docs/internals.md, section 1)."""

from __future__ import annotations

from dynprune_rt.frontend.canonical_channels import CHANNEL_RULES
from dynprune_rt.frontend.canonical_reductions import REDUCTION_RULES
from dynprune_rt.frontend.canonical_views import VIEW_RULES
from dynprune_rt.ir.graph import Graph
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.fold_constants import fold_constants
from dynprune_rt.passes.rewrite import rewrite
from dynprune_rt.passes.simplify import simplify


def canonicalise(graph: Graph) -> None:
    """Bring a freshly translated graph to canonical form, in place."""
    while True:
        changes = fold_constants(graph) + simplify(graph)
        changes += sum(rewrite(graph, rules) for rules in (REDUCTION_RULES, VIEW_RULES, CHANNEL_RULES))
        remove_dead_code(graph)
        if not changes:
            return
