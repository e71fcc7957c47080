"""Backward analysis: which channels of a value nobody needs, and for which images.

An element is *dead* where every use multiplies it by an exact zero, drops it, or feeds only elements
that are dead or known to be zero. An element is *gone* where nothing has to be computed for it: it is
dead or zero. Gone channels of a feature map are not stored; readers see zero in their place.

A map can be masked only by gates that are known before it is computed. A formula about a source that
depends on the map itself (a gate that reads the very map it masks) is therefore dropped at that map;
such a gate still leaves zero channels behind it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import Channels, operator
from dynprune_rt.passes import element_moves
from dynprune_rt.passes.channel_sets import FALSE, TRUE, ChannelSets, Set
from dynprune_rt.passes.plane_states import PlaneStates, UsedWeights, over_space

#: Operators that may turn the finite garbage in an unneeded element into infinity or NaN, which a later
#: multiplication by zero would not remove. Their operands are only left out where their result is.
_MAY_OVERFLOW = frozenset({"div", "pow", "pow_scalar", "remainder", "floor_divide", "sqrt", "rsqrt", "log",
                           "reciprocal"})  # fmt: skip


class Demand:
    """Gone sets of all values of a graph, whose nodes must be in execution order."""

    def __init__(self, graph: Graph, sets: ChannelSets, states: PlaneStates, weights: UsedWeights) -> None:
        self._graph = graph
        self._sets = sets
        self._states = states
        self._weights = weights
        #: Per batched value: elements of one image that need not be computed.
        self.gone: dict[Value, Set] = {}
        #: Per convolution the output channels [K] whose sum need not be computed.
        self.unsummed: dict[Node, Set] = {}
        #: Per map the sources that could mask it but depend on it.
        self.reactive: dict[Value, set[int]] = {}
        #: Per value and reader what this reader alone would let go; for explanations.
        self.released: dict[Value, list[tuple[Node, Set]]] = {}
        self._dead: dict[Value, Set] = {}
        self._order = _ScheduleOrder(sets)
        for value in graph.outputs:
            self._require(value, np.full((1,) * (value.type.rank - 1), FALSE, np.int64))
        for node in reversed(graph.nodes):
            self._visit(node)

    def is_masked(self, value: Value) -> bool:
        """True if the value is a map whose gone channels are really left out."""
        return _can_be_masked(value) and bool((self.gone[value] > TRUE).any())

    def sources_reading(self, value: Value) -> set[int]:
        """Sources that are computed from a value."""
        return self._order.below(value)

    def _require(self, value: Value, dead: Set) -> None:
        before = self._dead.get(value)
        self._dead[value] = dead if before is None else self._sets.conj(before, dead)

    def _visit(self, node: Node) -> None:
        if not node.output.type.batched:
            return
        below = self._order.enter(node)
        for pooled in node.outputs[1:] if node.op == "conv2d" else ():
            self._require(node.output, self._dead_of(pooled).reshape(-1, 1, 1))
        for value in node.outputs:
            dead = self._dead_of(value)
            if _can_be_masked(value):
                gone = self._sets.disj(over_space(dead, self._sets), self._states.of(value).zero)
                gone = over_space(gone, self._sets)
                gone, late = self._schedulable(gone, below)
                if late:
                    self.reactive[value] = late
                self.gone[value] = gone
            else:
                self.gone[value] = dead
        if node.op == "conv2d":
            unsummed = self._sets.disj(self.gone[node.output], self._states.gated_sums[node].zero)
            unsummed = np.broadcast_to(unsummed[:, 0, 0], (node.output.type.channels,))
            self.unsummed[node], _ = self._schedulable(unsummed, below)
        for slot, operand in enumerate(node.inputs):
            if operand is not None and operand.type.batched:
                released = self._release(node, slot, operand)
                self._require(operand, released)
                self.released.setdefault(operand, []).append((node, released))

    def _dead_of(self, value: Value) -> Set:
        dead = self._dead.get(value)
        return np.full((1,) * (value.type.rank - 1), TRUE, np.int64) if dead is None else dead

    def _schedulable(self, gone: Set, below: int) -> tuple[Set, set[int]]:
        """The part of a mask that can be known before a node runs (and is worth it), and the sources that cannot."""
        late = self._order.conflicts(self._sets.source_numbers(gone), below)
        gone = self._sets.likely(self._sets.without(gone, late))
        self._order.constrain(self._sets.source_numbers(gone), below)
        return gone, late

    # -- what a node does not need of operand `slot` ------------------------------------------------

    def _release(self, node: Node, slot: int, value: Value) -> Set:
        nothing = np.full((1,) * (value.type.rank - 1), FALSE, np.int64)
        gone = self.gone[node.output]
        if node.op in _MAY_OVERFLOW and not self.is_masked(node.output):
            return nothing
        if node.op in element_moves.STRUCTURAL:
            moved = element_moves.backward(self._graph, node, slot, gone, TRUE, self._sets.conj_over)
            return nothing if moved is None else moved
        match node.op:
            case "conv2d":
                return self._conv2d(node, slot, gone)
            case "linear" if slot == 0:
                return self._linear(node, gone)
            case "mul":
                other = node.inputs[1 - slot]
                if not _can_be_masked(node.output) and other is not None and self._reads_stored_map(value):
                    gone = self._sets.disj(gone, self._states.operand(other, node.output.type).zero)
                return self._to_operand(gone, value)
            case "where":
                closed = None if slot == 0 else self._states.gate_zeros(_condition(node), node.output.type)
                if closed is not None:
                    gone = self._sets.disj(gone, closed if slot == 1 else self._sets.complement(closed))
                return self._to_operand(gone, value)
            case "affine":
                scale = node.inputs[1]
                assert scale is not None
                factor = self._graph.constant(scale).reshape(-1, *[1] * (value.type.rank - 2))
                return np.where(factor == 0, TRUE, gone)
            case "reduce":
                kept = [1 if i + 1 in node.attrs["dims"] else d for i, d in enumerate(value.type.shape[1:])]
                if gone.size > 1:
                    gone = np.broadcast_to(gone, node.output.type.shape[1:]).reshape(kept)
                return gone.reshape(kept if gone.size > 1 else nothing.shape)
            case "spatial_reduce":
                return gone.reshape(-1, 1, 1)
        match operator(node.op).channels:
            case Channels.POINTWISE:
                return self._to_operand(gone, value)
            case Channels.SPATIAL:
                return over_space(gone, self._sets)
        return self._all_or_nothing(node, nothing)

    def _to_operand(self, gone: Set, value: Value) -> Set:
        """Join what an elementwise node says about the copies of each element of a broadcast operand."""
        for axis, size in enumerate(value.type.shape[1:]):
            if size == 1:
                gone = self._sets.conj_over(gone, axis)
        return gone

    def _reads_stored_map(self, value: Value) -> bool:
        """True if the value only rearranges a map, so that garbage in it is finite: it reads as zero."""
        while value.producer is not None and value.producer.op in ("reshape", "permute", "expand", "slice"):
            source = value.producer.inputs[0]
            assert source is not None
            if _can_be_masked(source):
                return True
            value = source
        return False

    def _all_or_nothing(self, node: Node, nothing: Set) -> Set:
        """Operators that mix channels: an image for which no output is needed needs no operand."""
        gone = self._single(self.gone[node.output])
        for value in node.outputs[1:]:
            gone = self._sets.conj(gone, self._single(self.gone[value]))
        return np.full(nothing.shape, gone, np.int64)

    def _single(self, gone: Set) -> Set:
        return self._sets.conj_over(gone.reshape(1, -1), 1).reshape(())

    def _linear(self, node: Node, gone: Set) -> Set:
        weight = node.inputs[1]
        assert weight is not None
        for axis in range(gone.ndim - 1):
            gone = self._sets.conj_over(gone, axis)
        rows = np.broadcast_to(gone.reshape(-1), (weight.type.shape[0],))
        columns = self._sets.conj_selected(rows, self._weights.of(weight).T)
        return columns.reshape(*[1] * (gone.ndim - 1), -1)

    def _conv2d(self, node: Node, slot: int, gone: Set) -> Set:
        weight = node.inputs[1]
        assert weight is not None
        out_channels, groups = weight.type.shape[0], node.attrs["groups"]
        if slot in (3, 4):  # gate and shift, [N, K]
            return gone[:, 0, 0]
        if slot == 5:  # the residual
            return gone
        unsummed = self.unsummed[node]
        used = self._weights.of(weight)
        rows = out_channels // groups
        columns = [
            self._sets.conj_selected(part, used[g * rows : (g + 1) * rows].T)
            for g, part in enumerate(np.split(unsummed, groups))
        ]
        return np.concatenate(columns).reshape(-1, 1, 1)


def _can_be_masked(value: Value) -> bool:
    """Maps that a node computes; of those with a single pixel only the results of convolutions are worth a mask."""
    if not value.type.is_map or value.type.dtype != "f32" or value.producer is None:
        return False
    return value.type.shape[2] * value.type.shape[3] > 1 or value.producer.op == "conv2d"


def _condition(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None
    return value


class _ScheduleOrder:
    """Keeps masks schedulable: a source that a node leads to, through data or masks, cannot mask it.

    Sets of sources are bit sets. Nodes are entered from last to first.
    """

    def __init__(self, sets: ChannelSets) -> None:
        self._numbers = {id(source): number for number, source in enumerate(sets.sources)}
        self._below: dict[Value, int] = {}  # sources computed from a value
        self._above: list[int] = [0] * len(sets.sources)  # sources computed from maps that a source masks

    def enter(self, node: Node) -> int:
        """Register a node; the sources that its outputs lead to by data alone."""
        below = 0
        for value in node.outputs:
            below |= self._below.get(value, 0)
            number = self._numbers.get(id(value))
            if number is not None:
                below |= 1 << number
        for operand in node.inputs:
            if operand is not None:
                self._below[operand] = self._below.get(operand, 0) | below
        return below

    def below(self, value: Value) -> set[int]:
        """Numbers of the sources that a value leads to by data alone."""
        bits = self._below.get(value, 0)
        return {number for number in range(len(self._above)) if bits >> number & 1}

    def conflicts(self, wanted: Iterable[int], below: int) -> set[int]:
        """Those of the wanted sources that could not be computed before the node."""
        reached, pending = 0, below
        while pending:
            number = (pending & -pending).bit_length() - 1
            reached |= 1 << number
            pending = (pending | self._above[number]) & ~reached
        return {number for number in wanted if reached >> number & 1}

    def constrain(self, used: Iterable[int], below: int) -> None:
        """The node will wait for these sources."""
        for number in used:
            self._above[number] |= below
