"""Where a gate is exactly zero, as a set over the tensors that decide it.

For a tensor of a gate program `GateZeros.of` gives, for every element, a formula that is true exactly
where the element is zero. Shape operators, casts, products and complements of binary masks,
straight-through sums and scatters of one index are traced back to the tensor that decides, so that two
masks made from one decision are known to be equal, complementary or nested. Everything else decides
for itself.
"""

from __future__ import annotations

import numpy as np

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import operator
from dynprune_rt.ir.value_ranges import ValueFacts, hard_part
from dynprune_rt.passes import element_moves
from dynprune_rt.passes.channel_sets import FALSE, MAX_ATOMS, TRUE, ChannelSets, Set

#: A tensor with more elements per image is no gate.
MAX_ELEMENTS = 1 << 14

#: Longest chain of nodes that is traced back.
MAX_DEPTH = 80

_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


class GateZeros:
    """Exact zero sets of gate tensors, remembered per value."""

    def __init__(self, graph: Graph, sets: ChannelSets, facts: ValueFacts) -> None:
        self._graph = graph
        self._sets = sets
        self._facts = facts
        self._known: dict[Value, Set | None] = {}
        self._depth = 0
        # (index, dim, shape) of a scatter -> the result that is zero exactly where the index points.
        self._winners: dict[tuple[Value, int, tuple[int, ...]], Value] = {}
        for node in graph.nodes:
            if node.op == "scatter" and self._scatters_zero(node):
                base = node.inputs[0]
                assert base is not None
                if graph.is_constant(base) and bool((graph.constant(base) != 0).all()):
                    self._winners.setdefault(self._scatter_key(node), node.output)

    def of(self, value: Value) -> Set | None:
        """The zero set of one image's elements, in a shape that broadcasts to theirs.

        None for tensors that are too large to be gates.
        """
        if value not in self._known:
            self._depth += 1
            found = self._trace(value) if self._depth < MAX_DEPTH else None
            self._depth -= 1
            if found is None and value.type.batched and self._is_small(value):
                found = self._sets.zeros_of(value)
            self._known[value] = found
        return self._known[value]

    @staticmethod
    def _is_small(value: Value) -> bool:
        spatial = value.type.is_map and value.type.shape[2] * value.type.shape[3] > 1
        return not spatial and value.type.elements <= MAX_ELEMENTS

    def aligned(self, value: Value, rank: int) -> Set | None:
        """As `of`, for an operand of an elementwise node whose result has this rank."""
        if value.type.batched:
            return self.of(value)
        if not self._graph.is_constant(value):
            return None
        array = self._graph.constant(value)
        shape = (1,) * (rank - array.ndim) + array.shape
        return np.where(array == 0, TRUE, FALSE).astype(np.int64).reshape(shape[1:])

    # -- rules; None means that the value decides for itself ---------------------------------------

    def _trace(self, value: Value) -> Set | None:
        node = value.producer
        if node is None or value is not node.output:
            return None
        if node.op in element_moves.STRUCTURAL:
            return self._move(node)
        match node.op:
            case "cast":
                keeps_zeros = node.output.type.dtype != "i64" or self._facts.range(_first(node)).integral
                return self.of(_first(node)) if keeps_zeros else None
            case "logical_not":
                return self._complement(_first(node))
            case "logical_and":
                return self._joined(node, union=True)
            case "logical_or":
                return self._joined(node, union=False)
            case "neg" | "abs" | "sign":
                return self.of(_first(node))
            case "relu" | "ceil":
                return self.of(_first(node)) if self._facts.range(_first(node)).nonnegative else None
            case "clamp":
                passes = self._facts.range(_first(node)).nonnegative and node.attrs["lo"] <= 0 < node.attrs["hi"]
                return self.of(_first(node)) if passes else None
            case "interpolate":
                single = node.attrs["mode"] == "nearest" and _first(node).type.shape[2:] == (1, 1)
                return self.of(_first(node)) if single else None
            case "mul":
                # Other products may underflow to zero.
                exact = [self._graph.is_constant(v) or self._facts.range(v).binary for v in node.inputs if v]
                return self._joined(node, union=True) if all(exact) else None
            case "scatter":
                return self._scatter(node)
            case "where":
                return self._where(node)
            case "add" | "sub" | "maximum":
                return self._sum(node)
        return self._comparison(node) if node.op in _COMPARISONS else None

    def _move(self, node: Node) -> Set | None:
        if node.op == "pad" or any(v is None or not v.type.batched for v in node.inputs[:1]):
            return None
        operands = node.inputs if node.op == "cat" else node.inputs[:1]
        parts = [self.of(v) for v in operands if v is not None]
        if any(p is None for p in parts):
            return None
        return element_moves.forward(self._graph, node, [p for p in parts if p is not None], FALSE)

    def _complement(self, value: Value) -> Set | None:
        zeros = self.of(value)
        return None if zeros is None else self._sets.complement(zeros)

    def _joined(self, node: Node, union: bool) -> Set | None:
        """Union or intersection of the operands' zeros, if it is small enough to be exact."""
        a, b = (self.aligned(v, node.output.type.rank) for v in node.inputs if v is not None)
        if a is None or b is None or self._sets.width(a) + self._sets.width(b) > MAX_ATOMS:
            return None
        return self._sets.disj(a, b) if union else self._sets.conj(a, b)

    def _sum(self, node: Node) -> Set | None:
        hard = hard_part(node)
        if hard is not None and self._facts.range(hard).binary and self._soft_is_bounded(node, hard):
            return self.of(hard)
        a, b = node.inputs
        assert a is not None and b is not None
        if node.op == "sub":
            if not self._is_scalar(a, 1.0):
                return None
            if self._facts.range(b).binary:
                return self._complement(b)
            return self._mirrored(node, b)
        if all(self._facts.range(v).nonnegative for v in (a, b)):
            return self._joined(node, union=False)
        return None

    def _mirrored(self, node: Node, value: Value) -> Set | None:
        """1 - m of a straight-through m: zero only where the hard part is one, but not always there."""
        hard = None if value.producer is None else hard_part(value.producer)
        if hard is None or not self._facts.range(hard).binary:
            return None
        zeros, open_ = self.of(value), self._complement(hard)
        if zeros is None or open_ is None or not np.array_equal(zeros, self._sets.complement(open_)):
            return None
        own = self._sets.zeros_of(node.output) if self._is_small(node.output) else None
        if own is None or self._sets.width(open_) + 1 > MAX_ATOMS:
            return None
        return self._sets.conj(own, open_)

    def _soft_is_bounded(self, node: Node, hard: Value) -> bool:
        """|s| <= 1 in (h - s) + s keeps the sum away from zero where h is 1."""
        seen = [v for v in node.inputs if v is not None]
        for v in list(seen):
            if v.producer is not None and v.producer.op in ("add", "sub"):
                seen += [u for u in v.producer.inputs if u is not None]
        softs = [v for v in seen if seen.count(v) > 1 and v is not hard]
        ranges = [self._facts.range(v) for v in softs]
        return bool(ranges) and all(r.lo >= -1.0 and r.hi <= 1.0 for r in ranges)

    def _comparison(self, node: Node) -> Set | None:
        """A comparison of a binary mask, or of anything with zero, with a constant."""
        a, b = node.inputs
        assert a is not None and b is not None
        if not self._graph.is_constant(b) or b.type.elements != 1 or a.type.rank != node.output.type.rank:
            return None
        bound = self._graph.constant(b).reshape(())
        bounds = self._facts.range(a)
        if bounds.binary:
            samples = np.array([0, 1]).astype(bound.dtype)
            at_zero, at_one = operator(node.op).compute([samples, bound], {})[0]
            if at_zero and at_one:
                return np.full((1,) * (a.type.rank - 1), FALSE, np.int64)
            if not at_zero and not at_one:
                return np.full((1,) * (a.type.rank - 1), TRUE, np.int64)
            return self._complement(a) if at_zero else self.of(a)
        if bound != 0:
            return None
        if node.op == "ne" or (node.op == "gt" and bounds.nonnegative):
            return self.of(a)
        if node.op == "eq" or (node.op == "le" and bounds.nonnegative):
            return self._complement(a)
        return None

    def _where(self, node: Node) -> Set | None:
        """where(condition, a, b) with constant or binary branches; others decide for themselves."""
        condition, *branches = (v for v in node.inputs if v is not None)
        if not all(self._graph.is_constant(v) or self._facts.range(v).binary for v in branches):
            return None
        closed = self.aligned(condition, node.output.type.rank)
        a, b = (self.aligned(v, node.output.type.rank) for v in branches)
        if closed is None or a is None or b is None or sum(map(self._sets.width, (closed, a, b))) > MAX_ATOMS:
            return None
        where_true = self._sets.conj(self._sets.complement(closed), a)
        return self._sets.disj(where_true, self._sets.conj(closed, b))

    def _scatter(self, node: Node) -> Set | None:
        """Zeros scattered into x: those of x, and the places that the index names."""
        base = _first(node)
        if not self._scatters_zero(node):
            return None
        winner = self._winners.get(self._scatter_key(node))
        if winner is None or winner is node.output or not self._is_small(winner):
            return None
        zeros = self.aligned(base, node.output.type.rank)
        if zeros is None or self._sets.width(zeros) + 1 > MAX_ATOMS:
            return None
        return self._sets.disj(zeros, self._sets.zeros_of(winner))

    def _scatters_zero(self, node: Node) -> bool:
        source = node.inputs[2]
        return source is not None and self._graph.is_constant(source) and not self._graph.constant(source).any()

    @staticmethod
    def _scatter_key(node: Node) -> tuple[Value, int, tuple[int, ...]]:
        index = node.inputs[1]
        assert index is not None
        return index, node.attrs["dim"], node.output.type.shape

    def _is_scalar(self, value: Value, number: float) -> bool:
        return self._graph.is_constant(value) and bool((self._graph.constant(value) == number).all())


def _first(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None
    return value
