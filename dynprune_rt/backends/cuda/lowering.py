"""From the graph to a plan of steps for the GPU.

A plan holds convolution weights in the layouts that its modes need (`modes` says which there are). Executing it queues
kernels only: no step waits for the device, so that a plan can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from dynprune_rt.backends.cuda import torch_ops, weights
from dynprune_rt.backends.cuda.execution import Execution, stored_as_map
from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import (
    BY_OUTPUT,
    DENSE,
    MAX_CHANNELS,
    MAX_SORT_LENGTH,
    REDUCE_KINDS,
    ChannelSet,
    Epilogue,
)
from dynprune_rt.backends.cuda.modes import Choices, is_gemm, is_vector_conv, output_mask
from dynprune_rt.errors import DeviceError
from dynprune_rt.ir.graph import Graph, Node, Value

Tensor = Any
Run = Callable[[Execution], None]


@dataclass
class Step:
    """One node. ``kernel``: what executes it, by batch. ``releases``: values that nobody reads afterwards."""

    node: Node
    kernel: Callable[[int], str]
    run: Run
    releases: list[Value] = field(default_factory=list)


class CudaPlan:
    """A graph prepared for one device, executed as ``choices`` say."""

    def __init__(self, graph: Graph, kernels: Kernels, choices: Choices, cache: DeviceConstants) -> None:
        self.graph, self.kernels, self.choices = graph, kernels, choices
        self.constants, self._cache = cache.plain, cache
        self.steps = [_lower(node, graph, kernels, choices, cache) for node in graph.nodes]
        self.products = [node for node in graph.nodes if is_gemm(node)]
        self.upload(1)
        _plan_releases(self.steps, graph)

    def upload(self, batch: int) -> None:
        """Bring the weights that the modes for this batch need to the device, which a capture cannot do."""
        for node in self.products:
            self._cache.weights(_weight(node), self.choices.mode(node, batch).layout)

    def execute(
        self, inputs: Sequence[Tensor], observe: Callable[[Step, Execution], None] | None = None
    ) -> list[Tensor]:
        """Queue the whole network for inputs on the device; returns its outputs, [N, ...] each.

        ``observe`` is called before each step, and after it has queued.
        """
        batch, choices = int(inputs[0].shape[0]), self.choices
        state = Execution(self.kernels, self.constants, batch, choices.skip, choices.packed)
        for value, tensor in zip(self.graph.inputs, inputs, strict=True):
            state.store(value, tensor)
        for step in self.steps:
            if observe is not None:
                observe(step, state)
            step.run(state)
            if observe is not None:
                observe(step, state)
            for value in step.releases:
                state.release(value)
        return [state.output(value) for value in self.graph.outputs]


class DeviceConstants:
    """The graph's constants on the device: plain ones, and convolution weights in each layout that a plan uses."""

    def __init__(self, graph: Graph, kernels: Kernels) -> None:
        self.graph, self.kernels = graph, kernels
        self._weights: dict[tuple[Value, bool], Tensor] = {}
        self.plain: dict[Value, Tensor] = {}
        for node in graph.nodes:
            for position, value in enumerate(node.inputs):
                if value is not None and not (node.op == "conv2d" and position == 1):
                    self._upload(value)
            for value in node.operands():
                if value.type.dtype == "bool":
                    self._upload(value)
        for value in graph.outputs:
            self._upload(value)

    def _upload(self, value: Value) -> None:
        if self.graph.is_constant(value) and value not in self.plain:
            array = np.array(self.graph.constant(value))  # a copy: the artifact's arrays are read-only
            self.plain[value] = torch.from_numpy(array).to(self.kernels.device)

    def weights(self, value: Value, layout: int) -> Tensor:
        key = (value, layout == BY_OUTPUT)  # all others read the same rows
        if key not in self._weights:
            array, dtype = self.graph.constant(value), self.kernels.dtype
            rows = weights.by_output(array, dtype) if layout == BY_OUTPUT else weights.by_input(array, dtype)
            self._weights[key] = rows.to(self.kernels.device)
        return self._weights[key]

    def grouped_weights(self, value: Value) -> Tensor:
        return weights.grouped(self.graph.constant(value)).to(self.kernels.device)

    def matrix(self, value: Value) -> Tensor:
        """The weights of a 1x1 convolution as a matrix fp32 [K, C]."""
        array = np.array(self.graph.constant(value), np.float32)
        return torch.from_numpy(array.reshape(array.shape[0], -1)).to(self.kernels.device)


def _plan_releases(steps: list[Step], graph: Graph) -> None:
    last: dict[Value, Step] = {}
    for step in steps:
        for value in (*step.node.operands(), *step.node.outputs):
            last[value] = step
    for value in graph.outputs:
        last.pop(value, None)
        if value.live is not None:
            last.pop(value.live, None)
    for value, step in last.items():
        step.releases.append(value)


def _operand(node: Node, position: int) -> Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _input(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _weight(node: Node) -> Value:
    value = node.inputs[1]
    assert value is not None
    return value


def _lower(node: Node, graph: Graph, kernels: Kernels, choices: Choices, cache: DeviceConstants) -> Step:
    if any(v.type.dtype == "bf16" for v in (*node.operands(), *node.outputs)):
        raise DeviceError(
            f"layer {node.name} works on bf16 values, as programs made for the CPU's bf16 do; load the float "
            "program with precision='bf16', or run this one on the CPU"
        )
    if node.op == "conv2d":
        return _lower_conv(node, kernels, choices, cache)
    for rule in (_lower_pool, _lower_spatial_reduce, _lower_vector):
        step = rule(node, kernels)
        if step is not None:
            return step
    if node.op not in torch_ops.TORCH_OPS:
        where = f" ({node.origin})" if node.origin else ""
        way_out = "; an int8 program runs on the CPU" if "quantize" in node.op else ""
        raise DeviceError(f"the GPU has no kernel for operator {node.op} of layer {node.name}{where}{way_out}")

    def run(state: Execution) -> None:
        operands = [None if v is None else state.plain(v) for v in node.inputs]
        for value, result in zip(node.outputs, torch_ops.evaluate(node, operands), strict=True):
            state.store(value, result)

    return Step(node, lambda batch: "torch", run)


# ---- convolutions -----------------------------------------------------------------------------


def _lower_conv(node: Node, kernels: Kernels, choices: Choices, cache: DeviceConstants) -> Step:
    x, weight = _input(node), _weight(node)
    attrs, out = node.attrs, node.output
    channels, outputs = x.type.channels, out.type.channels
    if max(channels, outputs) > MAX_CHANNELS:
        raise DeviceError(f"layer {node.name} has {max(channels, outputs)} channels; the GPU's limit is {MAX_CHANNELS}")
    kernel, groups = weight.type.shape[2:], attrs["groups"]
    if is_vector_conv(node):
        return _lower_vector_conv(node, cache.matrix(weight))
    geometry = (*kernel, *attrs["stride"], *attrs["padding"][:2], *attrs["dilation"])
    grouped = cache.grouped_weights(weight) if groups != 1 else None

    def run(state: Execution) -> None:
        computed = computed_set(node, choices, state)
        stored = state.stored(out)
        y = kernels.new_map(state.batch, outputs, out.type.shape[2:], stored)
        epilogue = _epilogue(node, state)
        reductions = None
        if grouped is None:
            mode = choices.mode(node, state.batch)
            table = cache.weights(weight, mode.layout)
            reductions = kernels.group_results(y, attrs["pools"], mode, computed)
            kernels.conv_gemm(state.map(x), y, computed, table, mode, geometry, epilogue, reductions)
        else:
            kernels.conv_direct(state.map(x), y, computed, grouped, groups, geometry, epilogue)
        if computed is not None and computed is not stored:
            kernels.pass_through(y, computed, epilogue)  # channels that are stored but not computed
        state.store(out, y)
        for value, kind in zip(node.outputs[1:], attrs["pools"], strict=True):
            state.store(value, kernels.spatial_reduce(y, kind, reductions))

    if grouped is not None:
        return Step(node, lambda batch: "conv_direct", run)
    return Step(node, lambda batch: str(choices.mode(node, batch)), run)


def computed_set(node: Node, choices: Choices, state: Execution) -> ChannelSet | None:
    """The outputs that a convolution computes; None = all, whatever its masks say."""
    if is_vector_conv(node) or not choices.problem(node).gated:
        return None
    if is_gemm(node) and choices.mode(node, state.batch).layout == DENSE:
        return None
    return state.set(output_mask(node))


def _epilogue(node: Node, state: Execution) -> Epilogue:
    bias, gate, shift = (
        None if v is None else state.plain(v).contiguous() for v in (_operand(node, i) for i in (2, 3, 4))
    )
    residual = _operand(node, 5)
    attrs = node.attrs
    return Epilogue(
        bias, gate, shift, None if residual is None else state.map(residual), attrs["inner"], attrs["outer"]
    )


def _lower_vector_conv(node: Node, matrix: Tensor) -> Step:
    """A 1x1 convolution of a 1x1 map is a linear layer, in fp32."""

    def run(state: Execution) -> None:
        bias, gate, shift, residual = (
            None if v is None else state.plain(v) for v in (_operand(node, i) for i in (2, 3, 4, 5))
        )
        y = state.kernels.linear(state.plain(_input(node)).flatten(1), matrix, bias, node.attrs["inner"])
        if gate is not None:
            y = y * gate
        if shift is not None:
            y = y + shift
        if residual is not None:
            y = y + residual.flatten(1)
        y = y.clamp(*node.attrs["outer"])[:, :, None, None]
        state.store(node.output, y)
        for value, kind in zip(node.outputs[1:], node.attrs["pools"], strict=True):
            state.store(value, torch_ops.TORCH_OPS["spatial_reduce"]([y], {"kind": kind}))

    return Step(node, lambda batch: "linear", run)


# ---- pools and vectors ------------------------------------------------------------------------

_POOLS: Final = {
    "max_pool2d": "max",
    "avg_pool2d": "avg",
    "adaptive_max_pool2d": "max",
    "adaptive_avg_pool2d": "avg",
}


def _lower_pool(node: Node, kernels: Kernels) -> Step | None:
    if node.op not in _POOLS or not stored_as_map(_input(node)):
        return None
    x, out, attrs, kind = _input(node), node.output, node.attrs, _POOLS[node.op]
    if attrs.get("output") == (1, 1):

        def reduce(state: Execution) -> None:
            total = kernels.spatial_reduce(state.map(x), "mean" if kind == "avg" else "max")
            state.store(out, total[:, :, None, None])

        return Step(node, lambda batch: "spatial_reduce", reduce)
    window: tuple[int, ...] = ()
    if "kernel" in attrs:
        window = (*attrs["kernel"], *attrs["stride"], *attrs["padding"], *attrs.get("dilation", (1, 1)))

    def run(state: Execution) -> None:
        y = kernels.new_map(state.batch, out.type.channels, out.type.shape[2:], state.stored(out))
        include_pad = attrs.get("count_include_pad", False)
        kernels.pool2d(state.map(x), y, kind, window, include_pad, attrs.get("divisor", 0))
        state.store(out, y)

    return Step(node, lambda batch: "pool2d", run)


def _lower_spatial_reduce(node: Node, kernels: Kernels) -> Step | None:
    x = _input(node)
    if node.op != "spatial_reduce" or not stored_as_map(x):
        return None

    def run(state: Execution) -> None:
        state.store(node.output, kernels.spatial_reduce(state.map(x), node.attrs["kind"]))

    return Step(node, lambda batch: "spatial_reduce", run)


def _lower_vector(node: Node, kernels: Kernels) -> Step | None:
    """Linear layers, reductions and sorting of fp32: in a fixed order, whatever the batch."""
    x, attrs = node.inputs[0], node.attrs
    if x is None or x.type.dtype != "f32":
        return None
    if node.op == "linear":
        weight, bias = node.inputs[1], _operand(node, 2)
        assert weight is not None

        def linear(state: Execution) -> None:
            vector = None if bias is None else state.plain(bias)
            state.store(node.output, kernels.linear(state.plain(x), state.plain(weight), vector, attrs["inner"]))

        return Step(node, lambda batch: "linear", linear)
    if node.op == "reduce" and attrs["kind"] in REDUCE_KINDS:

        def reduce(state: Execution) -> None:
            total = kernels.reduce(state.plain(x), attrs["kind"], attrs["dims"], attrs["keepdim"])
            state.store(node.output, total)

        return Step(node, lambda batch: "reduce", reduce)
    if node.op in ("topk", "sort", "kthvalue") and x.type.shape[attrs["dim"]] <= MAX_SORT_LENGTH:
        return Step(node, lambda batch: "sort", _sorting(node, x, kernels))
    return None


def _sorting(node: Node, x: Value, kernels: Kernels) -> Run:
    attrs = node.attrs
    dim = attrs["dim"]
    keep = attrs["k"] if node.op != "sort" else x.type.shape[dim]
    descending = attrs["largest"] if node.op == "topk" else node.op == "sort" and attrs["descending"]

    def run(state: Execution) -> None:
        results = kernels.sort(state.plain(x), dim, keep, descending)
        if node.op == "kthvalue":  # the k-th smallest is the last of the first k
            results = tuple(t.narrow(dim, keep - 1, 1) for t in results)
            if not attrs["keepdim"]:
                results = tuple(t.squeeze(dim) for t in results)
        for value, result in zip(node.outputs, results, strict=True):
            state.store(value, result)

    return run


def executed_channels(step: Step, choices: Choices, state: Execution) -> tuple[Tensor | None, Tensor | None]:
    """Masks [N, C] and [N, K] of the channels that a convolution reads and computes; None = all."""
    live, computed = state.stored(_input(step.node)), computed_set(step.node, choices, state)
    return (None if live is None else live.mask), (None if computed is None else computed.mask)
