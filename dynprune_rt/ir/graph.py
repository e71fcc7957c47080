"""The graph: values in static single assignment, nodes in execution order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynprune_rt.ir.types import DTYPES, TensorType


@dataclass(eq=False)
class Value:
    """One tensor of the graph.

    ``live`` is the *stored-channel mask* of a feature map: a bool value [N, C], or a constant [1, C], that says,
    per image, which channels of this map exist in memory. Channels outside it are exactly zero or
    needed by nobody. ``None`` means that all channels are stored. Set by passes.channel_activity.
    """

    name: str
    type: TensorType
    producer: Node | None = None
    live: Value | None = None

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(eq=False)
class Node:
    """One operation. ``op`` names a row of ir.operators; ``attrs`` holds JSON-like values only.

    ``inputs`` may hold ``None`` for an absent optional operand. ``computed`` is the mask [N, C] of
    output channels that the node itself has to compute, where that differs from
    ``outputs[0].live`` (a convolution with a fused residual passes the others through).
    ``name`` is the layer's path in the user's model where there is one; ``origin`` is the line of
    the user's source, for error messages. ``note`` says why a skip was granted or refused.
    """

    op: str
    name: str
    inputs: list[Value | None]
    outputs: list[Value]
    attrs: dict[str, Any] = field(default_factory=dict)
    computed: Value | None = None
    origin: str = ""
    note: str = ""

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def operands(self) -> Iterator[Value]:
        """Every value that must exist before this node runs: inputs and the masks it obeys."""
        for value in self.inputs:
            if value is not None:
                yield value
                if value.live is not None:
                    yield value.live
        for value in self.outputs:
            if value.live is not None:
                yield value.live
        if self.computed is not None:
            yield self.computed


@dataclass(eq=False)
class Graph:
    """A program body. Constants are values without producer that have an entry in ``constants``."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set, repr=False)

    # -- construction ---------------------------------------------------------------------------

    def fresh_name(self, stem: str) -> str:
        """A value or node name that is not taken yet."""
        stem = stem or "v"
        name, i = stem, 0
        while name in self._names:
            i += 1
            name = f"{stem}_{i}"
        self._names.add(name)
        return name

    def new_value(self, stem: str, type: TensorType) -> Value:
        return Value(self.fresh_name(stem), type)

    def add_input(self, stem: str, type: TensorType) -> Value:
        value = self.new_value(stem, type)
        self.inputs.append(value)
        return value

    def add_constant(self, stem: str, array: np.ndarray) -> Value:
        """Add an unbatched constant; its dtype must be one of ir.types.DTYPES."""
        array = np.asarray(array, order="C")  # ascontiguousarray would give scalars a dimension
        for dtype, np_dtype in DTYPES.items():
            if array.dtype == np_dtype:
                value = self.new_value(stem, TensorType(dtype, tuple(array.shape)))
                self.constants[value.name] = array
                return value
        raise TypeError(f"constant {stem!r} has dtype {array.dtype}; expected one of {sorted(DTYPES)}")

    def is_constant(self, value: Value) -> bool:
        return value.name in self.constants

    def constant(self, value: Value) -> np.ndarray:
        return self.constants[value.name]

    # -- queries --------------------------------------------------------------------------------

    def users(self) -> dict[Value, list[Node]]:
        """Map each value to the nodes that read it as an input (a node once per operand slot)."""
        table: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                if value is not None:
                    table.setdefault(value, []).append(node)
        return table

    # -- rewriting ------------------------------------------------------------------------------

    def replace(self, old: Value, new: Value) -> None:
        """Let every reader of ``old`` (nodes, masks, graph outputs) read ``new`` instead."""
        for node in self.nodes:
            node.inputs = [new if v is old else v for v in node.inputs]
            if node.computed is old:
                node.computed = new
            for out in node.outputs:
                if out.live is old:
                    out.live = new
        self.outputs = [new if v is old else v for v in self.outputs]

    def sort(self) -> None:
        """Reorder ``nodes`` so that every operand, masks included, is produced first (stable)."""
        placed: set[int] = set()
        order: list[Node] = []
        on_path: set[int] = set()

        for root in self.nodes:
            stack: list[tuple[Node, Iterator[Value]]] = []
            if id(root) not in placed:
                stack.append((root, root.operands()))
                on_path.add(id(root))
            while stack:
                node, operands = stack[-1]
                for value in operands:
                    producer = value.producer
                    if producer is None or producer is node or id(producer) in placed:
                        continue
                    if id(producer) in on_path:
                        raise ValueError(f"cycle through {producer.name} and {node.name}")
                    stack.append((producer, producer.operands()))
                    on_path.add(id(producer))
                    break
                else:
                    stack.pop()
                    on_path.discard(id(node))
                    placed.add(id(node))
                    order.append(node)
        self.nodes = order
