"""Random gated networks through all passes: same results, and every skip legal."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Graph
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.pipeline import optimize
from python_tests.passes.networks import Network, assert_close, inputs_for
from python_tests.passes.random_networks import RandomNetwork

#: Networks whose values leave this range are not compared: rounding differences grow with them.
LARGEST = 1e4


def random_graph(data: st.DataObject, steps: int) -> Graph:
    random = RandomNetwork(lambda n: data.draw(st.integers(0, n - 1)), seed=data.draw(st.integers(0, 1000)))
    graph = random.net.graph
    graph.outputs = random.build(steps)
    verify(graph)
    return graph


def expected_outputs(graph: Graph, feed: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    values = interpreter.trace(graph, feed)
    # A value that is not finite somewhere makes multiplication by zero visible.
    assume(all(np.isfinite(array).all() for array in values.values() if array.dtype.kind == "f"))
    outputs = tuple(values[v.name] for v in graph.outputs)
    assume(all(np.abs(array).max() < LARGEST for array in outputs))
    return outputs


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), steps=st.integers(2, 16))
def test_optimized_networks_compute_the_same_and_skip_legally(data: st.DataObject, steps: int) -> None:
    graph = random_graph(data, steps)
    feeds = [inputs_for(graph, seed) for seed in range(2)]
    expected = [expected_outputs(graph, feed) for feed in feeds]
    report: dict[str, Any] = {}
    optimize(graph, report)
    for feed, outputs in zip(feeds, expected, strict=True):
        assert_close(interpreter.run(graph, feed), outputs)
        assert_close(interpreter.run(graph, feed, honour_live=True), outputs)
    assert report["skips"]["convs"] == sum(n.op == "conv2d" for n in graph.nodes)


def test_masks_do_not_depend_on_the_other_images_of_a_batch() -> None:
    net = Network()
    x = net.relu(net.conv(net.x, 6, "stem"))
    t = net.mul(net.relu(net.conv(x, 6, "conv1")), net.saliency(x, 6, "gate"))
    net.graph.outputs = [net.conv(t, 4, "conv2")]
    optimize(net.graph, {})
    feed = inputs_for(net.graph)
    together = interpreter.run(net.graph, feed, honour_live=True)[0]
    for image in range(len(together)):
        alone = interpreter.run(net.graph, {k: v[image : image + 1] for k, v in feed.items()}, honour_live=True)[0]
        np.testing.assert_array_equal(alone[0], together[image])


def test_the_report_says_what_went_and_what_is_skipped() -> None:
    net = Network()
    x = net.relu(net.conv(net.x, 6, "stem"))
    t = net.mul(net.relu(net.conv(x, 6, "conv1")), net.const([[[[1.0]], [[0.0]], [[2.0]], [[1.0]], [[0.0]], [[1.0]]]]))
    t = net.mul(t, net.binary(net.logits("gate", 6), "gate.mask"))
    net.graph.outputs = [net.conv(t, 4, "conv2")]
    report: dict[str, Any] = {}
    optimize(net.graph, report)
    assert report["static_pruning"] == {"channels": 2, "features": 0}
    assert report["skips"] == {"outputs": 1, "inputs": 1, "convs": 3}
    assert [entry["name"] for entry in report["layers"]] == ["stem", "conv1", "conv2"]
    assert report["spatial_masks"] == []
