"""Execution order with masks as operands."""

from __future__ import annotations

from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.channel_activity import annotate, clear
from dynprune_rt.passes.schedule import schedule
from python_tests.passes.networks import Network


def late_gate() -> Network:
    net = Network()
    x = net.relu(net.conv(net.x, 4, "stem"))
    t = net.relu(net.conv(x, 4, "conv1"))
    net.graph.outputs = [net.conv(net.mul(t, net.saliency(x, 4, "gate")), 4, "conv2")]
    return net


def test_masks_come_before_the_nodes_that_obey_them() -> None:
    graph = late_gate().graph
    annotate(graph, {})
    schedule(graph)
    verify(graph)
    placed = set(graph.inputs)
    for node in graph.nodes:
        assert all(v in placed or graph.is_constant(v) for v in node.operands())
        placed.update(node.outputs)


def test_an_ordered_graph_keeps_its_order() -> None:
    graph = late_gate().graph
    before = list(graph.nodes)
    schedule(graph)
    assert graph.nodes == before


def test_clear_removes_masks_and_notes() -> None:
    graph = late_gate().graph
    annotate(graph, {})
    clear(graph)
    assert all(not n.note and n.computed is None and all(v.live is None for v in n.outputs) for n in graph.nodes)
