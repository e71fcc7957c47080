"""Ranges contain every value that occurs; zeros are attributed to the operators that make them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.value_ranges import ValueFacts, hard_part
from python_tests.passes.networks import Network, inputs_for
from python_tests.passes.random_networks import RandomNetwork


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), steps=st.integers(1, 12))
def test_values_stay_in_their_range(data: st.DataObject, steps: int) -> None:
    random = RandomNetwork(lambda n: data.draw(st.integers(0, n - 1)), seed=1)
    random.net.graph.outputs = random.build(steps)
    facts = ValueFacts(random.net.graph)
    arrays = interpreter.trace(random.net.graph, inputs_for(random.net.graph))
    for node in random.net.graph.nodes:
        for value in node.outputs:
            array, bounds = arrays[value.name].astype(np.float64), facts.range(value)
            finite = array[np.isfinite(array)]
            # Sums are rounded: a mean of equal numbers may leave the range by a unit in the last place.
            slack = 1e-6 * np.abs(finite).max(initial=0.0) if node.op not in ("relu", "clamp") else 0.0
            assert (finite >= bounds.lo - slack).all() and (finite <= bounds.hi + slack).all(), node.op
            assert not bounds.integral or (finite == np.floor(finite)).all(), node.op


def facts_of(net: Network, value: Value) -> tuple[ValueFacts, Value]:
    return ValueFacts(net.graph), value


@pytest.mark.parametrize("op", ["relu", "hardsigmoid", "hardswish", "sign", "round", "floor", "ceil", "trunc"])
def test_operators_that_make_zeros(op: str) -> None:
    net = Network()
    value = net.op(op, net.logits("x", 4))
    assert ValueFacts(net.graph).may_be_zero(value)


@pytest.mark.parametrize("op", ["sigmoid", "exp", "tanh", "neg", "softplus", "square"])
def test_operators_that_make_none(op: str) -> None:
    net = Network()
    value = net.op(op, net.logits("x", 4))
    assert not ValueFacts(net.graph).may_be_zero(value)


@pytest.mark.parametrize("op", ["sigmoid", "softmax", "linear", "add", "affine"])
def test_operators_that_end_zeros(op: str) -> None:
    net = Network()
    gate = net.op("relu", net.logits("x", 4))
    if op == "linear":
        value = net.linear(gate, 4)
    elif op == "add":
        value = net.add(gate, net.logits("y", 4))
    elif op == "affine":
        value = net.batch_norm(gate)
    else:
        value = net.op(op, gate, **({"dim": 1} if op == "softmax" else {}))
    assert not ValueFacts(net.graph).may_be_zero(value)


def test_clamps_make_zeros_where_a_bound_is_zero() -> None:
    net = Network()
    x = net.logits("x", 4)
    made = [net.op("clamp", x, lo=lo, hi=hi) for lo, hi in ((0.0, 1.0), (-1.0, 0.0), (-1.0, 1.0), (0.5, 1.0))]
    facts = ValueFacts(net.graph)
    assert [facts.may_be_zero(v) for v in made] == [True, True, False, False]
    capped = net.op("clamp", net.op("relu", x), lo=-math.inf, hi=1000.0)
    assert ValueFacts(net.graph).may_be_zero(capped)


def test_fused_clamps_count_as_well() -> None:
    net = Network()
    weight = net.const(net.weights(4, 4))
    gate = net.op("linear", net.logits("x", 4), weight, inner=(0.0, math.inf))
    plain = net.op("linear", net.logits("y", 4), weight)
    facts = ValueFacts(net.graph)
    assert facts.may_be_zero(gate) and facts.range(gate).nonnegative
    assert not facts.may_be_zero(plain)


def test_straight_through_forms() -> None:
    net = Network()
    h, s = net.logits("h", 4), net.logits("s", 4)
    forms = [
        net.op("add", net.op("sub", h, s), s),
        net.op("add", s, net.op("sub", h, s)),
        net.op("sub", net.op("add", h, s), s),
        net.op("sub", net.op("add", s, h), s),
    ]
    assert [hard_part(v.producer) for v in forms] == [h] * 4
    others = [net.op("add", net.op("sub", s, h), s), net.op("sub", net.op("sub", h, s), s), net.op("add", h, s)]
    assert [hard_part(v.producer) for v in others] == [None] * 3
