"""Fusion of what follows a convolution into its epilogue.

Order and meaning of the parts: docs/internals.md, section 1. A node is absorbed only if it is the sole
reader of the value before it, so that the value need not exist. Where two convolutions meet in an
addition, the gated or deeper one takes the other as its residual. Reductions over the finished map
(the input of the next gate) become further outputs of the convolution.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators.convolution import UNBOUNDED
from dynprune_rt.ir.types import BATCH

Bounds = tuple[float, float]


def fuse_epilogues(graph: Graph) -> int:
    """Fuse in place; returns the number of nodes absorbed. The result needs `Graph.sort`."""
    return _Fusion(graph).run()


@dataclass
class _Chain:
    """A convolution and the nodes it can absorb, in order."""

    conv: Node
    end: Value
    nodes: list[Node] = field(default_factory=list)
    inner: Bounds = UNBOUNDED
    gate: tuple[Value, bool] | None = None  # gate value; True if it is inverted (a condition for zero)
    shift: Value | None = None
    residual: Value | None = None
    outer: Bounds = UNBOUNDED


def compose(first: Bounds, then: Bounds) -> Bounds:
    """Bounds of clamp(clamp(x, first), then)."""
    low, high = (min(max(bound, then[0]), then[1]) for bound in first)
    return low, high


class _Fusion:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._readers = graph.users()
        self._outputs = set(graph.outputs)
        self._builder = Builder(graph, fold=False)
        self._depth = _convolution_depth(graph)
        self._gates: dict[tuple[Value, bool, int], Value] = {}

    def run(self) -> int:
        convolutions = [n for n in self._graph.nodes if n.op == "conv2d" and n.output.type.batched]
        chains = [chain for chain in map(self._start, convolutions) if chain is not None]
        meeting: dict[Node, list[_Chain]] = {}
        for chain in chains:
            total = self._residual_sum(chain)
            if total is not None:
                meeting.setdefault(total, []).append(chain)
        for total, candidates in meeting.items():
            best = max(candidates, key=lambda c: (c.gate is not None, self._depth[c.conv]))
            best.residual = next(v for v in total.inputs if v is not best.end)
            best.nodes.append(total)
            best.end = total.output
            self._absorb_clamps(best)
        absorbed: set[int] = set()
        for chain in chains:
            self._commit(chain)
            absorbed.update(id(node) for node in chain.nodes)
        for node in self._graph.nodes:
            if node.op == "linear":
                absorbed.update(id(n) for n in self._fuse_linear(node))
        for conv in convolutions:
            absorbed.update(id(n) for n in self._fuse_pools(conv))
        before = len(self._graph.nodes)
        self._graph.nodes = [n for n in self._graph.nodes if id(n) not in absorbed]
        return before - len(self._graph.nodes)

    # -- the chain behind a convolution -------------------------------------------------------------

    def _start(self, conv: Node) -> _Chain | None:
        if any(v is not None for v in conv.inputs[3:]) or conv.attrs["outer"] != UNBOUNDED or conv.attrs["pools"]:
            return None
        chain = _Chain(conv, conv.output, inner=conv.attrs["inner"])
        while True:
            node = self._sole_reader(chain.end)
            if node is None or not self._absorb(chain, node):
                return chain
            chain.nodes.append(node)
            chain.end = node.output

    def _sole_reader(self, value: Value) -> Node | None:
        readers = self._readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self._outputs else None

    def _absorb(self, chain: _Chain, node: Node) -> bool:
        """Take one node into the chain, if the order of the epilogue allows it (residual sums come later)."""
        if node.output.type != chain.conv.output.type:
            return False
        bounds = _clamp_bounds(node)
        if bounds is not None:
            if chain.gate is None and chain.shift is None:
                chain.inner = compose(chain.inner, bounds)
            else:
                chain.outer = compose(chain.outer, bounds)
            return True
        if chain.outer != UNBOUNDED or chain.shift is not None:
            return False
        gate = self._gate_operand(node, chain.end) if chain.gate is None else None
        if gate is not None:
            chain.gate = gate
            return True
        shift = self._shift_operand(node, chain.end)
        if shift is not None:
            chain.shift = shift
            return True
        return False

    def _gate_operand(self, node: Node, x: Value) -> tuple[Value, bool] | None:
        """The per-channel factor of x; for where(condition, x, 0) the condition."""
        if node.op == "mul":
            others = [v for v in node.inputs if v is not x]
            vector = _per_channel(others[0]) if len(others) == 1 and others[0] is not None else None
            return None if vector is None else (vector, False)
        if node.op == "where" and node.inputs[0] is not None:
            vector = _per_channel(node.inputs[0])
            for position in (1, 2):
                other = node.inputs[3 - position]
                if node.inputs[position] is x and vector is not None and other is not None and self._is_zero(other):
                    return vector, position == 2
        return None

    def _is_zero(self, value: Value) -> bool:
        return self._graph.is_constant(value) and not self._graph.constant(value).any()

    def _shift_operand(self, node: Node, x: Value) -> Value | None:
        """A vector that the node adds to x: a constant [K], or [N, K, 1, 1] where it differs per image."""
        if node.op != "add":
            return None
        other = next((v for v in node.inputs if v is not x), None)
        if other is None or not self._graph.is_constant(other):
            return None if other is None else _per_channel(other)
        shape = (1,) * (4 - other.type.rank) + other.type.shape
        if shape[0] != 1 or shape[2:] != (1, 1):
            return None
        array, channels = self._graph.constant(other), x.type.channels
        return self._builder.constant(f"{node.name}.shift", np.broadcast_to(array.reshape(-1), (channels,)).copy())

    def _residual_sum(self, chain: _Chain) -> Node | None:
        """The addition of another map that follows the chain."""
        node = self._sole_reader(chain.end)
        if node is None or node.op != "add" or chain.outer != UNBOUNDED:
            return None
        other = next((v for v in node.inputs if v is not chain.end), None)
        return node if other is not None and other.type == chain.end.type else None

    def _absorb_clamps(self, chain: _Chain) -> None:
        while True:
            node = self._sole_reader(chain.end)
            bounds = None if node is None else _clamp_bounds(node)
            if node is None or bounds is None:
                return
            chain.outer = compose(chain.outer, bounds)
            chain.nodes.append(node)
            chain.end = node.output

    # -- rewriting ------------------------------------------------------------------------------------

    def _commit(self, chain: _Chain) -> None:
        if not chain.nodes:
            return
        conv = chain.conv
        bias = conv.inputs[2] if len(conv.inputs) > 2 else None
        gate = None if chain.gate is None else self._gate_vector(*chain.gate, conv.output.type.channels)
        shift = chain.shift
        if shift is not None and shift.type.batched:
            shift = self._gate_vector(shift, False, conv.output.type.channels)
        inputs = [*conv.inputs[:2], bias, gate, shift, chain.residual]
        while inputs[-1] is None:
            inputs.pop()
        conv.inputs = inputs
        conv.attrs = {**conv.attrs, "inner": chain.inner, "outer": chain.outer}
        conv.outputs = [chain.end]
        chain.end.producer = conv

    def _gate_vector(self, gate: Value, inverted: bool, channels: int) -> Value:
        """The gate [N, 1 or K, 1, 1] as f32[N, K]."""
        key = (gate, inverted, channels)
        if key in self._gates:
            return self._gates[key]
        name = gate.producer.name if gate.producer is not None else gate.name
        maker, size = gate.producer, gate.type.channels
        vector = maker.inputs[0] if maker is not None and maker.op == "reshape" else None
        if vector is None or vector.type.shape != (BATCH, size):
            vector = self._builder.op("reshape", gate, attrs={"shape": (BATCH, size)}, name=name)
        assert vector is not None
        if inverted:
            vector = self._builder.op("logical_not", vector, name=name)
        if vector.type.dtype != "f32":
            vector = self._builder.op("cast", vector, attrs={"dtype": "f32"}, name=name)
        if size != channels:
            vector = self._builder.op("expand", vector, attrs={"shape": (BATCH, channels)}, name=name)
        self._gates[key] = vector
        return vector

    def _fuse_linear(self, linear: Node) -> list[Node]:
        """relu and clamp behind a linear layer become its inner bounds."""
        taken: list[Node] = []
        while True:
            node = self._sole_reader(linear.output)
            bounds = None if node is None else _clamp_bounds(node)
            if node is None or bounds is None:
                return taken
            linear.attrs = {**linear.attrs, "inner": compose(linear.attrs["inner"], bounds)}
            linear.outputs = [node.output]
            node.output.producer = linear
            taken.append(node)

    def _fuse_pools(self, conv: Node) -> list[Node]:
        """Whole-plane reductions of the finished map become outputs of the convolution."""
        taken: dict[str, Node] = {}
        for node in self._readers.get(conv.output, []):
            if node.op == "spatial_reduce" and node.attrs["kind"] not in (*taken, *conv.attrs["pools"]):
                taken[node.attrs["kind"]] = node
                conv.outputs.append(node.output)
                node.output.producer = conv
        conv.attrs = {**conv.attrs, "pools": (*conv.attrs["pools"], *taken)}
        return list(taken.values())


def _clamp_bounds(node: Node) -> Bounds | None:
    if node.op == "relu":
        return (0.0, UNBOUNDED[1])
    return (node.attrs["lo"], node.attrs["hi"]) if node.op == "clamp" else None


def _per_channel(value: Value) -> Value | None:
    """The value behind expansions over the plane, if it is batched with one element per channel (or one)."""
    while value.producer is not None and value.producer.op in ("expand", "interpolate"):
        source = value.producer.inputs[0]
        single = source is not None and source.type.rank == 4 and source.type.shape[2:] == (1, 1)
        nearest = value.producer.attrs.get("mode", "nearest") == "nearest"
        if source is None or source.type.rank != 4 or not (value.producer.op == "expand" or (single and nearest)):
            break
        value = source
    return value if value.type.is_map and value.type.shape[2:] == (1, 1) else None


def _convolution_depth(graph: Graph) -> dict[Node, int]:
    """For each node the largest number of convolutions on a path to it, itself included."""
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        before = [depth[v.producer] for v in node.inputs if v is not None and v.producer is not None]
        depth[node] = max(before, default=0) + (node.op == "conv2d")
    return depth
