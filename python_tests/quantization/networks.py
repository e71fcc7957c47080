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


def norm_gated() -> Graph:
    """Instance-wise sparsity: gates that mask the very map whose norms decide."""
    net = Network(12)
    op = net.builder.op
    x = net.relu(net.conv(net.x, 10, "stem"))
    for block, kind in enumerate(("l2", "sum_squares", "mean_abs")):
        norms = op("spatial_reduce", x, kind=kind)
        mean = op("reduce", norms, kind="mean", dims=(1,), keepdim=True)
        mask = op("cast", op("ge", norms, op("mul", mean, net.builder.constant("share", 0.6))), dtype="f32")
        masked = net.mul(x, op("reshape", mask, shape=(BATCH, 10, 1, 1)))
        x = net.relu(net.conv(masked, 10, f"conv{block}"))
    return net.finish(x)


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


def fire_modules(seed: int = 0, *, gated: bool = True) -> Graph:
    """Two modules as in SqueezeNet: a squeezed map, then 1x1 and 3x3 convolutions of it side by side, gated apart."""
    net = Network(seed, size=(9, 9))
    x = net.relu(net.conv(net.x, 10, "stem"))
    for block in range(2):
        squeezed = net.relu(net.conv(x, 5, f"f{block}.squeeze", kernel=1))
        parts = []
        for kernel, channels in ((1, 7), (3, 10)):
            y = net.relu(net.conv(squeezed, channels, f"f{block}.expand{kernel}", kernel=kernel))
            parts.append(net.mul(y, net.gate(squeezed, channels)) if gated else y)
        x = net.builder.op("cat", *parts, dim=1)
    return net.finish(net.relu(net.conv(x, 12, "head", kernel=1)))


def dense_block(seed: int = 0, *, gated: bool = True) -> Graph:
    """Three layers as in DenseNet (norm, rectifier, 1x1, 3x3, concatenation), with a transition after the second."""
    net = Network(seed, size=(10, 10))

    def normalized(x: Value) -> Value:
        channels = x.type.channels
        scale = net.builder.constant("scale", net.random.uniform(0.5, 1.5, channels).astype(np.float32))
        return net.relu(net.builder.op("affine", x, scale, net.bias(channels)))

    x = net.conv(net.x, 7, "stem")
    for layer in range(3):
        y = net.relu(net.conv(normalized(x), 12, f"l{layer}.conv1", kernel=1))
        if gated:
            y = net.mul(y, net.gate(x, 12))
        y = net.conv(y, 6, f"l{layer}.conv2")
        if gated:
            y = net.mul(y, net.gate(x, 6))
        x = net.builder.op("cat", x, y, dim=1)
        if layer == 1:
            x = net.conv(normalized(x), 9, "transition", kernel=1)
            x = net.builder.op("avg_pool2d", x, kernel=(2, 2), stride=(2, 2))
    return net.finish(normalized(x))


def grouped_blocks(seed: int = 0, *, gated: bool = True, valued: bool = False) -> Graph:
    """Bottlenecks as in ResNeXt, 20 channels in 4 groups, one strided; then groups with more outputs than inputs."""
    net = Network(seed, size=(14, 14))
    x = net.relu(net.conv(net.x, 16, "stem"))
    for block in range(3):
        stride = 2 if block == 1 else 1
        y = net.relu(net.conv(x, 20, f"b{block}.conv1", kernel=1))
        if gated:
            y = net.mul(y, net.gate(x, 20, valued))
        y = net.relu(net.conv(y, 20, f"b{block}.conv2", stride=stride, groups=4))
        if gated:
            y = net.mul(y, net.gate(y, 20, valued))
        y = net.conv(y, 16, f"b{block}.conv3", kernel=1)
        x = net.relu(net.add(y, x) if stride == 1 else y)
    return net.finish(net.relu(net.conv(x, 24, "expansion", groups=8)))


def images(batch: int, graph: Graph, seed: int = 1) -> np.ndarray:
    """Random inputs of the graph's shape."""
    return np.random.default_rng(seed).normal(0, 1, (batch, *graph.inputs[0].type.shape[1:])).astype(np.float32)
