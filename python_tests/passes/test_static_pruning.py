"""Channels that are gone for every image go for good, and nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.types import BATCH
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.static_pruning import prune_static_channels
from python_tests.passes.networks import Network, assert_close, find, inputs_for

BITS = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])


def pruned(net: Network, *outputs: Value) -> dict[str, int]:
    graph = net.graph
    graph.outputs = list(outputs)
    feed = inputs_for(graph)
    expected = interpreter.run(graph, feed)
    removed = prune_static_channels(graph)
    remove_dead_code(graph)
    verify(graph)
    assert_close(interpreter.run(graph, feed), expected)
    return removed


def widths(net: Network, *names: str) -> list[tuple[int, ...]]:
    """Weight shapes [K, C/g] of convolutions."""
    weights = [find(net.graph, name).inputs[1] for name in names]
    return [w.type.shape[:2] for w in weights if w is not None]


def masked(net: Network, x: Value, bits: np.ndarray = BITS) -> Value:
    result: Value = net.op("mul", x, net.const(bits.reshape(1, -1, 1, 1)))
    return result


def test_a_static_mask_cuts_producer_and_consumer() -> None:
    net = Network()
    t = masked(net, net.relu(net.conv(net.x, 6, "conv1")))
    assert pruned(net, net.conv(t, 5, "conv2")) == {"channels": 3, "features": 0}
    assert widths(net, "conv1", "conv2") == [(3, 4), (5, 3)]


def test_a_pruned_batch_norm_whose_shift_relu_removes() -> None:
    net = Network()
    shift = np.where(BITS == 0, -0.5, 0.3)
    t = net.relu(net.op("affine", net.conv(net.x, 6, "conv1"), net.const(BITS), net.const(shift)))
    assert pruned(net, net.conv(t, 5, "conv2")) == {"channels": 3, "features": 0}


def test_a_pruned_batch_norm_leaves_constants_that_join_an_unpadded_bias() -> None:
    net = Network()
    t = net.relu(net.op("affine", net.conv(net.x, 6, "conv1"), net.const(BITS), net.const(np.full(6, 0.5))))
    assert pruned(net, net.conv(t, 5, "conv2", kernel=1)) == {"channels": 3, "features": 0}
    assert widths(net, "conv1", "conv2") == [(3, 4), (5, 3)]


def test_constants_in_front_of_padding_stay() -> None:
    net = Network()
    t = net.relu(net.op("affine", net.conv(net.x, 6, "conv1"), net.const(BITS), net.const(np.full(6, 0.5))))
    assert pruned(net, net.conv(t, 5, "conv2", kernel=3)) == {"channels": 0, "features": 0}


def test_zero_filters_and_unread_filters() -> None:
    net = Network()
    first = net.weights(6, 4, 3, 3) * BITS[:, None, None, None]
    t = net.relu(net.op("conv2d", net.x, net.const(first), padding=(1, 1, 1, 1), name="conv1"))
    second = net.weights(5, 6, 1, 1)
    second[:, 0] = 0.0
    assert pruned(net, net.op("conv2d", t, net.const(second), name="conv2")) == {"channels": 4, "features": 0}
    assert widths(net, "conv1", "conv2") == [(2, 4), (5, 2)]


def test_a_residual_stream_keeps_what_one_producer_needs() -> None:
    net = Network()
    other = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    x = masked(net, net.conv(net.x, 6, "stem"), other)
    t = masked(net, net.conv(x, 6, "branch"))
    y = net.conv(net.relu(net.add(x, t)), 5, "after")
    assert pruned(net, y)["channels"] == 2 * 2  # channels 1 and 5 of stem and branch
    assert widths(net, "stem", "branch", "after") == [(4, 4), (4, 4), (5, 4)]


def test_depthwise_convolutions_follow() -> None:
    net = Network()
    t = net.relu(net.conv(net.x, 6, "expand", kernel=1))
    t = masked(net, net.relu(net.conv(t, 6, "depthwise", groups=6)))
    assert pruned(net, net.conv(t, 4, "project", kernel=1))["channels"] == 6
    assert widths(net, "expand", "depthwise", "project") == [(3, 4), (3, 1), (4, 3)]
    assert find(net.graph, "depthwise").attrs["groups"] == 3


def test_grouped_convolutions_keep_their_channels() -> None:
    net = Network()
    t = masked(net, net.conv(net.x, 6, "conv1"))
    assert pruned(net, net.conv(t, 4, "grouped", groups=2)) == {"channels": 0, "features": 0}


def test_concatenation_slices_and_shuffles_are_renumbered() -> None:
    net = Network()
    t = net.op("cat", masked(net, net.conv(net.x, 6, "a")), net.conv(net.x, 2, "b"), dim=1)
    t = net.shuffled(t, [7, 0, 1, 2, 6, 3, 4, 5])
    t = net.op("slice", net.relu(t), dim=1, start=1, stop=8)
    assert pruned(net, net.conv(t, 4, "c"))["channels"] == 4  # three of a, and channel 1 of b is sliced away
    assert widths(net, "a", "b", "c") == [(3, 4), (1, 4), (4, 4)]


def test_a_gate_is_selected_from_where_its_program_cannot_be_cut() -> None:
    net = Network()
    values = net.saliency(net.x, 6, "gate")
    _, index = net.op("topk", values, k=3, dim=1, largest=False)
    gate = net.op("scatter", values, index, net.const(0.0), dim=1)
    t = masked(net, net.mul(net.conv(net.x, 6, "conv1"), gate))
    assert pruned(net, net.conv(t, 4, "conv2")) == {"channels": 3, "features": 0}
    assert find(net.graph, "gate.fc").output.type.shape == (BATCH, 6)


def test_a_simple_gate_program_is_cut_as_well() -> None:
    net = Network()
    t = masked(net, net.mul(net.conv(net.x, 6, "conv1"), net.saliency(net.x, 6, "gate")))
    assert pruned(net, net.conv(t, 4, "conv2")) == {"channels": 3, "features": 3}
    assert find(net.graph, "gate.fc").output.type.shape == (BATCH, 3)


def test_the_classifier_loses_the_columns_of_channels_that_went() -> None:
    net = Network()
    pooled = net.pooled(masked(net, net.relu(net.conv(net.x, 6, "conv"))))
    assert pruned(net, net.linear(pooled, 3, "head"))["channels"] == 3
    assert widths(net, "head") == [(3, 3)]


def test_channels_that_shortcut_padding_adds() -> None:
    net = Network()
    padded = net.op("pad", net.x, low=(0, 1, 0, 0), high=(0, 1, 0, 0))
    t = net.add(padded, masked(net, net.conv(net.x, 6, "conv1"), np.array([0.0, 1, 1, 1, 1, 0])))
    # The sum has channels that are always zero, but `pad` does not give them up.
    assert pruned(net, net.conv(net.relu(t), 4, "conv2")) == {"channels": 0, "features": 0}


def test_a_branch_that_is_always_zero_disappears() -> None:
    net = Network()
    x = net.relu(net.conv(net.x, 6, "stem"))
    branch = masked(net, net.conv(net.relu(net.conv(x, 6, "conv1")), 6, "conv2"), np.zeros(6))
    pruned(net, net.relu(net.add(branch, x)))
    assert [n.name for n in net.graph.nodes] == ["stem", "relu", "relu"]


def test_outputs_of_the_network_keep_their_channels() -> None:
    net = Network()
    assert pruned(net, masked(net, net.conv(net.x, 6, "conv"))) == {"channels": 0, "features": 0}


def test_at_least_one_channel_stays() -> None:
    net = Network()
    t = masked(net, net.conv(net.x, 6, "conv1"), np.zeros(6))
    assert pruned(net, net.conv(t, 4, "conv2"))["channels"] == 5


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_pools_follow(op: str) -> None:
    net = Network()
    t = net.op(op, masked(net, net.conv(net.x, 6, "conv1")), kernel=(2, 2), stride=(2, 2))
    t = net.op("interpolate", t, size=(5, 5), mode="bilinear")
    assert pruned(net, net.conv(t, 4, "conv2"))["channels"] == 3
