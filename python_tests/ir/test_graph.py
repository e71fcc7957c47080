from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph
from dynprune_rt.ir.types import BATCH, TensorType


def chain():
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4)))
    y = b.op("relu", x)
    z = b.op("neg", y)
    b.graph.outputs = [z]
    return b, x, y, z


def test_fresh_names_do_not_repeat():
    graph = Graph()
    assert [graph.fresh_name(stem) for stem in ("a", "a", "a_1", "")] == ["a", "a_1", "a_1_1", "v"]


def test_constants_keep_their_shape():
    graph = Graph()
    scalar = graph.add_constant("s", np.float32(1))
    matrix = graph.add_constant("m", np.zeros((2, 3), np.int64).T)
    assert scalar.type == TensorType("f32", ()) and graph.constant(scalar).shape == ()
    assert matrix.type == TensorType("i64", (3, 2)) and graph.constant(matrix).flags.c_contiguous


def test_constants_of_other_types_are_refused():
    with pytest.raises(TypeError, match="'w' has dtype float64"):
        Graph().add_constant("w", np.zeros(3))


def test_users_counts_operand_slots():
    b, x, y, _ = chain()
    twice = b.op("add", y, y)
    users = b.graph.users()
    assert [n.op for n in users[x]] == ["relu"]
    assert [n.op for n in users[y]] == ["neg", "add", "add"]
    assert twice not in users


def test_replace_reaches_operands_masks_and_outputs():
    b, x, y, z = chain()
    mask = b.op("ne", x, b.constant("zero", 0.0))
    other = b.op("gt", x, b.constant("zero", 0.0))
    z.live = mask
    z.producer.computed = mask
    b.graph.replace(mask, other)
    b.graph.replace(y, x)
    assert z.live is other and z.producer.computed is other and z.producer.inputs == [x]
    b.graph.replace(z, y)
    assert b.graph.outputs == [y]


def test_sort_puts_masks_before_their_readers():
    b, x, y, _ = chain()
    y.live = b.op("ne", x, b.constant("zero", 0.0))
    b.graph.sort()
    assert [n.op for n in b.graph.nodes] == ["ne", "relu", "neg"]


def test_sort_names_a_cycle():
    b, _, y, z = chain()
    y.producer.inputs = [z]
    with pytest.raises(ValueError, match="cycle through"):
        b.graph.sort()
