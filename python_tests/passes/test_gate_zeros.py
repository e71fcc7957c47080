"""Zero sets of gate tensors against the values that the interpreter computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.value_ranges import ValueFacts
from dynprune_rt.passes.channel_sets import FALSE, TRUE, ChannelSets, Set
from dynprune_rt.passes.gate_zeros import GateZeros
from python_tests.passes.networks import Network, inputs_for
from python_tests.passes.random_networks import RandomNetwork


def zeros_of(net: Network, *values: Value) -> tuple[ChannelSets, list[Set]]:
    sets = ChannelSets()
    gates = GateZeros(net.graph, sets, ValueFacts(net.graph))
    found = [gates.of(value) for value in values]
    assert all(zeros is not None for zeros in found)
    return sets, [zeros for zeros in found if zeros is not None]


def check(net: Network, sets: ChannelSets, value: Value, zeros: Set) -> None:
    """The formulas hold exactly where the value is zero."""
    arrays = interpreter.trace(net.graph, inputs_for(net.graph))
    array = arrays[value.name]
    wide = np.broadcast_to(zeros, array.shape[1:])
    for position in np.ndindex(array.shape):
        atoms, table = sets.describe(int(wide[position[1:]]))
        row = 0
        for i, (source, element) in enumerate(atoms):
            deciding = arrays[sets.sources[source].name]
            row |= int(deciding.reshape(len(deciding), -1)[position[0], element] == 0) << i
        assert bool(table >> row & 1) == (array[position] == 0), position


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), count=st.integers(1, 8))
def test_formulas_of_random_gates_are_exact(data: st.DataObject, count: int) -> None:
    random = RandomNetwork(lambda n: data.draw(st.integers(0, n - 1)), seed=0)
    for _ in range(count):
        random._gate(data.draw(st.sampled_from([1, 3, 4])))
    random.net.graph.outputs = random.gates
    sets, found = zeros_of(random.net, *random.gates)
    for value, zeros in zip(random.gates, found, strict=True):
        check(random.net, sets, value, zeros)


def test_scatters_of_one_index_share_their_zeros() -> None:
    net = Network()
    values = net.op("relu", net.logits("logits", 5))
    _, index = net.op("topk", values, k=2, dim=1, largest=False)
    binary = net.op("scatter", net.const(np.ones((1, 5))), index, net.const(0.0), dim=1)
    valued = net.op("scatter", values, index, net.const(0.0), dim=1)
    net.graph.outputs = [binary, valued]
    sets, (zeros_binary, zeros_valued) = zeros_of(net, binary, valued)
    np.testing.assert_array_equal(sets.conj(zeros_binary, zeros_valued), zeros_binary)
    for value, zeros in ((binary, zeros_binary), (valued, zeros_valued)):
        check(net, sets, value, zeros)


def test_complements_products_and_straight_through_sums() -> None:
    net = Network()
    condition = net.compare("ge", net.logits("logits", 4), 0.0)
    hard = net.op("cast", condition, dtype="f32")
    soft = net.op("sigmoid", net.logits("soft", 4))
    through = net.op("sub", net.op("add", hard, soft), soft)
    mirror = net.op("sub", net.const(1.0), hard)
    sets, (base, *found) = zeros_of(net, condition, hard, through, mirror, net.op("mul", hard, mirror))
    assert [np.array_equal(base, zeros) for zeros in found] == [True, True, False, False]
    np.testing.assert_array_equal(found[2], sets.complement(base))
    assert (found[3] == TRUE).all()
    assert sets.sources == [condition]


def test_the_mirror_of_a_straight_through_sum_is_disjoint_from_it() -> None:
    net = Network()
    hard = net.op("cast", net.compare("ge", net.logits("logits", 4), 0.0), dtype="f32")
    soft = net.op("sigmoid", net.logits("soft", 4))
    through = net.op("add", net.op("sub", hard, soft), soft)
    mirror = net.op("sub", net.const(1.0), through)
    net.graph.outputs = [mirror]
    sets, (closed, opened) = zeros_of(net, through, mirror)
    assert (sets.conj(closed, opened) == FALSE).all()
    check(net, sets, mirror, opened)


@pytest.mark.parametrize(
    ("op", "bound"), [("gt", 0.5), ("lt", 0.5), ("ge", 2.0), ("le", 1.0), ("eq", 0.0), ("ne", 0.0)]
)
def test_comparisons_of_binary_masks(op: str, bound: float) -> None:
    net = Network()
    hard = net.op("cast", net.compare("ge", net.logits("logits", 4), 0.0), dtype="f32")
    compared = net.compare(op, hard, bound)
    net.graph.outputs = [compared]
    sets, (zeros,) = zeros_of(net, compared)
    assert len(sets.sources) <= 1
    check(net, sets, compared, zeros)


def test_maps_are_no_gates() -> None:
    net = Network()
    sets = ChannelSets()
    gates = GateZeros(net.graph, sets, ValueFacts(net.graph))
    assert gates.of(net.relu(net.x)) is None
    assert gates.of(net.graph.add_input("big", TensorType("f32", (BATCH, 1 << 15)))) is None
    assert sets.sources == []
