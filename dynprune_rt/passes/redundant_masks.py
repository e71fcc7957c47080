"""Removal of binary masks that a later gate makes superfluous.

In f(x * w) * g, with f acting element by element, w holding zeros and ones and g zero wherever w is, the
first product changes only elements that the second one multiplies by zero. The form comes from gates that mask
before the batch norm and once more behind it.
"""

from __future__ import annotations

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import Channels, operator
from dynprune_rt.ir.value_ranges import ValueFacts
from dynprune_rt.passes.channel_sets import ChannelSets, Set
from dynprune_rt.passes.gate_zeros import GateZeros

#: Results of these may be infinite or NaN where the mask kept them finite.
_UNSAFE = frozenset({"div", "pow", "pow_scalar", "log", "reciprocal", "rsqrt", "sqrt", "exp", "remainder",
                     "floor_divide"})  # fmt: skip


def drop_redundant_masks(graph: Graph) -> int:
    """Bypass superfluous products in place, on a graph in execution order; returns how many."""
    sets = ChannelSets()
    facts = ValueFacts(graph)
    search = _Search(graph, sets, GateZeros(graph, sets, facts), facts)
    dropped = 0
    for node in graph.nodes:
        masked = search.superfluous(node)
        if masked is not None:
            graph.replace(node.output, masked)
            search.forget(node)
            dropped += 1
    return dropped


class _Search:
    def __init__(self, graph: Graph, sets: ChannelSets, gates: GateZeros, facts: ValueFacts) -> None:
        self._graph = graph
        self._sets = sets
        self._gates = gates
        self._facts = facts
        self._readers = graph.users()

    def forget(self, node: Node) -> None:
        """The readers of a product read its operand now."""
        self._readers = self._graph.users()
        for value in node.inputs:
            if value is not None:
                self._readers[value].remove(node)

    def superfluous(self, node: Node) -> Value | None:
        """The masked operand of a product that can be bypassed."""
        for masked, mask in (node.inputs[:2], node.inputs[1::-1]) if node.op == "mul" else ():
            if masked is None or mask is None or masked.type != node.output.type:
                continue
            zeros = self._gate(node, mask)
            if zeros is not None and self._facts.range(mask).binary and self._closes_again(node.output, zeros):
                return masked
        return None

    def _gate(self, node: Node, gate: Value) -> Set | None:
        """Zeros of a gate operand of a map's product, one per channel."""
        if not node.output.type.is_map or not gate.type.batched or not self._facts.may_be_zero(gate):
            return None
        zeros = self._gates.aligned(gate, node.output.type.rank)
        return zeros if zeros is not None and zeros.shape[1:] == (1, 1) else None

    def _closes_again(self, value: Value, zeros: Set) -> bool:
        """True if the only way from a value leads, element by element, to a gate that is zero in ``zeros``."""
        while True:
            readers = self._readers.get(value, [])
            if len(readers) != 1 or value in self._graph.outputs:
                return False
            node = readers[0]
            if operator(node.op).channels is not Channels.POINTWISE or node.op in _UNSAFE:
                return False
            if node.op == "mul":
                gate = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
                closed = None if gate is None or gate is value else self._gate(node, gate)
                if closed is not None and self._contains(closed, zeros):
                    return True
            if node.output.type != value.type:
                return False
            value = node.output

    def _contains(self, outer: Set, inner: Set) -> bool:
        return bool((self._sets.conj(outer, inner) == inner).all())
