"""Binary masks in front of a gate with the same zeros."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Value
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.redundant_masks import drop_redundant_masks
from python_tests.passes.networks import Network, assert_close, inputs_for


def dropped(net: Network, *outputs: Value) -> int:
    graph = net.graph
    graph.outputs = list(outputs)
    feed = inputs_for(graph)
    expected = interpreter.run(graph, feed)
    count = drop_redundant_masks(graph)
    remove_dead_code(graph)
    assert_close(interpreter.run(graph, feed), expected)
    return count


def test_the_same_mask_twice() -> None:
    net = Network()
    mask = net.binary(net.logits("gate", 4), "gate")
    assert dropped(net, net.mul(net.batch_norm(net.mul(net.relu(net.x), mask)), mask)) == 1


@pytest.mark.parametrize(("values_last", "expected"), [(True, 1), (False, 0)])
def test_a_mask_before_the_values_of_the_same_winners(values_last: bool, expected: int) -> None:
    net = Network()
    values = net.op("relu", net.logits("gate", 4))
    _, losers = net.op("topk", values, k=2, dim=1, largest=False)
    binary = net.op("scatter", net.const(np.ones((1, 4))), losers, net.const(0.0), dim=1)
    valued = net.op("scatter", values, losers, net.const(0.0), dim=1)
    first, last = (binary, valued) if values_last else (valued, binary)
    assert dropped(net, net.mul(net.batch_norm(net.mul(net.relu(net.x), first)), last)) == expected


def test_a_last_mask_stays_and_so_does_one_with_another_reader() -> None:
    net = Network()
    mask = net.binary(net.logits("gate", 4), "gate")
    once = net.mul(net.relu(net.x), mask)
    assert dropped(net, net.mul(net.batch_norm(once), mask), net.pooled(once)) == 0


@pytest.mark.parametrize("between", ["conv", "reciprocal"])
def test_operators_that_mix_channels_or_may_overflow_stay_behind_their_mask(between: str) -> None:
    net = Network()
    mask = net.binary(net.logits("gate", 4), "gate")
    t = net.mul(net.op("abs", net.x), mask)
    t = net.conv(t, 4, "conv") if between == "conv" else net.op("reciprocal", net.add(t, net.const(1.0)))
    assert dropped(net, net.mul(t, mask)) == 0


def test_another_gate_does_not_make_it_superfluous() -> None:
    net = Network()
    first, second = (net.binary(net.logits(name, 4), name) for name in ("first", "second"))
    assert dropped(net, net.mul(net.batch_norm(net.mul(net.relu(net.x), first)), second)) == 0


def test_three_in_a_row_leave_one() -> None:
    net = Network()
    mask = net.binary(net.logits("gate", 4), "gate")
    t = net.relu(net.x)
    for _ in range(3):
        t = net.batch_norm(net.mul(t, mask))
    assert dropped(net, t) == 2
