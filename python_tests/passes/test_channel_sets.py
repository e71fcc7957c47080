"""Formulas against brute force over all assignments of their atoms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.passes.channel_sets import FALSE, MAX_ATOMS, TRUE, ChannelSets, Set


def source(*shape: int) -> Value:
    return Value("s", TensorType("f32", (BATCH, *shape)))


def evaluate(sets: ChannelSets, formula: int, zeros: set[tuple[int, int]]) -> bool:
    atoms, table = sets.describe(formula)
    row = sum(1 << i for i, atom in enumerate(atoms) if atom in zeros)
    return bool(table >> row & 1)


def assignments(sets: ChannelSets, *formulas: int) -> list[set[tuple[int, int]]]:
    atoms = sorted({atom for f in formulas for atom in sets.describe(f)[0]})
    return [set(subset) for n in range(len(atoms) + 1) for subset in itertools.combinations(atoms, n)]


@st.composite
def formulas(draw: st.DrawFn) -> tuple[ChannelSets, list[int]]:
    """An algebra with two sources of two elements, and formulas made by random operations."""
    sets = ChannelSets()
    known = [FALSE, TRUE, *sets.zeros_of(source(2)).tolist(), *sets.zeros_of(source(2)).tolist()]
    for _ in range(draw(st.integers(1, 6))):
        a, b = (np.array([known[draw(st.integers(0, len(known) - 1))]]) for _ in range(2))
        operation = draw(st.sampled_from(["conj", "disj", "complement"]))
        made = sets.complement(a) if operation == "complement" else getattr(sets, operation)(a, b)
        known.append(int(made[0]))
    return sets, known


@settings(max_examples=200, deadline=None)
@given(formulas(), st.data())
def test_operations_mean_what_they_say(made: tuple[ChannelSets, list[int]], data: st.DataObject) -> None:
    sets, known = made
    a, b = (known[data.draw(st.integers(0, len(known) - 1))] for _ in range(2))
    both, either = int(sets.conj(np.array(a), np.array(b))), int(sets.disj(np.array(a), np.array(b)))
    neither = int(sets.complement(np.array(a)))
    for zeros in assignments(sets, a, b):
        value_a, value_b = evaluate(sets, a, zeros), evaluate(sets, b, zeros)
        assert evaluate(sets, both, zeros) == (value_a and value_b)
        assert evaluate(sets, either, zeros) == (value_a or value_b)
        assert evaluate(sets, neither, zeros) == (not value_a)


@settings(max_examples=200, deadline=None)
@given(formulas(), st.data())
def test_equal_formulas_have_one_name(made: tuple[ChannelSets, list[int]], data: st.DataObject) -> None:
    sets, known = made
    a, b = (known[data.draw(st.integers(0, len(known) - 1))] for _ in range(2))
    same = all(evaluate(sets, a, zeros) == evaluate(sets, b, zeros) for zeros in assignments(sets, a, b))
    assert same == (a == b)


@settings(max_examples=200, deadline=None)
@given(formulas(), st.data())
def test_without_sources_is_the_largest_part_that_ignores_them(
    made: tuple[ChannelSets, list[int]], data: st.DataObject
) -> None:
    sets, known = made
    a = known[data.draw(st.integers(0, len(known) - 1))]
    part = int(sets.without(np.array(a), {0}))
    assert 0 not in sets.source_numbers(np.array(part))
    for zeros in assignments(sets, a):
        others = {atom for atom in zeros if atom[0] != 0}
        choices = [others | set(extra) for n in range(3) for extra in itertools.combinations([(0, 0), (0, 1)], n)]
        assert evaluate(sets, part, zeros) == all(evaluate(sets, a, choice) for choice in choices)


def test_atoms_have_the_shape_of_one_image_and_stay_the_same() -> None:
    sets, gate = ChannelSets(), source(2, 3)
    zeros = sets.zeros_of(gate)
    assert zeros.shape == (2, 3) and len(np.unique(zeros)) == 6
    np.testing.assert_array_equal(sets.zeros_of(gate), zeros)
    assert sets.describe(int(zeros[1, 2])) == (((0, 5),), 0b10)
    assert sets.sources == [gate]


def test_complement_pair() -> None:
    sets = ChannelSets()
    closed = sets.zeros_of(source(3))
    np.testing.assert_array_equal(sets.conj(closed, sets.complement(closed)), [FALSE] * 3)
    np.testing.assert_array_equal(sets.disj(closed, sets.complement(closed)), [TRUE] * 3)


def test_formulas_over_too_many_atoms_shrink() -> None:
    sets = ChannelSets()
    atoms = sets.zeros_of(source(MAX_ATOMS + 1))
    everything, anything = np.array(TRUE), np.array(FALSE)
    for atom in atoms:
        everything, anything = sets.conj(everything, atom), sets.disj(anything, atom)
    assert int(everything) == FALSE
    assert int(anything) != TRUE and sets.width(anything) <= MAX_ATOMS


def joined(sets: ChannelSets, rows: list[list[int]]) -> Set:
    return np.array([[int(x) for x in row] for row in rows], np.int64)


def test_conjunction_over_a_dimension() -> None:
    sets = ChannelSets()
    a, b = sets.zeros_of(source(2))
    found = sets.conj_over(joined(sets, [[a, a], [a, b], [TRUE, b], [FALSE, a], [TRUE, TRUE]]), 1)
    expected = [a, int(sets.conj(np.array(a), np.array(b))), b, FALSE, TRUE]
    np.testing.assert_array_equal(found, np.array(expected)[:, None])


@pytest.mark.parametrize("axis", [0, 1])
def test_conjunction_over_an_empty_or_single_dimension(axis: int) -> None:
    sets = ChannelSets()
    assert sets.conj_over(np.full((1, 1), TRUE, np.int64), axis).tolist() == [[TRUE]]
    shape = [2, 2]
    shape[axis] = 0
    assert (sets.conj_over(np.zeros(shape, np.int64), axis) == TRUE).all()


def test_conjunction_over_selected_channels() -> None:
    sets = ChannelSets()
    whole = int(sets.zeros_of(source(1))[0])
    a, b, c = (int(x) for x in sets.zeros_of(source(3)))
    selected = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0]], bool)
    found = sets.conj_selected(np.array([whole, whole, a, FALSE]), selected)
    assert found[[0, 1, 3]].tolist() == [whole, TRUE, FALSE]
    assert found[2] == sets.conj(np.array(whole), np.array(a))
    # More than two different channels joined by one convolution: not worth a formula.
    assert sets.conj_selected(np.array([a, b, c, TRUE]), np.ones((1, 4), bool)).tolist() == [FALSE]


def test_unlikely_formulas_are_dropped() -> None:
    sets = ChannelSets()
    a, b, c, d = sets.zeros_of(source(4))
    three = sets.conj(sets.conj(np.array(a), np.array(b)), np.array(c))
    four = sets.conj(three, np.array(d))
    assert sets.likely(np.array([int(three), int(four), int(a), TRUE])).tolist() == [int(three), FALSE, int(a), TRUE]
