"""Which layers run on integers or in bfloat16, the element type of every map, and which maps share a scale."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.operators.quantized import INTEGER_REDUCTIONS, MAX_SUM, reduction_fits
from dynprune_rt.ir.value_ranges import ValueFacts


def operand(node: Node, position: int) -> Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


#: The exact integer reduction that gives each kind, for maps of any sign and for maps that are never negative.
_EXACT_KINDS = {kind: kind for kind in INTEGER_REDUCTIONS}
_EXACT_KINDS_UNSIGNED = {**_EXACT_KINDS, "mean_abs": "mean", "sum_abs": "sum", "max_abs": "max"}


def exact_reduction(kind: str, dtype: str, pixels: int) -> str | None:
    """The kind of quantized_spatial_reduce that computes a spatial_reduce of so many pixels, if one does."""
    exact = (_EXACT_KINDS_UNSIGNED if dtype == "u8" else _EXACT_KINDS).get(kind)
    return exact if exact is not None and reduction_fits(exact, pixels) else None


@dataclass
class Selection:
    """Layers that run on maps of a narrow type.

    ``dtypes``: element type of every map that exists in one. ``classes``: maps that share a scale
    point to one representative. ``whole``: maps that are stored with all their channels. ``kept``:
    convolutions that stay in float32, with the reason. ``patterns``: names of layers that are to stay as they are.
    """

    nodes: set[Node] = field(default_factory=set)
    dtypes: dict[Value, str] = field(default_factory=dict)
    classes: dict[Value, Value] = field(default_factory=dict)
    whole: set[Value] = field(default_factory=set)
    kept: dict[str, str] = field(default_factory=dict)
    patterns: Sequence[str] = ()

    def keeps(self, node: Node) -> bool:
        """True where the user wants a layer as it is."""
        return any(fnmatch.fnmatchcase(node.name, pattern) for pattern in self.patterns)

    def representative(self, value: Value) -> Value:
        while self.classes[value] is not value:
            value = self.classes[value]
        return value

    def members(self) -> dict[Value, list[Value]]:
        """Maps by the representative of their class."""
        table: dict[Value, list[Value]] = {}
        for value in self.dtypes:
            table.setdefault(self.representative(value), []).append(value)
        return table

    def add_map(self, value: Value, dtype: str) -> None:
        self.dtypes.setdefault(value, dtype)
        self.classes.setdefault(value, value)

    def share_scale(self, a: Value, b: Value) -> None:
        self.classes[self.representative(b)] = self.representative(a)


def is_depthwise(node: Node) -> bool:
    weight = operand(node, 1)
    assert weight is not None
    return node.attrs["groups"] > 1 and weight.type.shape[:2] == (node.attrs["groups"], 1)


class _Selector:
    """The choice for bfloat16: whatever has a kernel."""

    def __init__(self, graph: Graph, keep: Sequence[str], kept: Mapping[str, str]) -> None:
        self._graph = graph
        self._facts = ValueFacts(graph)
        self._users = graph.users()
        self.result = Selection(kept=dict(kept), patterns=keep)

    def run(self) -> Selection:
        for node in self._graph.nodes:
            if node.op == "conv2d":
                why = self.result.kept.get(node.name) or self._refusal(node)
                if why is None:
                    self._take_convolution(node)
                else:
                    self.result.kept[node.name] = why
            elif node.op == "max_pool2d" or (node.op == "cat" and node.attrs["dim"] == 1):
                self._take_movement(node)
            elif self._normalization(node) is not None:
                self._take_normalization(node)
        self._spread_whole_maps()
        return self.result

    def _take_movement(self, node: Node) -> None:
        """A node whose results are elements of its operands: narrow where one operand is, and all have one type."""
        values = [v for v in node.inputs if v is not None]
        if not any(self._made_narrow(v) for v in values) or not node.output.type.is_map:
            return
        if any(v.type.dtype != "f32" for v in values) or len({self._type_of(v) for v in values}) > 1:
            return
        dtype = self._type_of(values[0])
        self.result.nodes.add(node)
        self.result.add_map(node.output, dtype)
        for value in values:
            self.result.add_map(value, dtype)
            self.result.share_scale(value, node.output)

    def _normalization(self, node: Node) -> Node | None:
        """The affine before a rectifier, where both together are a depthwise convolution of a narrow map."""
        x = node.inputs[0] if node.inputs else None
        affine = None if x is None else x.producer
        if x is None or affine is None or affine.op != "affine" or affine.inputs[0] is None or len(self._users[x]) > 1:
            return None
        rectifies = node.op == "relu" or (node.op == "clamp" and node.attrs["lo"] == 0)
        return affine if rectifies and self._made_narrow(affine.inputs[0]) else None

    def _take_normalization(self, node: Node) -> None:
        self.result.nodes.add(node)
        self.result.add_map(node.output, self._type_of(node.output))

    def _made_narrow(self, value: Value) -> bool:
        return value.producer in self.result.nodes and value is value.producer.output if value.producer else False

    def _take_convolution(self, node: Node) -> None:
        x, residual, y = operand(node, 0), operand(node, 5), node.output
        assert x is not None
        result = self.result
        result.nodes.add(node)
        result.add_map(x, self._type_of(x))
        result.add_map(y, self._result_type(node))
        if residual is not None:
            result.add_map(residual, self._type_of(residual))
            result.whole |= {y, residual}
            if result.dtypes[residual] == result.dtypes[y]:
                result.share_scale(residual, y)

    def _type_of(self, value: Value) -> str:
        return "bf16"

    def _result_type(self, node: Node) -> str:
        return "bf16"

    def _refusal(self, node: Node) -> str | None:
        """Why a convolution has to stay in float32."""
        x, residual = operand(node, 0), operand(node, 5)
        assert x is not None
        if self.result.keeps(node):
            return "kept by name"
        if not x.type.is_map or 1 in (math.prod(x.type.shape[2:]), math.prod(node.output.type.shape[2:])):
            return "a vector, not a map"
        if is_depthwise(node) and residual is not None:
            return "depthwise convolution with a residual"
        return None

    def _spread_whole_maps(self) -> None:
        """A pooling follows the live list of its input: a whole result needs a whole operand."""
        for node in reversed(self._graph.nodes):
            if node.op == "max_pool2d" and node in self.result.nodes and node.output in self.result.whole:
                x = node.inputs[0]
                assert x is not None
                self.result.whole.add(x)


class _IntegerSelector(_Selector):
    """Integers also need a sign, and an epilogue that saturation can do."""

    def _type_of(self, value: Value) -> str:
        known = self.result.dtypes.get(value)
        return known or ("u8" if self._facts.range(value).nonnegative else "s8")

    def _result_type(self, node: Node) -> str:
        return "u8" if self._never_negative(node) else "s8"

    def _gate_is_nonnegative(self, node: Node) -> bool:
        gate = operand(node, 3)
        return gate is None or self._facts.range(gate).nonnegative

    def _never_negative(self, node: Node) -> bool:
        if node.attrs["outer"][0] >= 0:
            return True
        clamped = node.attrs["inner"][0] >= 0 and self._gate_is_nonnegative(node)
        return clamped and operand(node, 4) is None and operand(node, 5) is None

    def _refusal(self, node: Node) -> str | None:
        why = super()._refusal(node)
        if why is not None:
            return why
        weight, shift, residual = (operand(node, i) for i in (1, 4, 5))
        assert weight is not None
        if math.prod(weight.type.shape[1:]) * 128 * 255 > MAX_SUM:
            return "sums may leave 32 bits"
        inner_low, inner_high = node.attrs["inner"]
        outer_low, outer_high = node.attrs["outer"]
        if inner_low not in (0, -math.inf) or outer_low not in (0, -math.inf):
            return f"clamp at {inner_low if inner_low not in (0, -math.inf) else outer_low:g}"
        if inner_high != math.inf and not (residual is None and shift is None and self._gate_is_nonnegative(node)):
            return f"clamp at {inner_high:g} before another step"
        # The range of the integers does the work of an outer bound.
        if outer_high != math.inf and (residual is not None or outer_low != 0):
            return f"clamp at {outer_high:g} of a sum"
        if inner_low == 0 and not (self._gate_is_nonnegative(node) and shift is None):
            return "a rectifier before a gate of unknown sign or a shift"
        return None


def select(
    graph: Graph, keep: Sequence[str] = (), kept: Mapping[str, str] | None = None, dtype: str = "int8"
) -> Selection:
    """Choose the layers.

    ``keep``: name patterns of layers to leave in float32; ``kept``: names with reasons; ``dtype``: "int8" or "bf16".
    """
    selector = _IntegerSelector if dtype == "int8" else _Selector
    return selector(graph, keep, kept or {}).run()
