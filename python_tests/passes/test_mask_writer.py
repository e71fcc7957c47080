"""Masks written as operators have the bits of their formulas."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Graph, Value
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.channel_sets import FALSE, TRUE, ChannelSets, Set
from dynprune_rt.passes.mask_writer import MaskWriter


def sources() -> tuple[Graph, ChannelSets, list[Set]]:
    """Gates of several shapes and types, as inputs."""
    graph, sets = Graph(), ChannelSets()
    shapes = {"a": ("f32", 3), "b": ("bool", 3), "c": ("i64", 2, 2), "d": ("f32", 1, 1, 1)}
    values = [graph.add_input(name, TensorType(dtype, (BATCH, *shape))) for name, (dtype, *shape) in shapes.items()]
    return graph, sets, [sets.zeros_of(value).reshape(-1) for value in values]


def written_bits(graph: Graph, mask: Value) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    feed = {
        v.name: rng.integers(0, 2, (16, *v.type.shape[1:])).astype(
            {"f32": np.float32, "i64": np.int64}.get(v.type.dtype, bool)
        )
        for v in graph.inputs
    }
    graph.outputs = [mask]
    verify(graph)
    return interpreter.run(graph, feed)[0], feed


def expected_bits(sets: ChannelSets, live: Set, feed: dict[str, np.ndarray]) -> np.ndarray:
    images = len(next(iter(feed.values())))
    bits = np.zeros((images, len(live)), bool)
    for image, channel in np.ndindex(bits.shape):
        atoms, table = sets.describe(int(live[channel]))
        values = [feed[sets.sources[s].name][image].reshape(-1)[e] for s, e in atoms]
        bits[image, channel] = table >> sum(int(v == 0) << i for i, v in enumerate(values)) & 1
    return bits


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.integers(1, 14))
def test_random_formulas(data: st.DataObject, channels: int) -> None:
    graph, sets, known = sources()
    formulas = [FALSE, TRUE, *(int(x) for atoms in known for x in atoms)]
    for _ in range(data.draw(st.integers(0, 6))):
        a, b = (np.array(data.draw(st.sampled_from(formulas))) for _ in range(2))
        kind = data.draw(st.sampled_from([sets.conj, sets.disj]))
        formulas.append(int(sets.complement(kind(a, b)) if data.draw(st.booleans()) else kind(a, b)))
    live = np.array([data.draw(st.sampled_from(formulas)) for _ in range(channels)], np.int64)
    writer = MaskWriter(graph, sets)
    prefix = data.draw(st.integers(0, channels))
    writer.mask(live[:prefix])  # a mask that a longer one may continue
    mask = writer.mask(live)
    if mask is None:
        assert (live <= TRUE).all()
        return
    assert mask.type == TensorType("bool", (BATCH, channels))
    found, feed = written_bits(graph, mask)
    np.testing.assert_array_equal(found, expected_bits(sets, live, feed))
    assert writer.mask(live) is mask


def test_the_plain_case_is_one_comparison() -> None:
    graph, sets, (a, b, *_) = sources()
    writer = MaskWriter(graph, sets)
    writer.mask(sets.complement(a))
    assert [n.op for n in graph.nodes] == ["ne"]
    assert writer.mask(sets.complement(b)) is graph.inputs[1]  # a bool vector is its own mask


def test_fixed_channels_cost_one_operator_and_no_selection() -> None:
    graph, sets, (a, *_) = sources()
    live = sets.complement(a)
    live[1] = TRUE
    MaskWriter(graph, sets).mask(live)
    assert [n.op for n in graph.nodes] == ["ne", "logical_or"]


def test_a_gate_on_the_whole_branch_is_expanded() -> None:
    graph, sets, (*_, d) = sources()
    MaskWriter(graph, sets).mask(np.repeat(sets.complement(d), 5))
    assert [n.op for n in graph.nodes] == ["reshape", "ne", "expand"]


def test_a_concatenation_continues_the_mask_of_its_beginning() -> None:
    graph, sets, (a, b, *_) = sources()
    writer = MaskWriter(graph, sets)
    first = writer.mask(sets.complement(a))
    writer.mask(np.concatenate([sets.complement(a), sets.complement(b)]))
    assert graph.nodes[-1].op == "cat" and graph.nodes[-1].inputs == [first, graph.inputs[1]]
