"""The quantized graph: narrow layers where the selection says so, conversions where the two kinds meet."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dynprune_rt.errors import QuantizationError
from dynprune_rt.ir.bfloat16 import from_bfloat16, to_bfloat16
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.quantization.scales import quantize_weights
from dynprune_rt.quantization.selection import Selection, exact_reduction, operand

#: Linear layers with this many weights or more do not stay in the fast caches between images.
_LARGE_LINEAR = 16384


class Rewriting(ABC):
    """Copies a graph node by node. A map may exist as floats, in its narrow form, or as both.

    Names of layers and values stay; the narrow form of a map is called ``<name>.<suffix>``. Subclasses know the
    element type.
    """

    suffix: str

    def __init__(self, graph: Graph, selection: Selection) -> None:
        self._old = graph
        self._selection = selection
        self._builder = Builder(fold=False)
        self._floats: dict[Value, Value] = {}
        self._narrow: dict[Value, Value] = {}
        self._users = graph.users()

    @property
    def graph(self) -> Graph:
        return self._builder.graph

    def run(self) -> Graph:
        """The quantized graph."""
        self.copy_inputs()
        for node in self._old.nodes:
            product = self._gated_map(node)
            if product is not None:
                self._narrow[node.output] = self.gated(node, *product)
                self._narrow[node.output].live = (
                    None if node.output in self._selection.whole else self._mask(node.output.live)
                )
            elif node not in self._selection.nodes:
                self.copy_node(node)
            elif node.op == "conv2d":
                self._narrow[node.output] = self.convolution(node)
                self._reduce_pools(node)
            elif node.op == "cat":
                self._cat(node)
            elif node.op != "max_pool2d":
                self._narrow[node.output] = self._normalization(node)
            else:
                self._max_pool(node)
        self.graph.outputs = [self.as_floats(value) for value in self._old.outputs]
        return self.graph

    @abstractmethod
    def _narrowed(self, value: Value, source: Value, name: str) -> Value:
        """The narrow form of ``source``, the float copy of ``value``."""

    @abstractmethod
    def _widened(self, value: Value, source: Value, name: str) -> Value:
        """The float form of ``source``, the narrow copy of ``value``."""

    @abstractmethod
    def convolution(self, node: Node) -> Value:
        """The narrow form of a convolution; its operands are converted where they are floats."""

    def _normalization(self, node: Node) -> Value:
        """An affine and the rectifier ``node`` after it, as a depthwise convolution."""
        assert node.inputs[0] is not None and node.inputs[0].producer is not None
        affine = node.inputs[0].producer
        x, scale, shift = (operand(affine, i) for i in range(3))
        assert x is not None and scale is not None and shift is not None
        high = node.attrs["hi"] if node.op == "clamp" else math.inf
        factors, summands = (self._old.constant(v).astype(np.float64) for v in (scale, shift))
        result = self.scaled(node, x, factors, summands, high)
        result.live = None if node.output in self._selection.whole else self._mask(node.output.live)
        return result

    @abstractmethod
    def scaled(self, node: Node, x: Value, factors: np.ndarray, summands: np.ndarray, high: float) -> Value:
        """clamp(x * factors + summands, 0, high) per channel, the result of ``node``, as a depthwise convolution."""

    def _gated_map(self, node: Node) -> tuple[Value, Value] | None:
        """x [N,C,H,W] and gate [N,C] where ``node`` multiplies them for narrow layers only, and x is narrow."""
        y = node.output
        if node.op != "mul" or y not in self._selection.dtypes or y in self._old.outputs:
            return None
        if not all(reader in self._selection.nodes for reader in self._users.get(y, [])):
            return None
        for x, factor in (node.inputs, node.inputs[::-1]):
            assert x is not None and factor is not None
            reshape = factor.producer
            if x in self._narrow and x.type.shape == y.type.shape and reshape is not None and reshape.op == "reshape":
                gate = reshape.inputs[0]
                assert gate is not None
                if gate.type.shape == y.type.shape[:2] and factor.type.shape == (*y.type.shape[:2], 1, 1):
                    return x, gate
        return None

    @abstractmethod
    def gated(self, node: Node, x: Value, gate: Value) -> Value:
        """x * gate, the result of ``node``, as a depthwise convolution with a weight of 1."""

    @abstractmethod
    def _reduce(self, layer: str, x: Value, kind: str, name: str) -> Value | None:
        """A spatial reduction of the narrow form of a map; None if there is none of this kind."""

    def copy_inputs(self) -> None:
        for value in self._old.inputs:
            self._floats[value] = self.graph.add_input(value.name, value.type)

    # -- the two forms of a value ---------------------------------------------------------------------

    def as_floats(self, value: Value) -> Value:
        """The copy of a value; a narrow map is widened once."""
        if value in self._floats:
            return self._floats[value]
        if self._old.is_constant(value):
            copy = self.graph.add_constant(value.name, self._old.constant(value))
        else:
            source = self._narrow[value]
            copy = self._widened(value, source, value.name)
            copy.live = source.live
        self._floats[value] = copy
        return copy

    def as_narrow(self, value: Value) -> Value:
        """The narrow form of a map; a float map is converted once."""
        if value not in self._narrow:
            source = self.as_floats(value)
            copy = self._narrowed(value, source, f"{value.name}.{self.suffix}")
            copy.live = None if value in self._selection.whole else source.live
            self._narrow[value] = copy
        return self._narrow[value]

    def _mask(self, mask: Value | None) -> Value | None:
        return None if mask is None else self.as_floats(mask)

    # -- nodes ----------------------------------------------------------------------------------------

    def copy_node(self, node: Node) -> None:
        """A node that stays in floats, or reduces a narrow map."""
        x = node.inputs[0] if node.inputs else None
        if node.op == "spatial_reduce" and x in self._narrow and x not in self._floats:
            assert x is not None
            reduced = self._reduce(node.name, x, node.attrs["kind"], node.output.name)
            if reduced is not None:
                self._floats[node.output] = reduced
                return
        inputs = [None if v is None else self.as_floats(v) for v in node.inputs]
        if node.op == "linear":
            inputs[1] = self._linear_weights(node)
        masks = [self._mask(v.live) for v in node.outputs]
        computed = self._mask(node.computed)
        outputs = self._append(node.op, inputs, node.attrs, node)
        for old, new, mask in zip(node.outputs, outputs, masks, strict=True):
            new.live = mask
            self._floats[old] = new
        assert outputs[0].producer is not None
        outputs[0].producer.computed = computed

    def _linear_weights(self, node: Node) -> Value:
        """The weights of a linear layer, in bfloat16 where fetching them is what the layer's time goes into."""
        x, weight = operand(node, 0), operand(node, 1)
        assert x is not None and weight is not None
        array = self._old.constant(weight)
        narrow = to_bfloat16(array)
        name = f"{weight.name}.bf16"
        if (
            array.size < _LARGE_LINEAR
            or x.type.rank != 2
            or self._selection.keeps(node)
            or not np.isfinite(from_bfloat16(narrow)).all()
        ):
            return self.as_floats(weight)
        return self.graph.add_constant(name, narrow)

    def _append(
        self, op: str, inputs: list[Value | None], attrs: Mapping[str, object], node: Node, suffix: str = ""
    ) -> tuple[Value, ...]:
        """Append an operator whose results are named after those of ``node``."""
        outputs = self._builder.append(op, inputs, attrs, name=f"{node.output.name}{suffix}", origin=node.origin)
        new = outputs[0].producer
        assert new is not None
        new.name, new.note = node.name, node.note
        return outputs

    def _max_pool(self, node: Node) -> None:
        x = node.inputs[0]
        assert x is not None
        source = self.as_narrow(x)
        (y,) = self._append("max_pool2d", [source], node.attrs, node, f".{self.suffix}")
        y.live = source.live
        self._narrow[node.output] = y

    def _cat(self, node: Node) -> None:
        sources: list[Value | None] = [self.as_narrow(v) for v in node.inputs if v is not None]
        (y,) = self._append("cat", sources, node.attrs, node, f".{self.suffix}")
        y.live = None if node.output in self._selection.whole else self._mask(node.output.live)
        self._narrow[node.output] = y

    def _stored(self, node: Node, live: Value | None, computed: Value | None) -> tuple[Value | None, Value | None]:
        """Masks of stored and of computed channels.

        Masks only permit to skip, so dropping one is always right. A residual stream is stored whole, a map
        without residual stores what it computes.
        """
        if operand(node, 5) is not None:
            return None, computed if computed is not None else live
        if node.output in self._selection.whole:
            return None, None
        return live, None

    # -- reductions -----------------------------------------------------------------------------------

    def _reduce_pools(self, node: Node) -> None:
        """The reductions that a float convolution computes beside its map."""
        y = node.output
        for kind, old in zip(node.attrs["pools"], node.outputs[1:], strict=True):
            reduced = self._reduce(f"{node.name}.{kind}", y, kind, old.name)
            if reduced is None:
                reduced = self._builder.op("spatial_reduce", self.as_floats(y), kind=kind, name=old.name)
            self._floats[old] = reduced


@dataclass(frozen=True)
class WeightWidths:
    """``bits``: u8[K] by layer, 8 where nothing is said; ``means``: f64[C], the mean of every channel of a map."""

    bits: Mapping[str, np.ndarray]
    means: Mapping[Value, np.ndarray]

    def bias_correction(self, x: Value, weights: np.ndarray, rounded: np.ndarray, node: Node) -> np.ndarray:
        """f64[K]: what rounding narrow weights takes from the mean of each output channel, away from the borders."""
        correction = np.zeros(len(weights))
        bits = self.bits.get(node.name)
        if bits is not None and (bits < 8).any():
            lost = (weights - rounded).sum(axis=(2, 3))
            means = self.means[x].reshape(node.attrs["groups"], -1)
            inputs = means.repeat(len(weights) // len(means), axis=0)
            correction = np.where(bits < 8, (lost * inputs).sum(axis=1), 0)
        return correction


class IntegerRewriting(Rewriting):
    """Maps of u8 and s8 with a scale."""

    suffix = "int8"

    def __init__(
        self,
        graph: Graph,
        selection: Selection,
        scales: Mapping[Value, float],
        widths: WeightWidths | None = None,
    ) -> None:
        super().__init__(graph, selection)
        self._scales = scales  # by representative
        self._widths = widths or WeightWidths({}, {})

    def scale(self, value: Value) -> float:
        return self._scales[self._selection.representative(value)]

    def _narrowed(self, value: Value, source: Value, name: str) -> Value:
        dtype = self._selection.dtypes[value]
        result: Value = self._builder.op("quantize", source, scale=self.scale(value), dtype=dtype, name=name)
        return result

    def _widened(self, value: Value, source: Value, name: str) -> Value:
        result: Value = self._builder.op("dequantize", source, scale=self.scale(value), name=name)
        return result

    def convolution(self, node: Node) -> Value:
        x, weight, bias, gate, shift, residual = (operand(node, i) for i in range(6))
        assert x is not None and weight is not None
        y = node.output
        source = self.as_narrow(x)
        stream = None if residual is None else self.as_narrow(residual)
        y_scale = self.scale(y)
        exact = self._old.constant(weight)
        weights, weight_scales = quantize_weights(exact, node.name, self._widths.bits.get(node.name))
        rounded = weights * weight_scales.reshape(-1, 1, 1, 1)
        biases = self._constant_or_zero(bias, len(weights)) + self._widths.bias_correction(x, exact, rounded, node)
        vectors = {
            "weight": weights,
            "scale": self._vector(weight_scales * self.scale(x) / y_scale, node, "scale"),
            "bias": self._vector(biases / y_scale, node, "bias"),
        }
        constants: list[Value | None] = [
            self.graph.add_constant(f"{node.name}.{what}.int8", array) for what, array in vectors.items()
        ]
        shift_copy = None if shift is None else self._scaled_shift(shift, y_scale, node)
        gate_copy = None if gate is None else self.as_floats(gate)
        masks = self._mask(y.live), self._mask(node.computed)
        attrs = {
            **{name: node.attrs[name] for name in ("stride", "padding", "dilation", "groups")},
            "dtype": self._selection.dtypes[y],
            "residual_scale": 0.0 if residual is None else float(np.float32(self.scale(residual) / y_scale)),
            "inner_low": node.attrs["inner"][0] if residual is not None else -math.inf,
            "inner_high": float(np.float32(node.attrs["inner"][1] / y_scale)),
        }
        inputs = [source, *constants, gate_copy, shift_copy, stream]
        while inputs[-1] is None:
            inputs.pop()
        (result,) = self._append("quantized_conv2d", inputs, attrs, node, ".int8")
        result.live, computed = self._stored(node, *masks)
        assert result.producer is not None
        result.producer.computed = computed
        return result

    def scaled(self, node: Node, x: Value, factors: np.ndarray, summands: np.ndarray, high: float) -> Value:
        source, channels = self.as_narrow(x), x.type.channels
        y_scale = self.scale(node.output)
        vectors = {
            "weight": np.ones((channels, 1, 1, 1), np.int8),
            "scale": self._vector(factors * self.scale(x) / y_scale, node, "scale"),
            "bias": self._vector(summands / y_scale, node, "bias"),
        }
        constants = [self.graph.add_constant(f"{node.name}.{what}.int8", array) for what, array in vectors.items()]
        attrs = {
            "groups": channels,
            "dtype": self._selection.dtypes[node.output],
            "inner_high": float(np.float32(high / y_scale)),
        }
        return self._append("quantized_conv2d", [source, *constants], attrs, node, ".int8")[0]

    def gated(self, node: Node, x: Value, gate: Value) -> Value:
        channels = x.type.channels
        factor = np.full(channels, self.scale(x) / self.scale(node.output))
        vectors = {
            "weight": np.ones((channels, 1, 1, 1), np.int8),
            "scale": self._vector(factor, node, "scale"),
            "bias": np.zeros(channels, np.float32),
        }
        constants = [self.graph.add_constant(f"{node.name}.{what}.int8", array) for what, array in vectors.items()]
        attrs = {"groups": channels, "dtype": self._selection.dtypes[node.output]}
        return self._append(
            "quantized_conv2d", [self.as_narrow(x), *constants, self.as_floats(gate)], attrs, node, ".int8"
        )[0]

    def _scaled_shift(self, shift: Value, y_scale: float, node: Node) -> Value:
        """The shift in steps of the output; one per image is divided when the program runs."""
        name = f"{node.name}.shift.int8"
        if self._old.is_constant(shift):
            return self.graph.add_constant(name, self._vector(self._old.constant(shift) / y_scale, node, "shift"))
        steps = self._builder.constant(f"{name}.steps", float(np.float32(1 / y_scale)))
        scaled: Value = self._builder.op("mul", self.as_floats(shift), steps, name=name)
        return scaled

    def _constant_or_zero(self, value: Value | None, size: int) -> np.ndarray:
        return np.zeros(size) if value is None else self._old.constant(value).astype(np.float64)

    def _vector(self, values: np.ndarray, node: Node, what: str) -> np.ndarray:
        """float32; magnitudes that float32 holds only as denormals become zero, as the runtime treats them."""
        if not np.isfinite(values).all() or np.abs(values).max() > np.finfo(np.float32).max:
            raise QuantizationError(f"layer {node.name!r}: the {what} leaves the range of float32 when quantized")
        return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values).astype(np.float32)

    def _reduce(self, layer: str, x: Value, kind: str, name: str) -> Value | None:
        """An exact reduction of an integer map; None if there is none of this kind."""
        exact = exact_reduction(kind, self._selection.dtypes[x], math.prod(x.type.shape[2:]))
        if exact is None:
            return None
        reduced: Value = self._builder.op(
            "quantized_spatial_reduce", self._narrow[x], kind=exact, scale=self.scale(x), name=name
        )
        assert reduced.producer is not None
        reduced.producer.name = layer
        return reduced


class Bf16Rewriting(Rewriting):
    """Maps of bfloat16; the operators stay what they are."""

    suffix = "bf16"

    def _narrowed(self, value: Value, source: Value, name: str) -> Value:
        result: Value = self._builder.op("cast", source, dtype="bf16", name=name)
        return result

    def _widened(self, value: Value, source: Value, name: str) -> Value:
        result: Value = self._builder.op("cast", source, dtype="f32", name=name)
        return result

    def convolution(self, node: Node) -> Value:
        x, weight, bias, gate, shift, residual = (operand(node, i) for i in range(6))
        assert x is not None and weight is not None
        array = self._old.constant(weight)
        narrow = to_bfloat16(array)
        if not np.isfinite(from_bfloat16(narrow)).all():
            what = "leave the range of bfloat16" if np.isfinite(array).all() else "are not finite"
            raise QuantizationError(f"layer {node.name!r}: its weights {what}")
        weights = self.graph.add_constant(f"{node.name}.weight.bf16", narrow)
        others = [None if v is None else self.as_floats(v) for v in (bias, gate, shift)]
        stream = None if residual is None else self.as_narrow(residual)
        inputs = [self.as_narrow(x), weights, *others, stream]
        while inputs[-1] is None:
            inputs.pop()
        masks = self._mask(node.output.live), self._mask(node.computed)
        (result,) = self._append("conv2d", inputs, {**node.attrs, "pools": ()}, node, ".bf16")
        result.live, computed = self._stored(node, *masks)
        assert result.producer is not None
        result.producer.computed = computed
        return result

    def scaled(self, node: Node, x: Value, factors: np.ndarray, summands: np.ndarray, high: float) -> Value:
        weights = to_bfloat16(factors.astype(np.float32).reshape(-1, 1, 1, 1))
        if not np.isfinite(from_bfloat16(weights)).all():
            raise QuantizationError(f"layer {node.name!r}: its scales leave the range of bfloat16")
        constants = [
            self.graph.add_constant(f"{node.name}.weight.bf16", weights),
            self.graph.add_constant(f"{node.name}.bias", summands.astype(np.float32)),
        ]
        attrs = {"groups": x.type.channels, "outer": (0.0, high)}
        return self._append("conv2d", [self.as_narrow(x), *constants], attrs, node, ".bf16")[0]

    def gated(self, node: Node, x: Value, gate: Value) -> Value:
        channels = x.type.channels
        ones = to_bfloat16(np.ones((channels, 1, 1, 1), np.float32))
        weights = self.graph.add_constant(f"{node.name}.weight.bf16", ones)
        inputs = [self.as_narrow(x), weights, None, self.as_floats(gate)]
        return self._append("conv2d", inputs, {"groups": channels}, node, ".bf16")[0]

    def _reduce(self, layer: str, x: Value, kind: str, name: str) -> Value | None:
        reduced: Value = self._builder.op("spatial_reduce", self._narrow[x], kind=kind, name=name)
        assert reduced.producer is not None
        reduced.producer.name = layer
        return reduced
