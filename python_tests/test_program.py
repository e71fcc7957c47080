from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.errors import ArtifactError
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.interpreter import run
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.program import Program, dense_macs, gate_names
from python_tests.ir.gated_graph import gated_residual_graph, sample
from python_tests.ir.operators.case import random


@pytest.fixture
def program():
    return Program(gated_residual_graph(), {"dropped outputs": ["aux1", "aux2"], "model": "Net"})


def test_facts(program):
    assert program.inputs == {"x": TensorType("f32", (BATCH, 6, 5, 5))}
    assert program.outputs == {
        "head": TensorType("f32", (BATCH, 4)),
        "block.conv2": TensorType("f32", (BATCH, 6, 5, 5)),
    }
    convolutions, vectors, gates, head = 2 * 6 * 6 * 9, 6 + 6, 2 * 6 * 6, 4 * 6
    assert program.parameters == convolutions + vectors + gates + head + 1  # and the zero that gates compare with
    assert program.dense_macs == convolutions * 25 + gates + head


def test_save_and_load(program, tmp_path):
    path = tmp_path / "net.dpr"
    program.save(path)
    loaded = Program.load(path)
    assert str(loaded) == str(program) and loaded.report == program.report
    x = {"x": sample()}
    np.testing.assert_array_equal(run(loaded.graph, x)[0], run(program.graph, x)[0])
    with pytest.raises(ArtifactError):
        Program.load(tmp_path / "other.dpr")


def test_print(program):
    conv1 = next(n for n in program.graph.nodes if n.name == "block.conv1")
    conv1.note = "inputs read: no gate acts on the model's input"
    lines = str(program).splitlines()
    assert lines[:5] == [
        "input   x: f32[N, 6, 5, 5]",
        "output  head: f32[N, 4]",
        "output  block.conv2: f32[N, 6, 5, 5]",
        "757 parameters, 16.3 k dense MACs per image",
        "dropped outputs: aux1, aux2",
    ]
    table = {line.split()[0]: line for line in lines if "->" in line}
    assert table["block.conv1"].split()[1:] == ["6->6", "3x3", "@5x5", "8.1", "k", "-", "block.gate1"]
    assert table["block.conv2"].split()[-2:] == ["block.gate1", "block.gate2"]
    assert table["head"].split()[1:] == ["6->4", "24", "-", "-"]
    assert "    inputs read: no gate acts on the model's input" in lines


def test_a_layer_that_skips_on_both_sides_needs_no_note(program):
    conv2 = next(n for n in program.graph.nodes if n.name == "block.conv2")
    conv2.note = "skips all it can"
    assert "skips all it can" not in str(program)


def test_reports_of_every_shape(program):
    program.report = {
        "max_error": 1e-6,
        "skips": {"inputs": 1, "outputs": 2},
        "layers": [{"name": "told by the table"}],
        "spatial_masks": [],
        "left_out": [{"output": "aux", "cost": 3}, "rest"],
    }
    lines = str(program).splitlines()
    assert lines[4:9] == [
        "max error: 1e-06",
        "skips: inputs 1, outputs 2",
        "left out:",
        "    output aux, cost 3",
        "    rest",
    ]
    assert "told by the table" not in str(program)


def test_many_gates_are_abbreviated():
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 6, 3, 3)))
    vector, zero = b.op("spatial_reduce", x, kind="mean"), b.constant("zero", 0.0)
    masks = [b.op("ne", b.op("relu", vector, name=f"gate{i}"), zero) for i in range(6)]
    x = b.op("relu", x)
    for mask in masks:
        x.live = mask if x.live is None else b.op("logical_and", x.live, mask)
    b.graph.outputs = [b.op("conv2d", x, b.constant("w", random(2, 6, 1, 1)))]
    b.graph.sort()
    assert "gate5, gate4, gate3, gate2 and 2 more" in str(Program(b.graph))


def test_a_mask_that_is_the_same_for_all_images():
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 3, 3, 3)))
    y = b.op("relu", x)
    y.live = b.constant("static", np.array([[True, False, True]]))
    b.graph.outputs = [b.op("conv2d", y, b.constant("w", random(2, 3, 1, 1)), name="conv")]
    assert str(Program(b.graph)).splitlines()[-1].split()[-3:] == ["constant", "mask", "-"]


def test_shapes_of_layers():
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 8, 9, 9)))
    y = b.op("conv2d", x, b.constant("w", random(4, 2, 3, 3)), name="a", stride=(2, 2), groups=4)
    b.graph.outputs = [b.op("conv2d", y, b.constant("v", random(4, 4, 1, 2)), name="b", stride=(1, 2))]
    text = str(Program(b.graph))
    assert "8->4 3x3 /2 g4 @4x4" in text and "4->4 1x2 /1x2 @4x2" in text


def test_dense_macs():
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 8, 9, 9)))
    conv = b.op("conv2d", x, b.constant("w", random(4, 4, 3, 3)), groups=2)
    flat = b.op("reshape", conv, shape=(-1, 4, 49))
    linear = b.op("linear", flat, b.constant("v", random(5, 49)))
    product = b.op("matmul", linear, b.op("permute", linear, dims=(0, 2, 1)))
    macs = [dense_macs(v.producer) for v in (conv, flat, linear, product)]
    assert macs == [49 * 4 * 4 * 9, 0, 4 * 5 * 49, 4 * 4 * 5]


def test_gates_behind_the_mask_algebra():
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4)))
    zero = b.constant("zero", 0.0)
    first = b.op("ne", b.op("relu", x, name="first"), zero)
    second = b.op("ne", zero, b.op("clamp", x, name="second", lo=0.0))
    direct = b.op("gt", x, zero, name="direct")
    static = b.constant("static", np.array([[True, False, True, True]]))
    both = b.op("logical_or", b.op("logical_and", first, static), b.op("logical_not", second))
    joined = b.op("cat", both, b.op("index_select", direct, b.constant("index", np.array([1, 0])), dim=1), dim=1)
    assert gate_names(joined) == ["direct", "first", "second"]
    assert gate_names(b.op("logical_or", first, first)) == ["first"]
    assert gate_names(None) == []
