"""What a convolution absorbs, in which order, and what it must leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.types import BATCH
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.fuse_epilogues import compose, fuse_epilogues
from python_tests.passes.networks import Network, assert_close, find, inputs_for

BIAS, GATE, SHIFT, RESIDUAL = 2, 3, 4, 5
RELU = (0.0, math.inf)


def fused_ops(net: Network, *outputs: Value) -> list[str]:
    """Operators after fusion, in no particular order; the outputs must not change."""
    graph = net.graph
    graph.outputs = list(outputs)
    feed = inputs_for(graph)
    expected = interpreter.run(graph, feed)
    fuse_epilogues(graph)
    graph.sort()
    remove_dead_code(graph)
    verify(graph)
    assert_close(interpreter.run(graph, feed), expected)
    return sorted(node.op for node in graph.nodes)


def operand(net: Network, name: str, position: int) -> Value | None:
    inputs = find(net.graph, name).inputs
    return inputs[position] if position < len(inputs) else None


def test_everything_in_order() -> None:
    net = Network()
    gate, residual = net.logits("gate", 6), net.conv(net.x, 6, "shortcut")
    y = net.mul(net.relu(net.conv(net.x, 6, "conv")), gate)
    y = net.add(net.op("add", y, net.const(net.rng.standard_normal((6, 1, 1)))), residual)
    y = net.op("clamp", y, lo=0.0, hi=6.0)
    assert fused_ops(net, y, net.pooled(y, "mean"), net.pooled(y, "max")) == ["conv2d", "conv2d"]
    conv = find(net.graph, "conv")
    assert (conv.attrs["inner"], conv.attrs["outer"], conv.attrs["pools"]) == (RELU, (0.0, 6.0), ("mean", "max"))
    assert conv.inputs[GATE] is gate
    assert conv.inputs[RESIDUAL] is find(net.graph, "shortcut").output
    assert operand(net, "conv", SHIFT) is not None


def test_relu_alone_is_inner() -> None:
    net = Network()
    assert fused_ops(net, net.relu(net.conv(net.x, 6, "conv"))) == ["conv2d"]
    assert find(net.graph, "conv").attrs["inner"] == RELU


def test_relu_behind_a_gate_is_outer() -> None:
    net = Network()
    y = net.relu(net.mul(net.conv(net.x, 6, "conv"), net.logits("gate", 6)))
    assert fused_ops(net, y) == ["conv2d"]
    conv = find(net.graph, "conv")
    assert conv.attrs["inner"] == (-math.inf, math.inf) and conv.attrs["outer"] == RELU


def test_a_second_gate_stays() -> None:
    net = Network()
    y = net.mul(net.conv(net.x, 6, "conv"), net.logits("first", 6))
    assert fused_ops(net, net.mul(y, net.logits("second", 6))) == ["conv2d", "mul", "reshape"]


def test_a_gate_on_the_whole_map_is_expanded() -> None:
    net = Network()
    y = net.mul(net.conv(net.x, 6, "conv"), net.logits("gate", 1))
    assert fused_ops(net, y) == ["conv2d", "expand"]


def test_expansions_over_the_plane_are_stripped() -> None:
    net = Network()
    gate = net.op("interpolate", net.as_map(net.logits("gate", 1)), size=(6, 6), mode="nearest")
    y = net.op("mul", net.conv(net.x, 6, "conv"), net.op("expand", gate, shape=(BATCH, 6, 6, 6)))
    assert fused_ops(net, y) == ["conv2d", "expand"]


@pytest.mark.parametrize("inverted", [False, True])
def test_where_with_zero_is_a_gate(inverted: bool) -> None:
    net = Network()
    condition = net.as_map(net.compare("ge", net.logits("gate", 6), 0.0))
    branches = [net.conv(net.x, 6, "conv"), net.const(0.0)]
    y = net.op("where", condition, *branches[:: -1 if inverted else 1])
    assert fused_ops(net, y) == ["cast", "conv2d", "ge", *["logical_not"] * inverted]


def test_where_with_another_constant_stays() -> None:
    net = Network()
    condition = net.as_map(net.compare("ge", net.logits("gate", 6), 0.0))
    y = net.op("where", condition, net.conv(net.x, 6, "conv"), net.const(0.5))
    assert "where" in fused_ops(net, y)


def test_masks_over_pixels_stay() -> None:
    net = Network()
    y = net.op("mul", net.conv(net.x, 6, "conv"), net.conv(net.x, 1, "mask"))
    assert fused_ops(net, y) == ["conv2d", "conv2d", "mul"]


def test_a_gate_that_reads_the_map_stays() -> None:
    net = Network()
    t = net.conv(net.x, 6, "conv")
    assert fused_ops(net, net.mul(t, net.pooled(t, "max"))) == ["conv2d", "mul", "reshape"]


def test_an_intermediate_output_is_not_absorbed() -> None:
    net = Network()
    t = net.conv(net.x, 6, "conv")
    assert fused_ops(net, net.relu(t), t) == ["conv2d", "relu"]


@pytest.mark.parametrize("shortcut_first", [False, True])
def test_the_gated_branch_takes_the_shortcut_as_its_residual(shortcut_first: bool) -> None:
    net = Network()
    x = net.relu(net.conv(net.x, 6, "stem"))
    branch = net.mul(net.conv(x, 6, "conv"), net.logits("gate", 6))
    shortcut = net.conv(net.relu(net.conv(x, 6, "deep")), 6, "shortcut")
    y = net.add(*[branch, shortcut][:: -1 if shortcut_first else 1])
    assert fused_ops(net, net.relu(y)) == ["conv2d"] * 4
    assert operand(net, "conv", RESIDUAL) is find(net.graph, "shortcut").output


def test_of_two_plain_branches_the_deeper_takes_the_other() -> None:
    net = Network()
    x = net.relu(net.conv(net.x, 6, "stem"))
    deep = net.conv(net.relu(net.conv(x, 6, "conv1")), 6, "conv2")
    y = net.add(net.conv(x, 6, "shortcut", kernel=1), deep)
    assert fused_ops(net, net.relu(y)) == ["conv2d"] * 4
    assert operand(net, "conv2", RESIDUAL) is find(net.graph, "shortcut").output
    assert operand(net, "shortcut", RESIDUAL) is None


def test_a_sum_with_itself_stays() -> None:
    net = Network()
    t = net.conv(net.x, 6, "conv")
    assert fused_ops(net, net.add(t, t)) == ["add", "conv2d"]


def test_an_offset_per_image_is_a_shift() -> None:
    net = Network()
    y = net.mul(net.conv(net.x, 6, "conv"), net.logits("gate", 6))
    offset = net.logits("offset", 6)
    assert fused_ops(net, net.relu(net.add(y, net.as_map(offset)))) == ["conv2d"]
    assert operand(net, "conv", SHIFT) is offset


def test_pools_of_one_kind_are_taken_once() -> None:
    net = Network()
    t = net.relu(net.conv(net.x, 6, "conv"))
    assert fused_ops(net, net.pooled(t, "mean"), net.pooled(t, "mean"), net.pooled(t, "l2")) == [
        "conv2d",
        "spatial_reduce",
    ]
    assert find(net.graph, "conv").attrs["pools"] == ("mean", "l2")


def test_linear_takes_clamps() -> None:
    net = Network()
    y = net.op("clamp", net.relu(net.linear(net.pooled(net.x), 5, "fc")), lo=-1.0, hi=0.5)
    assert fused_ops(net, y) == ["linear", "spatial_reduce"]
    assert find(net.graph, "fc").attrs["inner"] == (0.0, 0.5)


bounds = st.tuples(st.floats(-5, 5), st.floats(-5, 5)).map(lambda pair: (min(pair), max(pair)))


@given(bounds, bounds, st.floats(-10, 10))
def test_composed_clamps(first: tuple[float, float], then: tuple[float, float], x: float) -> None:
    low, high = compose(first, then)
    assert low <= high
    assert np.clip(x, low, high) == np.clip(np.clip(x, *first), *then)
