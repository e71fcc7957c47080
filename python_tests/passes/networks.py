"""Small gated networks written with the IR builder, and the check that passes keep what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.pipeline import optimize

#: Relative to the largest output: folding changes the order of float32 operations.
TOLERANCE = 1e-5


class Network:
    """A graph under construction. Gates may be driven by further inputs, so that tests choose the masks."""

    def __init__(self, channels: int = 4, size: int = 6, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = Builder()
        self.x = self.graph.add_input("x", TensorType("f32", (BATCH, channels, size, size)))

    @property
    def graph(self) -> Graph:
        return self.builder.graph

    def op(self, op: str, *inputs: Value | None, **attrs: Any) -> Any:
        return self.builder.op(op, *inputs, **attrs)

    def const(self, array: Any, dtype: type = np.float32) -> Value:
        return self.builder.constant("c", np.asarray(array, dtype))

    def weights(self, *shape: int) -> np.ndarray:
        fan_in = max(1, int(np.prod(shape[1:])))
        return (self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    def vector(self, length: int) -> Value:
        return self.const(self.rng.standard_normal(length) * 0.5)

    # -- layers -----------------------------------------------------------------------------------

    def conv(
        self, x: Value, out: int, name: str, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> Value:
        weight = self.const(self.weights(out, x.type.channels // groups, kernel, kernel))
        result: Value = self.op(
            "conv2d",
            x,
            weight,
            self.vector(out) if bias else None,
            stride=(stride, stride),
            padding=(kernel // 2,) * 4,
            groups=groups,
            name=name,
        )
        return result

    def batch_norm(self, x: Value, name: str = "bn", shift: Any = None) -> Value:
        scale = self.const(self.rng.uniform(0.5, 1.5, x.type.channels))
        offset = self.vector(x.type.channels) if shift is None else self.const(np.broadcast_to(shift, x.type.channels))
        result: Value = self.op("affine", x, scale, offset, name=name)
        return result

    def relu(self, x: Value, name: str = "relu") -> Value:
        result: Value = self.op("relu", x, name=name)
        return result

    def pooled(self, x: Value, kind: str = "mean", name: str = "pool") -> Value:
        result: Value = self.op("spatial_reduce", x, kind=kind, name=name)
        return result

    def linear(self, x: Value, out: int, name: str = "fc") -> Value:
        weight = self.const(self.weights(out, x.type.channels))
        result: Value = self.op("linear", x, weight, self.vector(out), name=name)
        return result

    def as_map(self, vector: Value, name: str = "") -> Value:
        """[N, C] as [N, C, 1, 1]."""
        result: Value = self.op("reshape", vector, shape=(BATCH, vector.type.channels, 1, 1), name=name)
        return result

    # -- gates ------------------------------------------------------------------------------------

    def logits(self, name: str, channels: int) -> Value:
        """An input [N, channels] that decides about a gate."""
        return self.graph.add_input(name, TensorType("f32", (BATCH, channels)))

    def saliency(self, source: Value, channels: int, name: str) -> Value:
        """A gate program that reads a map: relu of a linear layer on pooled features."""
        return self.relu(self.linear(self.pooled(source, name=f"{name}.pool"), channels, f"{name}.fc"), f"{name}.relu")

    def compare(self, op: str, a: Value, b: float, name: str = "") -> Value:
        result: Value = self.op(op, a, self.const(b), name=name)
        return result

    def binary(self, logits: Value, name: str) -> Value:
        """logits >= 0 as 0.0 or 1.0."""
        result: Value = self.op("cast", self.compare("ge", logits, 0.0, f"{name}.ge"), dtype="f32", name=name)
        return result

    def mul(self, x: Value, gate: Value, name: str = "mul") -> Value:
        if gate.type.rank == 2:
            gate = self.as_map(gate)
        result: Value = self.op("mul", x, gate, name=name)
        return result

    def add(self, a: Value, b: Value, name: str = "add") -> Value:
        result: Value = self.op("add", a, b, name=name)
        return result

    def shuffled(self, x: Value, index: Any, name: str = "shuffle") -> Value:
        result: Value = self.op("index_select", x, self.const(index, np.int64), dim=1, name=name)
        return result


#: Images per run: the first has every gate driven by an input closed, the second open, the others mixed.
IMAGES = 4


def inputs_for(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for value in graph.inputs:
        array = rng.standard_normal((IMAGES, *value.type.shape[1:])).astype(np.float32)
        if value.type.rank == 2:
            array[0], array[1] = -np.abs(array[0]), np.abs(array[1])
        arrays[value.name] = array
    return arrays


def assert_close(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale)


def optimized(network: Network, *outputs: Value, seeds: int = 3) -> dict[str, Any]:
    """Optimize the network and check that it computes the same, with masks ignored and obeyed."""
    graph = network.graph
    graph.outputs = list(outputs)
    verify(graph)
    feeds = [inputs_for(graph, seed) for seed in range(seeds)]
    expected = [interpreter.run(graph, feed) for feed in feeds]
    report: dict[str, Any] = {}
    optimize(graph, report)
    for feed, outputs_before in zip(feeds, expected, strict=True):
        assert_close(interpreter.run(graph, feed), outputs_before)
        assert_close(interpreter.run(graph, feed, honour_live=True), outputs_before)
    return report


def find(graph: Graph, name: str) -> Node:
    """The convolution or linear node of this name."""
    (node,) = [n for n in graph.nodes if n.name == name and n.op in ("conv2d", "linear")]
    return node


def mask_of(graph: Graph, mask: Value | None, seed: int = 0) -> np.ndarray | None:
    """The mask's bits [N, C] for `inputs_for(graph, seed)`."""
    return None if mask is None else interpreter.trace(graph, inputs_for(graph, seed))[mask.name]


def layer(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [entry for entry in report["layers"] if entry["name"] == name]
    assert isinstance(found, dict)
    return found
