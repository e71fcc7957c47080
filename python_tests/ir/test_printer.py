from __future__ import annotations

from dynprune_rt.ir.printer import format_graph, format_node
from python_tests.ir.gated_graph import gated_residual_graph


def test_a_graph():
    lines = format_graph(gated_residual_graph()).splitlines()
    assert lines[0] == "graph(%x: f32[N, 6, 5, 5])"
    assert "  constant %zero: f32[]" in lines and sum("constant %zero" in line for line in lines) == 1
    assert "  %block.gate1.live: bool[N, 6] = ne(%block.gate1, %zero)  # block.gate1.live" in lines
    assert (
        "  %block.conv1: f32[N, 6, 5, 5] live %block.gate1.live = conv2d(%x, %block.conv1.weight, %block.conv1.bias, "
        "%block.gate1) padding=(1, 1, 1, 1) inner=(0.0, inf)  # block.conv1, net.py:12"
    ) in lines
    assert "      note: skips the outputs that block.gate1 closes" in lines
    assert lines[-1] == "  return %head, %block.conv2"


def test_several_outputs_absent_operands_and_computed_channels():
    graph = gated_residual_graph()
    node = next(n for n in graph.nodes if n.name == "block.conv2")
    assert format_node(node) == (
        "%block.conv2: f32[N, 6, 5, 5], %block.conv2_1: f32[N, 6] = conv2d(%block.conv1, %block.conv2.weight, none, "
        "%block.gate2, %block.conv2.shift, %x) padding=(1, 1, 1, 1) outer=(0.0, inf) pools=('mean',) "
        "computed %block.gate2.live  # block.conv2"
    )


def test_a_broken_node_can_be_printed():
    graph = gated_residual_graph()
    graph.nodes[0].op = "gate"
    assert "gate(%x) kind=mean_abs" in format_node(graph.nodes[0])
