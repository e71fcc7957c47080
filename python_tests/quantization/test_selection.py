"""Which convolutions become integer layers, and why others do not."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.ir.graph import Graph
from dynprune_rt.ir.types import BATCH
from dynprune_rt.quantization.selection import Selection, exact_reduction, select
from python_tests.quantization.networks import (
    Network,
    dense_block,
    fire_modules,
    gated_resnet,
    grouped_blocks,
    inverted_residuals,
)


def dtypes(graph: Graph, selection: Selection) -> dict[str, str]:
    return {n.name: selection.dtypes[n.output] for n in graph.nodes if n in selection.nodes}


def test_signs_follow_from_the_graph():
    graph = inverted_residuals()
    found = dtypes(graph, select(graph))
    assert found["b0.expand"] == found["b0.depthwise"] == "u8"
    assert found["b0.project"] == found["b1.project"] == "s8"
    assert select(graph).dtypes[graph.inputs[0]] == "s8"


def test_residual_streams_share_a_class_and_are_whole():
    graph = gated_resnet()
    selection = select(graph)
    outputs = {n.name: n.output for n in graph.nodes}
    stream = [outputs[name] for name in ("stem", "layer0.0.conv2", "layer0.1.conv2")]
    assert len({selection.representative(v) for v in stream}) == 1
    assert set(stream) <= selection.whole and outputs["layer0.0.conv1"] not in selection.whole


def kept(graph: Graph) -> dict[str, str]:
    return select(graph).kept


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize("network", [fire_modules, dense_block, grouped_blocks])
def test_groups_concatenations_and_normalizations_stay_narrow(network, dtype):
    graph = network()
    selection = select(graph, dtype=dtype)
    assert not selection.kept
    narrow = {node.op for node in selection.nodes}
    assert narrow == {"conv2d"} | ({"cat"} if network is not grouped_blocks else set()) | (
        {"relu"} if network is dense_block else set()
    )
    for node in selection.nodes:
        if node.op == "cat":
            assert len({selection.representative(v) for v in (*node.inputs, node.output)}) == 1


def test_layers_without_an_integer_kernel_stay_in_float32():
    net = Network(2)
    x = net.builder.op("clamp", net.conv(net.x, 8, "hardtanh"), lo=-1.0, hi=1.0)
    assert kept(net.finish(x)) == {"hardtanh": "clamp at -1"}

    net = Network(3)
    x = net.relu(net.conv(net.x, 8, "stem"))
    y = net.builder.op("add", net.relu(net.conv(x, 8, "gated"), 6.0), x)
    assert kept(net.finish(y)) == {"gated": "clamp at 6 before another step"}

    net = Network(4)
    x = net.relu(net.conv(net.x, 8, "stem"))
    score = net.builder.op("tanh", net.builder.op("spatial_reduce", x, kind="mean"))
    y = net.mul(net.relu(net.conv(x, 8, "gated")), net.builder.op("reshape", score, shape=(BATCH, 8, 1, 1)))
    assert "gate of unknown sign" in kept(net.finish(y)).get("gated", "gate of unknown sign")


def test_exact_reductions():
    assert exact_reduction("mean_abs", "u8", 64) == "mean" and exact_reduction("mean_abs", "s8", 64) == "mean_abs"
    assert exact_reduction("max_abs", "u8", 64) == "max" and exact_reduction("max_abs", "s8", 64) is None
    assert exact_reduction("l2", "u8", 112**2) == "l2" and exact_reduction("l2", "u8", 224**2) is None
    assert exact_reduction("max", "s8", 64) == "max" and exact_reduction("min", "u8", 64) is None


def test_names_are_patterns():
    graph = gated_resnet()
    selection = select(graph, keep=["*.conv2"])
    assert {name.rsplit(".", 1)[1] for name in selection.kept} == {"conv2"}
    assert np.all([why == "kept by name" for why in selection.kept.values()])
