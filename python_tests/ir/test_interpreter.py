from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune_rt.errors import InputError
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.interpreter import evaluate, run, trace
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.verifier import verify
from python_tests.ir.gated_graph import CHANNELS, gated_residual_graph, sample
from python_tests.ir.operators.case import random


def torch_model(graph, x):
    c = {name: torch.from_numpy(np.array(array)) for name, array in graph.constants.items()}
    x = torch.from_numpy(x)
    saliency = x.abs().mean((2, 3))
    gate1, gate2 = (F.relu(F.linear(saliency, c[f"block.gate{i}.weight"])) for i in (1, 2))
    y = F.conv2d(x, c["block.conv1.weight"], c["block.conv1.bias"], padding=1).relu() * gate1[:, :, None, None]
    z = F.conv2d(y, c["block.conv2.weight"], padding=1) * gate2[:, :, None, None]
    z = F.relu(z + c["block.conv2.shift"][:, None, None] + x)
    return F.linear(z.mean((2, 3)).flip(1), c["head.weight"]).numpy(), z.numpy()


@pytest.mark.parametrize("honour_live", [False, True])
def test_a_gated_block_equals_torch(honour_live):
    graph, x = gated_residual_graph(), sample()
    verify(graph)
    for actual, expected in zip(run(graph, {"x": x}, honour_live=honour_live), torch_model(graph, x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_honouring_masks_does_not_change_the_bits():
    graph, x = gated_residual_graph(), sample()
    masks = trace(graph, {"x": x})["block.gate1.live"]
    assert masks.any() and not masks.all()
    for dense, skipped in zip(run(graph, {"x": x}), run(graph, {"x": x}, honour_live=True), strict=True):
        np.testing.assert_array_equal(dense, skipped)


def test_channels_that_are_not_stored_are_poisoned():
    graph, x = gated_residual_graph(), sample()
    values = trace(graph, {"x": x}, honour_live=True)
    live = values["block.gate1.live"]
    poisoned = np.isnan(values["block.conv1"]).all(axis=(2, 3))
    np.testing.assert_array_equal(poisoned, ~live)


def test_a_constant_mask_holds_for_every_image():
    graph, x = gated_residual_graph(), sample()
    conv1 = next(n for n in graph.nodes if n.name == "block.conv1")
    static = np.arange(CHANNELS)[None] % 2 == 0
    conv1.output.live = graph.add_constant("static", static)
    poisoned = np.isnan(trace(graph, {"x": x}, honour_live=True)["block.conv1"]).all(axis=(2, 3))
    np.testing.assert_array_equal(poisoned, np.broadcast_to(~static, poisoned.shape))


def test_an_illegal_mask_of_stored_channels_shows():
    """conv2's outputs are not dead where its gate is closed: the residual passes."""
    graph, x = gated_residual_graph(), sample()
    conv2 = next(n for n in graph.nodes if n.name == "block.conv2")
    conv2.output.live = conv2.computed
    expected, actual = run(graph, {"x": x}), run(graph, {"x": x}, honour_live=True)
    assert not np.allclose(actual[0], expected[0]) and not np.allclose(actual[1], expected[1])


def test_an_illegal_mask_of_computed_channels_shows():
    graph, x = gated_residual_graph(), sample()
    conv2 = next(n for n in graph.nodes if n.name == "block.conv2")
    conv2.computed = next(v for n in graph.nodes for v in n.outputs if v.name == "block.gate1.live")
    assert not np.allclose(run(graph, {"x": x}, honour_live=True)[1], run(graph, {"x": x})[1])


def test_a_reader_that_mixes_channels_of_a_dead_map_shows():
    """exp is not zero preserving: reading zeros in place of dead channels changes a sum over channels."""
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 3, 2, 2)))
    live = b.op("gt", b.op("spatial_reduce", x, kind="mean"), b.constant("zero", 0.0))
    y = b.op("exp", x)
    y.live = live
    b.graph.outputs = [b.op("reduce", y, kind="sum", dims=(1,))]
    verify(b.graph)
    data = {"x": random(2, 3, 2, 2)}
    assert not np.allclose(run(b.graph, data)[0], run(b.graph, data, honour_live=True)[0])


@pytest.mark.parametrize(("dtype", "poison"), [("i64", np.iinfo(np.int64).min), ("bool", True)])
def test_poison_of_other_types(dtype, poison):
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 3)))
    live = b.op("gt", x, b.constant("zero", 0.0))
    y = b.op("cast", b.op("relu", x), dtype=dtype)
    y.live = live
    b.graph.outputs = [y]
    data = np.array([[-1, 2, 0]], np.float32)
    np.testing.assert_array_equal(trace(b.graph, {"x": data}, honour_live=True)[y.name][0, [0, 2]], poison)
    np.testing.assert_array_equal(run(b.graph, {"x": data}, honour_live=True)[0], run(b.graph, {"x": data})[0])


@settings(max_examples=25, deadline=None)
@given(
    live=st.lists(st.booleans(), min_size=4, max_size=4),
    computed=st.lists(st.booleans(), min_size=4, max_size=4),
    with_shift=st.booleans(),
    with_residual=st.booleans(),
)
def test_conv2d_executes_exactly_the_channels_it_is_told(live, computed, with_shift, with_residual):
    """Against the contract written out per channel."""
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4, 3, 3)))
    masks = b.graph.add_input("masks", TensorType("bool", (BATCH, 8)))
    stored = b.op("slice", masks, dim=1, start=0, stop=4)
    own = b.op("slice", masks, dim=1, start=4, stop=8)
    weight, shift = random(4, 4, 1, 1), random(4)
    y, pooled = b.op(
        "conv2d",
        x,
        b.constant("weight", weight),
        None,
        None,
        b.constant("shift", shift) if with_shift else None,
        x if with_residual else None,
        outer=(0.0, 1.0),
        pools=("sum",),
    )
    y.live, y.producer.computed = stored, own
    b.graph.outputs = [y, pooled]
    verify(b.graph)
    data = random(1, 4, 3, 3)
    mask = np.array([live + computed])
    out, sums = run(b.graph, {"x": data, "masks": mask}, honour_live=True)
    for k in range(4):
        v = np.einsum("c,chw->hw", weight[k, :, 0, 0], data[0]) * computed[k]
        v = np.clip(v + shift[k] * with_shift + data[0, k] * with_residual, 0, 1) * live[k]
        np.testing.assert_allclose(out[0, k], v, atol=1e-6)
        np.testing.assert_allclose(sums[0, k], v.sum(), atol=1e-5)


def test_evaluate_runs_one_node():
    graph, x = gated_residual_graph(), sample()
    values = trace(graph, {"x": x})
    for node in graph.nodes:
        arrays = [None if v is None else values[v.name] for v in node.inputs]
        for v, array in zip(node.outputs, evaluate(node, arrays), strict=True):
            np.testing.assert_array_equal(array, values[v.name])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x' .* is missing"),
        ({"x": sample(), "y": sample()}, "no input 'y'"),
        ({"x": sample().astype(np.float64)}, "float64"),
        ({"x": sample()[0]}, "expected f32"),
        ({"x": sample()[:, :-1]}, "has shape"),
        ({"x": sample()[:0]}, "has shape"),
    ],
)
def test_bad_inputs(inputs, message):
    with pytest.raises(InputError, match=message):
        run(gated_residual_graph(), inputs)


def test_inputs_of_different_batches():
    b = Builder()
    inputs = [b.graph.add_input(name, TensorType("f32", (BATCH, CHANNELS))) for name in "ab"]
    b.graph.outputs = [b.op("add", *inputs)]
    with pytest.raises(InputError, match=r"different batch sizes: \[2, 3\]"):
        run(b.graph, {"a": random(2, CHANNELS), "b": random(3, CHANNELS)})
