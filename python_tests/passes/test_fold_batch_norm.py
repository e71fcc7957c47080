"""Scales and shifts disappear into weights, and nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.fold_batch_norm import fold_batch_norm
from python_tests.passes.networks import Network, assert_close, inputs_for


def folded_ops(net: Network, *outputs: Value) -> list[str]:
    """Operators after folding; the outputs must not change."""
    graph = net.graph
    graph.outputs = list(outputs)
    feed = inputs_for(graph)
    expected = interpreter.run(graph, feed)
    fold_batch_norm(graph)
    remove_dead_code(graph)
    verify(graph)
    assert_close(interpreter.run(graph, feed), expected)
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_norm_into_a_convolution(bias: bool, groups: int) -> None:
    net = Network()
    assert folded_ops(net, net.batch_norm(net.conv(net.x, 8, "conv", groups=groups, bias=bias))) == ["conv2d"]


def test_batch_norm_into_a_linear_layer() -> None:
    net = Network()
    assert folded_ops(net, net.batch_norm(net.linear(net.pooled(net.x), 5))) == ["spatial_reduce", "linear"]


@pytest.mark.parametrize(("op", "constant_first"), [(op, first) for op in ("add", "sub", "mul") for first in (0, 1)])
@pytest.mark.parametrize("shape", [(), (6, 1, 1), (1, 6, 1, 1), (1, 1, 1)])
def test_arithmetic_with_constants(op: str, constant_first: int, shape: tuple[int, ...]) -> None:
    net = Network()
    operands = [net.conv(net.x, 6, "conv"), net.const(net.rng.uniform(0.5, 1.5, shape))]
    assert folded_ops(net, net.op(op, *operands[:: -1 if constant_first else 1])) == ["conv2d"]


def test_division_by_a_constant_but_not_of_one() -> None:
    net = Network()
    y = net.op("div", net.conv(net.x, 6, "conv"), net.const(np.full((6, 1, 1), 3.0)))
    assert folded_ops(net, net.op("div", net.const(2.0), y)) == ["conv2d", "div"]


def test_division_by_zero_stays() -> None:
    net = Network()
    y = net.op("div", net.conv(net.x, 2, "conv"), net.const([[[1.0]], [[0.0]]]))
    net.graph.outputs = [y]
    fold_batch_norm(net.graph)
    assert [n.op for n in net.graph.nodes] == ["conv2d", "div"]


def test_affine_after_affine() -> None:
    net = Network()
    y = net.batch_norm(net.batch_norm(net.op("sub", net.relu(net.x), net.const(0.5))))
    assert folded_ops(net, y) == ["relu", "affine"]


def test_through_a_gate_the_scale_goes_in_and_the_shift_stays() -> None:
    net = Network()
    t = net.batch_norm(net.mul(net.conv(net.x, 6, "conv"), net.op("relu", net.logits("gate", 6))))
    assert sorted(folded_ops(net, t)) == ["add", "conv2d", "mul", "relu", "reshape"]


def test_through_a_gate_without_shift_nothing_stays() -> None:
    net = Network()
    t = net.mul(net.conv(net.x, 6, "conv"), net.op("relu", net.logits("gate", 6)))
    ops = folded_ops(net, net.op("mul", t, net.const(net.rng.uniform(0.5, 1.5, (6, 1, 1)))))
    assert sorted(ops) == ["conv2d", "mul", "relu", "reshape"]


def test_a_second_reader_prevents_folding() -> None:
    net = Network()
    y = net.conv(net.x, 4, "conv")
    assert folded_ops(net, net.add(net.batch_norm(y), y)) == ["conv2d", "affine", "add"]


def test_an_output_is_not_folded_away() -> None:
    net = Network()
    y = net.conv(net.x, 4, "conv")
    assert folded_ops(net, net.batch_norm(y), y) == ["conv2d", "affine"]


def test_vectors_along_other_dimensions_stay() -> None:
    net = Network(channels=4, size=6)
    y = net.op("mul", net.conv(net.x, 6, "conv"), net.const(net.rng.standard_normal((6, 1))))  # one factor per row
    assert folded_ops(net, y) == ["conv2d", "mul"]


def test_a_constant_that_enlarges_the_map_stays() -> None:
    net = Network()
    y = net.op("add", net.conv(net.x, 1, "conv"), net.const(net.rng.standard_normal((5, 1, 1))))
    assert folded_ops(net, y) == ["conv2d", "add"]


def test_weights_that_would_overflow_stay_as_they_are() -> None:
    net = Network()
    huge = net.const(np.full(4, 1e38))
    y = net.op("affine", net.conv(net.x, 4, "conv"), huge, huge)
    y = net.op("affine", y, huge, huge)
    net.graph.outputs = [y]
    fold_batch_norm(net.graph)
    constants = [net.graph.constant(v) for n in net.graph.nodes for v in n.inputs if v and net.graph.is_constant(v)]
    assert all(np.isfinite(array).all() for array in constants)
