from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.types import BATCH, TensorType


@pytest.fixture
def b():
    builder = Builder()
    builder.graph.add_input("x", TensorType("f32", (BATCH, 4)))
    return builder


def test_op_infers_and_names(b):
    (x,) = b.graph.inputs
    y = b.op("clamp", x, name="net.act", origin="net.py:3", lo=0)
    node = y.producer
    assert y.type == x.type and y.name == "net.act"
    assert (node.op, node.name, node.origin) == ("clamp", "net.act", "net.py:3")
    assert node.attrs == {"lo": 0.0, "hi": np.inf} and isinstance(node.attrs["lo"], float)
    assert b.graph.nodes == [node] and node.outputs == [y]


def test_attributes_as_a_mapping(b):
    (x,) = b.graph.inputs
    assert b.op("reshape", x, attrs={"shape": [-1, 2, 2]}).type.shape == (BATCH, 2, 2)
    assert b.op("topk", x, attrs={"k": 2}, dim=1)[1].type == TensorType("i64", (BATCH, 2))


def test_names_are_made_unique(b):
    (x,) = b.graph.inputs
    first, second = b.op("relu", x, name="act"), b.op("relu", x, name="act")
    assert (first.name, second.name) == ("act", "act_1")
    assert first.producer.name == second.producer.name == "act"  # one module, called twice
    assert b.op("neg", x).producer.name == "neg"


def test_scalars_become_constants(b):
    values = [b.constant("s", scalar) for scalar in (0.5, 3, True)]
    assert [str(v.type) for v in values] == ["f32[]", "i64[]", "bool[]"]


def test_constants_fold(b):
    a = b.constant("a", np.array([1, -2], np.float32))
    folded = b.op("relu", a, name="folded")
    assert not b.graph.nodes and b.graph.is_constant(folded)
    np.testing.assert_array_equal(b.graph.constant(folded), [1, 0])
    values, _ = b.op("topk", a, k=1, dim=0)
    assert b.graph.is_constant(values)


def test_folding_can_be_off():
    b = Builder(fold=False)
    out = b.op("relu", b.constant("a", 1.0))
    assert not b.graph.is_constant(out) and len(b.graph.nodes) == 1


def test_refusal_leaves_the_graph_alone(b):
    (x,) = b.graph.inputs
    with pytest.raises(VerificationError, match=r"softmax\(f32\[N, 4\]\): dimension 0 of f32\[N, 4\] is the batch"):
        b.op("softmax", x, dim=0)
    with pytest.raises(VerificationError, match="unknown operator 'swish'"):
        b.op("swish", x)
    with pytest.raises(VerificationError, match="has no attribute 'axis'"):
        b.op("softmax", x, axis=1)
    assert not b.graph.nodes
