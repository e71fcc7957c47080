"""Facts are carried to the elements that the numpy reference moves, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Node
from dynprune_rt.ir.interpreter import evaluate
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.passes import element_moves

SHAPE = (4, 3, 2)
INDEX = np.array([3, 0, 0, 2])

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("reshape", {"shape": (BATCH, 12, 2)}, 1),
    ("reshape", {"shape": (BATCH, 24)}, 1),
    ("reshape", {"shape": (BATCH, 2, 2, 3, 2)}, 1),
    ("permute", {"dims": (0, 2, 1, 3)}, 1),
    ("permute", {"dims": (0, 3, 2, 1)}, 1),
    ("expand", {"shape": (BATCH, *SHAPE)}, 1),
    ("slice", {"dim": 1, "start": 1, "stop": 4, "step": 2}, 1),
    ("slice", {"dim": 2, "start": 0, "stop": 3, "step": 1}, 1),
    ("repeat", {"repeats": (1, 2, 1, 3)}, 1),
    ("cat", {"dim": 1}, 2),
    ("cat", {"dim": 3}, 3),
    ("index_select", {"dim": 1}, 1),
    ("pad", {"low": (0, 1, 0, 0), "high": (0, 2, 0, 0), "value": 7.0}, 1),
]


def node_of(op: str, attrs: dict[str, Any], count: int) -> tuple[Builder, Node]:
    b = Builder()
    inputs = [b.graph.add_input(f"x{i}", TensorType("f32", (BATCH, *SHAPE))) for i in range(count)]
    if op == "index_select":
        inputs.append(b.constant("index", INDEX))
    return b, b.append(op, inputs, attrs)[0].producer  # type: ignore[return-value]


@pytest.mark.parametrize(("op", "attrs", "count"), CASES)
def test_forward_agrees_with_the_reference(op: str, attrs: dict[str, Any], count: int) -> None:
    b, node = node_of(op, attrs, count)
    facts = [np.arange(24).reshape(SHAPE) + 100 * i for i in range(count)]
    found = element_moves.forward(b.graph, node, facts, 7)
    arrays = [f[None].astype(np.float32) for f in facts] + ([INDEX] if op == "index_select" else [])
    np.testing.assert_array_equal(found, evaluate(node, arrays)[0][0])


@pytest.mark.parametrize(("op", "attrs", "count"), CASES)
def test_facts_per_channel_stay_small(op: str, attrs: dict[str, Any], count: int) -> None:
    b, node = node_of(op, attrs, count)
    facts = [np.arange(4).reshape(4, 1, 1) + 10 * i for i in range(count)]
    found = element_moves.forward(b.graph, node, facts, 7)
    arrays = [np.broadcast_to(f, SHAPE)[None].astype(np.float32) for f in facts]
    expected = evaluate(node, [*arrays, INDEX] if op == "index_select" else arrays)[0][0]
    assert found is not None and found.ndim == expected.ndim
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)
    if op in ("slice", "index_select", "pad", "expand"):
        assert found.shape[1:] == (1, 1)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize(("op", "attrs", "count"), CASES)
def test_backward_joins_all_copies(op: str, attrs: dict[str, Any], count: int, uniform: bool) -> None:
    """With bits for facts: an element may go where every copy of it may."""
    b, node = node_of(op, attrs, count)
    shape = node.output.type.shape[1:]
    bits = np.random.default_rng(0).random((shape[0], *[1] * (len(shape) - 1)) if uniform else shape) < 0.6
    for slot in range(count):
        found = element_moves.backward(
            b.graph, node, slot, bits.astype(np.int64), 1, lambda a, axis: a.min(axis=axis, keepdims=True)
        )
        # Number the elements, move the numbers, and look where each one arrived.
        numbers = [np.full((1, *SHAPE), -1, np.float32) for _ in range(count)]
        numbers[slot] = np.arange(24, dtype=np.float32).reshape(1, *SHAPE)
        moved_attrs = {**node.attrs, "value": -1.0} if op == "pad" else node.attrs
        moved = evaluate(
            Node(op, "", node.inputs, node.outputs, moved_attrs), [*numbers, INDEX] if op == "index_select" else numbers
        )[0][0]
        wide = np.broadcast_to(bits, shape)
        expected = np.array([wide[moved == i].all() for i in range(24)]).reshape(SHAPE)
        assert found is not None
        np.testing.assert_array_equal(np.broadcast_to(found, SHAPE), expected)


@st.composite
def factorizations(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes of the same number of elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), max_size=5))

    def grouped() -> list[int]:
        shape = [1] * draw(st.integers(0 if set(factors) <= {1} else 1, 1))
        for factor in factors:
            if not shape or draw(st.booleans()):
                shape.append(factor)
            else:
                shape[-1] *= factor
        return shape

    return grouped(), grouped()


@given(factorizations(), st.data())
def test_reshaping_facts(shapes: tuple[list[int], list[int]], data: st.DataObject) -> None:
    source, target = shapes
    told_apart = [d if data.draw(st.booleans()) else 1 for d in source]
    fact = np.arange(int(np.prod(told_apart))).reshape(told_apart)
    found = element_moves.reshape(fact, source, target)
    assert found is not None
    np.testing.assert_array_equal(np.broadcast_to(found, target), np.broadcast_to(fact, source).reshape(target))


def test_reshaping_too_many_elements_gives_up() -> None:
    assert element_moves.reshape(np.arange(64).reshape(64, 1, 1), (64, 300, 300), (64 * 300 * 300,)) is None
    channels = element_moves.reshape(np.arange(64).reshape(64, 1, 1), (64, 300, 300), (64, 90000))
    assert channels is not None and channels.shape == (64, 1)
