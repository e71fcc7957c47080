"""Small float graphs for quantization tests: residual networks with and without gates."""

from __future__ import annotations

import numpy as np

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Value
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.passes.pipeline import optimize


class Network:
    """Builds a graph layer by layer with random weights."""

    def __init__(self, seed: int, channels: int = 3, size: tuple[int, int] = (12, 12)) -> None:
        self.random = np.random.default_rng(seed)
        self.builder = Builder(Graph())
        self.x = self.builder.graph.add_input("x", TensorType("f32", (BATCH, channels, *size)))

    def weights(self, *shape: int) -> Value:
        fan_in = int(np.prod(shape[1:]))
        array = self.random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        return self.builder.constant("weight", array)

    def bias(self, channels: int) -> Value:
        return self.builder.constant("bias", self.random.normal(0, 0.1, channels).astype(np.float32))

    def conv(self, x: Value, channels: int, name: str, kernel: int = 3, stride: int = 1, groups: int = 1) -> Value:
        weight = self.weights(channels, x.type.channels // groups, kernel, kernel)
        pad = kernel // 2
        result: Value = self.builder.op(
            "conv2d", x, weight, self.bias(channels), name=name, stride=(stride, stride), padding=(pad,) * 4,
            groups=groups,
        )  # fmt: skip
        return result

    def relu(self, x: Value, high: float = np.inf) -> Value:
        result: Value = self.builder.op("relu", x) if high == np.inf else self.builder.op("clamp", x, lo=0.0, hi=high)
        return result

    def gate(self, x: Value, channels: int, valued: bool = False) -> Value:
        """[N, channels, 1, 1]: zero for about half of the channels, decided from x."""
        op = self.builder.op
        pooled = op("spatial_reduce", x, kind="mean")
        score = op("linear", pooled, self.weights(channels, x.type.channels), self.bias(channels))
        gate = (
            op("relu", score) if valued else op("cast", op("gt", score, self.builder.constant("t", 0.0)), dtype="f32")
        )
        result: Value = op("reshape", gate, shape=(BATCH, channels, 1, 1))
        return result

    def mul(self, x: Value, gate: Value) -> Value:
        result: Value = self.builder.op("mul", x, gate)
        return result

    def add(self, x: Value, y: Value) -> Value:
        result: Value = self.builder.op("add", x, y)
        return result

    def finish(self, y: Value, classes: int = 10) -> Graph:
        pooled = self.builder.op("spatial_reduce", y, kind="mean")
        logits = self.builder.op(
            "linear", pooled, self.weights(classes, y.type.channels), self.bias(classes), name="fc"
        )
        return self.close(logits)

    def close(self, *outputs: Value) -> Graph:
        self.builder.graph.outputs = list(outputs)
        return optimize(self.builder.graph, {})


def gated_resnet(seed: int = 0, *, valued: bool = False, size: tuple[int, int] = (12, 12), width: int = 8) -> Graph:
    """Two stages of two basic blocks, conv1 and conv2 gated, a projection shortcut between the stages."""
    net = Network(seed, size=size)
    x = net.relu(net.conv(net.x, width, "stem"))
    for stage, channels in enumerate((width, 2 * width + 3)):
        for block in range(2):
            name = f"layer{stage}.{block}"
            stride = 2 if stage and not block else 1
            y = net.conv(x, channels, f"{name}.conv1", stride=stride)
            y = net.mul(net.relu(y), net.gate(x, channels, valued))
            z = net.mul(net.conv(y, channels, f"{name}.conv2"), net.gate(y, channels, valued))
            shortcut = x if stride == 1 else net.conv(x, channels, f"{name}.shortcut", kernel=1, stride=2)
            x = net.relu(net.add(z, shortcut))
    return net.finish(x)


def inverted_residuals(seed: int = 0, *, gated: bool = True, valued: bool = False) -> Graph:
    """Three blocks as in MobileNetV2: expansion, depthwise, linear projection; all but the first add their input."""
    net = Network(seed, size=(10, 10))
    x = net.relu(net.conv(net.x, 6, "stem", stride=2), 6.0)
    for block in range(3):
        y = net.relu(net.conv(x, 22, f"b{block}.expand", kernel=1), 6.0)
        if gated:
            y = net.mul(y, net.gate(x, 22, valued))
        y = net.relu(net.conv(y, 22, f"b{block}.depthwise", groups=22), 6.0)
        y = net.conv(y, 9, f"b{block}.project", kernel=1)
        x = net.add(x, y) if block else y
    return net.finish(net.relu(net.conv(x, 12, "head", kernel=1), 6.0))


def images(batch: int, graph: Graph, seed: int = 1) -> np.ndarray:
    """Random inputs of the graph's shape."""
    return np.random.default_rng(seed).normal(0, 1, (batch, *graph.inputs[0].type.shape[1:])).astype(np.float32)
