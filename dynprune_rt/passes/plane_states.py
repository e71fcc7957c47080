"""Forward analysis: which planes of a map are zero, or a known constant, and for which images.

The state of a value is a set of channels and, per channel, a level: for the images where the channel
belongs to the set, every element of its plane equals the level. Level 0 is the interesting case, but
others matter too: a mask in front of a batch norm leaves the constant `shift`, and the relu after it
may turn that into zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import Channels, operator
from dynprune_rt.ir.types import DTYPES, TensorType
from dynprune_rt.ir.value_ranges import ValueFacts
from dynprune_rt.passes import element_moves
from dynprune_rt.passes.channel_sets import FALSE, TRUE, ChannelSets, Set
from dynprune_rt.passes.gate_zeros import GateZeros


@dataclass(frozen=True)
class PlaneState:
    """For images where the formula ``known`` holds, the elements equal ``level``. Equal shapes."""

    known: Set
    level: np.ndarray

    @property
    def zero(self) -> Set:
        """The set of exactly zero channels (or elements)."""
        return np.where(self.level == 0, self.known, FALSE)


class UsedWeights:
    """Which weights of a convolution or linear layer are not zero, remembered per constant."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, np.ndarray] = {}

    def of(self, weight: Value) -> np.ndarray:
        """Bool [K, C]: output k reads input c (of its group)."""
        if weight.name not in self._known:
            array = self._graph.constant(weight)
            self._known[weight.name] = (array != 0).reshape(*array.shape[:2], -1).any(axis=2)
        return self._known[weight.name]


def over_space(fact: Set, sets: ChannelSets) -> Set:
    """The part of a fact about a map that holds in the whole plane: [C or 1, 1, 1]."""
    for axis in range(1, fact.ndim):
        fact = sets.conj_over(fact, axis)
    return fact


class PlaneStates:
    """States of all values of a graph, whose nodes must be in execution order."""

    def __init__(
        self, graph: Graph, sets: ChannelSets, gates: GateZeros, facts: ValueFacts, weights: UsedWeights
    ) -> None:
        self._graph = graph
        self._sets = sets
        self._gates = gates
        self._facts = facts
        self._weights = weights
        self._states: dict[Value, PlaneState] = {}
        #: For each convolution the state of the sums after the gate, before shift and residual.
        self.gated_sums: dict[Node, PlaneState] = {}
        for value in graph.inputs:
            self._states[value] = _unknown(value.type)
        for node in graph.nodes:
            for value in node.outputs:
                self._states[value] = _unknown(value.type)
            if node.output.type.batched:
                state = self._transfer(node)
                if state is not None:
                    self._states[node.output] = state

    def of(self, value: Value) -> PlaneState:
        """The state of a batched value."""
        return self._states[value]

    def operand(self, value: Value, result: TensorType) -> PlaneState:
        """The state of an operand of an elementwise node, in the rank of its result.

        For a gate, that is a small tensor that multiplies whole planes, with the gate's own zeros.
        """
        if not value.type.batched:
            return self._constant(value, result)
        state = self._states[value]
        zeros = self.gate_zeros(value, result)
        if zeros is None:
            return state
        joined = self._sets.disj(zeros, state.zero)
        return _merge(joined, state)

    def gate_zeros(self, value: Value, result: TensorType) -> Set | None:
        """Zeros of an operand that is the same all over each plane of ``result``; None if it is no gate."""
        space = 2 if result.rank >= 4 else 1
        if result.rank < 3 or np.prod(result.shape[-space:]) == 1 or not self._facts.may_be_zero(value):
            return None
        zeros = self._gates.aligned(value, result.rank)
        if zeros is None or any(d != 1 for d in zeros.shape[-space:]):
            return None
        return zeros

    def _constant(self, value: Value, result: TensorType) -> PlaneState:
        shape = (1,) * (result.rank - value.type.rank) + value.type.shape
        if not self._graph.is_constant(value):
            return _unknown(TensorType("f32", (1, *shape[1:])))
        level = self._graph.constant(value).reshape(shape)[0]
        known = np.full(level.shape, TRUE, np.int64)
        if level.ndim == 3 and level[0].size > 1:
            uniform = (level == level[:, :1, :1]).all(axis=(1, 2), keepdims=True)
            known, level = np.where(uniform, TRUE, FALSE).astype(np.int64), level[:, :1, :1]
        return _finite(known, level)

    # -- transfer functions; None = nothing is known -------------------------------------------------

    def _transfer(self, node: Node) -> PlaneState | None:
        if node.op in element_moves.STRUCTURAL:
            return self._move(node)
        match node.op:
            case "conv2d":
                return self._conv2d(node)
            case "linear":
                return self._linear(node)
            case "mul":
                return self._product([self.operand(v, node.output.type) for v in node.inputs if v is not None])
            case "where":
                return self._where(node)
            case "affine":
                return self._affine(node)
            case "reduce":
                return self._reduce(node)
        match operator(node.op).channels:
            case Channels.POINTWISE:
                states = [self.operand(v, node.output.type) for v in node.inputs if v is not None]
                return self._pointwise(node.op, node.attrs, states)
            case Channels.SPATIAL:
                return self._spatial(node)
        return None

    def _pointwise(self, op: str, attrs: dict[str, Any], states: Sequence[PlaneState]) -> PlaneState | None:
        known = states[0].known
        for state in states[1:]:
            known = self._sets.conj(known, state.known)
        if not known.any():
            return None
        level = operator(op).compute([state.level[None] for state in states], attrs)[0][0]
        return _finite(*np.broadcast_arrays(known, level))

    def _product(self, states: Sequence[PlaneState]) -> PlaneState | None:
        a, b = states
        zeros = self._sets.disj(a.zero, b.zero)
        both = self._pointwise("mul", {}, states)
        if both is None:
            return None if not zeros.any() else PlaneState(zeros, np.zeros(zeros.shape, np.float32))
        return _merge(zeros, both)

    def _affine(self, node: Node) -> PlaneState | None:
        x, scale, shift = (_present(v) for v in node.inputs)
        state = self._states[x]
        per_channel = (-1, *[1] * (x.type.rank - 2))
        factor, offset = (self._graph.constant(v).reshape(per_channel) for v in (scale, shift))
        flat = np.broadcast_to(factor == 0, np.broadcast_shapes(factor.shape, state.known.shape))
        known = np.where(flat, TRUE, state.known)
        if not known.any():
            return None
        level = np.where(flat, offset, state.level * factor + offset)
        return _finite(*np.broadcast_arrays(known, level))

    def _where(self, node: Node) -> PlaneState | None:
        condition, a, b = (_present(v) for v in node.inputs)
        result = node.output.type
        if_true, if_false = self.operand(a, result), self.operand(b, result)
        sets = self._sets
        zeros = sets.conj(if_true.zero, if_false.zero)
        closed = self.gate_zeros(condition, result)
        if closed is None:
            return PlaneState(zeros, np.zeros(zeros.shape, np.float32)) if zeros.any() else None
        opened = sets.complement(closed)
        zeros = sets.disj(zeros, sets.conj(opened, if_true.zero))
        zeros = sets.disj(zeros, sets.conj(closed, if_false.zero))
        # A constant branch leaves its level where it is chosen.
        fixed_false, fixed_true = if_false.known == TRUE, if_true.known == TRUE
        known = np.where(fixed_false, closed, np.where(fixed_true, opened, FALSE))
        level = np.where(fixed_false, if_false.level, if_true.level)
        return _merge(zeros, _finite(*np.broadcast_arrays(known, level)))

    def _move(self, node: Node) -> PlaneState | None:
        states = [self._states[_present(v)] for v in (node.inputs if node.op == "cat" else node.inputs[:1])]
        known, level = [s.known for s in states], [s.level for s in states]
        fill = float(node.attrs.get("value", 0.0))
        adds_channels = False
        if node.op == "pad":
            low, high = node.attrs["low"], node.attrs["high"]
            adds_channels = any([*low[1:2], *high[1:2]])
            if any([*low[2:], *high[2:]]):  # a plane stays constant if its border has the same level
                known = [np.where(level[0] == fill, known[0], FALSE)]
        if not adds_channels and not any(k.any() for k in known):
            return None
        moved = element_moves.forward(self._graph, node, known, TRUE)
        levels = element_moves.forward(self._graph, node, level, fill)
        return None if moved is None or levels is None else _finite(moved, levels)

    def _spatial(self, node: Node) -> PlaneState | None:
        state = self._states[_present(node.inputs[0])]
        if not state.known.any():
            return None
        # Averages of a constant are left alone unless it is zero: borders and rounding may change them.
        keeps = node.op in ("max_pool2d", "adaptive_max_pool2d")
        known = over_space(state.known if keeps and state.level.shape[1:] == (1, 1) else state.zero, self._sets)
        level = np.where(known == FALSE, 0.0, state.level[:, :1, :1] if keeps else 0.0).astype(np.float32)
        if node.op == "spatial_reduce":
            known, level = known[:, 0, 0], level[:, 0, 0]
        return _finite(known, level)

    def _reduce(self, node: Node) -> PlaneState | None:
        zeros = self._states[_present(node.inputs[0])].zero
        if node.output.type.dtype == "bool" or not zeros.any():
            return None
        axes = tuple(d - 1 for d in node.attrs["dims"])
        for axis in axes:
            zeros = self._sets.conj_over(zeros, axis)
        zeros = zeros if node.attrs["keepdim"] else np.squeeze(zeros, axes)
        return PlaneState(zeros, np.zeros(zeros.shape, np.float32))

    def _linear(self, node: Node) -> PlaneState | None:
        x, weight = _present(node.inputs[0]), _present(node.inputs[1])
        if x.type.rank != 2:
            return None
        zeros = np.broadcast_to(self._states[x].zero, (weight.type.shape[1],))
        known = self._sets.conj_selected(zeros, self._weights.of(weight))
        if not known.any():
            return None
        state = PlaneState(known, self._bias(node))
        return self._clamped(state, node.attrs["inner"])

    def _conv2d(self, node: Node) -> PlaneState | None:
        x, weight = _present(node.inputs[0]), _present(node.inputs[1])
        gate, shift, residual = ([*node.inputs, *[None] * 6][i] for i in (3, 4, 5))
        groups, out_channels = node.attrs["groups"], weight.type.shape[0]
        zeros = np.broadcast_to(over_space(self._states[x].zero, self._sets)[:, 0, 0], (x.type.shape[1],))
        used = self._weights.of(weight)
        rows = out_channels // groups
        parts = [
            self._sets.conj_selected(part, used[g * rows : (g + 1) * rows])
            for g, part in enumerate(np.split(zeros, groups))
        ]
        per_plane = (out_channels, 1, 1)
        sums = PlaneState(np.concatenate(parts).reshape(per_plane), self._bias(node).reshape(per_plane))
        state = self._clamped(sums, node.attrs["inner"])
        if gate is not None:
            closed = self.gate_vector_zeros(gate).reshape(per_plane)
            state = _merge(self._sets.disj(closed, state.zero), _unknown(node.output.type))
        self.gated_sums[node] = state
        if shift is not None and shift.type.batched:
            closed = self.gate_vector_zeros(shift).reshape(per_plane)
            added = self._pointwise("add", {}, [state, PlaneState(closed, np.zeros(per_plane, np.float32))])
            state = added if added is not None else _unknown(node.output.type)
        elif shift is not None:
            state = _finite(state.known, state.level + self._graph.constant(shift).reshape(per_plane))
        if residual is not None:
            added = self._pointwise("add", {}, [state, self._states[residual]])
            state = added if added is not None else _unknown(node.output.type)
        return self._clamped(state, node.attrs["outer"])

    def gate_vector_zeros(self, gate: Value) -> Set:
        """Zeros of the gate operand [N, K] of a convolution, as [K]."""
        zeros = self._gates.of(gate) if self._facts.may_be_zero(gate) else None
        if zeros is None:
            return np.full(gate.type.shape[1:], FALSE, np.int64)
        return np.broadcast_to(zeros, gate.type.shape[1:])

    def _bias(self, node: Node) -> np.ndarray:
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            return np.zeros(_present(weight).type.shape[0], np.float32)
        return self._graph.constant(bias)

    @staticmethod
    def _clamped(state: PlaneState, bounds: tuple[float, float]) -> PlaneState:
        return PlaneState(state.known, np.clip(state.level, np.float32(bounds[0]), np.float32(bounds[1])))


def _present(value: Value | None) -> Value:
    assert value is not None
    return value


def _unknown(type: TensorType) -> PlaneState:
    shape = (1,) * (type.rank - 1)
    return PlaneState(np.full(shape, FALSE, np.int64), np.zeros(shape, DTYPES[type.dtype]))


def _finite(known: Set, level: np.ndarray) -> PlaneState:
    """A state without levels that are not numbers."""
    if level.dtype.kind != "f":
        return PlaneState(known, level)
    good = np.isfinite(level)
    return PlaneState(np.where(good, known, FALSE), np.where(good, level, np.float32(0)))


def _merge(zeros: Set, other: PlaneState) -> PlaneState:
    """Level 0 where ``zeros`` says anything, else the other state."""
    zeros, known, level = np.broadcast_arrays(zeros, other.known, other.level)
    chosen = zeros != FALSE
    return PlaneState(np.where(chosen, zeros, known), np.where(chosen, level.dtype.type(0), level))
