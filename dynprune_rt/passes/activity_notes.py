"""What each layer can skip and by which gate, or why not, in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.operators import Channels, operator
from dynprune_rt.passes import element_moves
from dynprune_rt.passes.channel_sets import TRUE, Set

if TYPE_CHECKING:
    from dynprune_rt.passes.channel_activity import Activity

#: Gates named in one note.
MAX_NAMES = 4


@dataclass
class LayerNote:
    """One conv2d or linear node."""

    node: Node
    out_gates: list[str] = field(default_factory=list)
    in_gates: list[str] = field(default_factory=list)
    why_outputs: str = ""
    why_inputs: str = ""

    @property
    def is_convolution(self) -> bool:
        return self.node.op == "conv2d"

    @property
    def why(self) -> str:
        return "; ".join(text for text in (self.why_outputs, self.why_inputs) if text)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.node.name,
            "out_gate": _listed(self.out_gates) or None,
            "in_gate": _listed(self.in_gates) or None,
            "why": self.why,
        }

    def __str__(self) -> str:
        outputs = f"outputs skipped by {_listed(self.out_gates)}" if self.out_gates else self.why_outputs
        inputs = f"inputs skipped by {_listed(self.in_gates)}" if self.in_gates else self.why_inputs
        return f"{outputs}; {inputs}"


def describe_layers(activity: Activity) -> list[LayerNote]:
    """A note for every conv2d and linear node, also written to `Node.note`."""
    notes = []
    for node in activity.graph.nodes:
        if node.op not in ("conv2d", "linear") or not node.output.type.batched:
            continue
        note = LayerNote(node)
        if node.op == "conv2d":
            note.out_gates = _gate_names(activity, activity.unsummed(node))
        if not note.out_gates:
            note.why_outputs = _why_outputs(activity, node)
        x = node.inputs[0]
        assert x is not None
        if node.op == "linear":
            note.why_inputs = "inputs read: a linear layer is not masked"
        elif activity.demand.is_masked(x):
            note.in_gates = _gate_names(activity, activity.gone(x))
        if not note.in_gates and not note.why_inputs:
            note.why_inputs = _why_inputs(activity, x)
        node.note = str(note)
        notes.append(note)
    return notes


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _gate_names(activity: Activity, gone: Set) -> list[str]:
    """The nodes that make the gates of a set; empty if it does not vary with the image."""
    return _source_names(activity, activity.sets.source_numbers(gone))


def _source_names(activity: Activity, numbers: set[int]) -> list[str]:
    sources = [activity.sets.sources[number] for number in sorted(numbers)]
    return sorted({v.producer.name if v.producer is not None else v.name for v in sources})


def _why_outputs(activity: Activity, node: Node) -> str:
    """Why no output of a layer can be left out."""
    if node.op == "linear":
        return "outputs computed"
    outputs = set(activity.graph.outputs)
    pooled = node.outputs[1:]
    value = node.output
    # Follow the map through the operators that keep channels apart, until its demand splits or ends.
    while True:
        uses = activity.demand.released.get(value, [])
        if value in outputs:
            return f"outputs not skippable: {value.name} is an output of the model"
        if len(uses) != 1 or pooled or activity.demand.reactive.get(value):
            return _split_demand(activity, value, pooled, uses)
        reader = uses[0][0]
        if reader.op == "conv2d" and reader.inputs[0] is not value:  # passes on as the residual
            return "outputs not skippable: no gate between this map and the residual sum"
        if reader.op in ("conv2d", "linear"):
            return f"outputs not skippable: no gate before {reader.name} reads them"
        if reader.op not in element_moves.STRUCTURAL and operator(reader.op).channels is Channels.MIXING:
            return f"outputs not skippable: {reader.name} ({reader.op}) reads all channels"
        value, pooled = reader.output, []


def _split_demand(activity: Activity, value: Value, pooled: list[Value], uses: list[tuple[Node, Set]]) -> str:
    """Why a map with these pooled sums and these readers is needed."""
    wanted = set(activity.demand.reactive.get(value, ()))
    for _, released in uses:
        wanted |= activity.sets.source_numbers(released)
    reading = {number for v in (value, *pooled) for number in activity.demand.sources_reading(v)}
    if wanted & reading:
        return f"outputs not skippable: the gate {_listed(_source_names(activity, wanted & reading))} reads this map"
    keeping = [f"{reader.name} ({reader.op})" for reader, released in uses if not varies(released)]
    keeping += [v.name for v in pooled]
    readers = ", ".join(dict.fromkeys(keeping[:MAX_NAMES]))
    if wanted and keeping:
        return f"outputs not skippable: {readers} reads the ungated map"
    if not keeping:
        return f"outputs not skippable: {'their readers are never idle together' if uses else 'nothing reads them'}"
    return f"outputs not skippable: no gate before {readers} reads them"


def _why_inputs(activity: Activity, x: Value) -> str:
    """Why no input of a layer can be left out."""
    value = x
    while value.producer is not None:
        node = value.producer
        if activity.demand.is_masked(value) and value is not x:
            gates = _listed(_gate_names(activity, activity.gone(value)))
            return f"inputs dense: {node.name} is masked by {gates}, but {_culprit(x, value)} fills it again"
        if node.op == "conv2d":
            residual = len(node.inputs) > 5 and node.inputs[5] is not None
            return "inputs dense: residual sum" if residual else f"inputs dense: no gate after {node.name}"
        if node.op == "add":
            return "inputs dense: residual sum"
        if node.op == "linear" or (
            node.op not in element_moves.STRUCTURAL and operator(node.op).channels is Channels.MIXING
        ):
            return f"inputs dense: no gate after {node.name}"
        source = node.inputs[0]
        if source is None:
            break
        value = source
    return "inputs dense: input of the model" if value in activity.graph.inputs else "inputs dense: constant"


def _culprit(x: Value, masked: Value) -> str:
    """The node between a masked map and x that makes the masked channels non-zero."""
    value = x
    while value.producer is not None and value.producer.inputs[0] is not masked:
        source = value.producer.inputs[0]
        assert source is not None
        value = source
    return f"{value.producer.name} ({value.producer.op})" if value.producer is not None else value.name


def varies(gone: Set) -> bool:
    """True if a set depends on the image."""
    return bool(np.any(gone > TRUE))
