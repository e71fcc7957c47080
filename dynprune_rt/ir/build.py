"""Appending nodes to a graph, with types inferred and attributes checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators import operator


class Builder:
    """Appends operators to the end of a graph.

    With ``fold`` an operator on constants alone is evaluated at once and becomes a constant.
    """

    def __init__(self, graph: Graph | None = None, *, fold: bool = True) -> None:
        self.graph = graph if graph is not None else Graph()
        self.fold = fold

    def constant(self, stem: str, array: np.ndarray | float | int | bool) -> Value:
        """Add a constant. Python scalars become values of shape [] (f32, i64 or bool)."""
        if isinstance(array, float):
            array = np.float32(array)
        return self.graph.add_constant(stem, np.asarray(array))

    def append(
        self,
        op: str,
        inputs: tuple[Value | None, ...] | list[Value | None],
        attrs: Mapping[str, Any],
        *,
        name: str = "",
        origin: str = "",
    ) -> tuple[Value, ...]:
        """Append one node and return all its outputs; raises VerificationError if it does not type."""
        row = operator(op)
        canonical = row.canonical_attrs(attrs)
        types = row.infer_types([None if v is None else v.type for v in inputs], canonical)
        stem = name or op
        if self.fold and all(v is None or self.graph.is_constant(v) for v in inputs):
            arrays = row.compute([None if v is None else self.graph.constant(v) for v in inputs], canonical)
            return tuple(self.graph.add_constant(stem, array) for array in arrays)
        outputs = [self.graph.new_value(stem, type) for type in types]
        node = Node(op, name or outputs[0].name, list(inputs), outputs, canonical, origin=origin)
        for value in outputs:
            value.producer = node
        self.graph.nodes.append(node)
        return tuple(outputs)

    def op(
        self,
        op: str,
        /,
        *inputs: Value | None,
        attrs: Mapping[str, Any] | None = None,
        name: str = "",
        origin: str = "",
        **more: Any,
    ) -> Any:
        """Append ``op(*inputs)``; attributes come as a mapping, as keywords, or both.

        Returns the output value, or a tuple of values where the operator has several outputs.
        """
        outputs = self.append(op, inputs, {**(attrs or {}), **more}, name=name, origin=origin)
        return outputs[0] if len(outputs) == 1 else outputs
