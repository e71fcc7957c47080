"""Channel activity: which channels each layer may skip, per image, written into the graph as masks.

See docs/internals.md, section 2. `analyse` only looks; `annotate` writes `Value.live`, `Node.computed`
and the notes, and adds the mask operators at the end of the node list (sort the graph afterwards).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.value_ranges import ValueFacts
from dynprune_rt.passes.activity_notes import describe_layers
from dynprune_rt.passes.channel_sets import TRUE, ChannelSets, Set
from dynprune_rt.passes.demand import Demand
from dynprune_rt.passes.gate_zeros import GateZeros
from dynprune_rt.passes.mask_writer import MaskWriter
from dynprune_rt.passes.plane_states import PlaneStates, UsedWeights
from dynprune_rt.passes.spatial_masks import spatial_masks


class Activity:
    """The result of the analysis of one graph, whose nodes must be in execution order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sets = ChannelSets()
        self.facts = ValueFacts(graph)
        self.gates = GateZeros(graph, self.sets, self.facts)
        weights = UsedWeights(graph)
        self.states = PlaneStates(graph, self.sets, self.gates, self.facts, weights)
        self.demand = Demand(graph, self.sets, self.states, weights)

    def gone(self, value: Value) -> Set:
        """Channels [C] of a map that are not stored: zero or needed by nobody."""
        return np.broadcast_to(self.demand.gone[value][:, 0, 0], (value.type.channels,))

    def unsummed(self, node: Node) -> Set:
        """Output channels [K] of a convolution whose sum is not computed."""
        return self.demand.unsummed[node]


def analyse(graph: Graph) -> Activity:
    """Find the zero and the unneeded channels of every value."""
    return Activity(graph)


def annotate(graph: Graph, report: dict[str, Any]) -> None:
    """Write masks and notes into the graph, in place of any that were there.

    Fills report["skips"], report["layers"] and report["spatial_masks"].
    """
    clear(graph)
    activity = analyse(graph)
    layers = describe_layers(activity)
    report["layers"] = [layer.as_dict() for layer in layers if layer.is_convolution]
    report["skips"] = {
        "outputs": sum(bool(layer.out_gates) for layer in layers if layer.is_convolution),
        "inputs": sum(bool(layer.in_gates) for layer in layers if layer.is_convolution),
        "convs": sum(layer.is_convolution for layer in layers),
    }
    report["spatial_masks"] = spatial_masks(activity)

    writer = MaskWriter(graph, activity.sets)
    for node in list(graph.nodes):
        for value in node.outputs:
            if activity.demand.is_masked(value):
                value.live = writer.mask(activity.sets.complement(activity.gone(value)))
        if node.op == "conv2d":
            _set_computed(activity, writer, node)


def _set_computed(activity: Activity, writer: MaskWriter, node: Node) -> None:
    """Where fewer channels are summed than stored, say which."""
    unsummed, gone = activity.unsummed(node), activity.gone(node.output)
    if np.array_equal(unsummed, gone) or not (unsummed > TRUE).any():
        return
    node.computed = writer.mask(activity.sets.complement(unsummed))


def clear(graph: Graph) -> None:
    """Remove all masks and notes."""
    for node in graph.nodes:
        node.computed = None
        node.note = ""
        for value in node.outputs:
            value.live = None
