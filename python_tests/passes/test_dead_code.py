"""Dead code: what feeds no output goes, masks and inputs stay."""

from __future__ import annotations

import numpy as np

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.dead_code import remove_dead_code


def test_only_what_feeds_an_output_stays() -> None:
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4)))
    b.graph.add_input("unused", TensorType("f32", (BATCH, 2)))
    kept = b.op("add", x, b.constant("one", np.float32(1)))
    b.op("relu", b.op("mul", kept, b.constant("two", np.float32(2))))
    b.graph.outputs = [kept]
    assert remove_dead_code(b.graph) == 2
    assert [n.op for n in b.graph.nodes] == ["add"]
    assert set(b.graph.constants) == {"one"}
    assert [v.name for v in b.graph.inputs] == ["x", "unused"]
    verify(b.graph)
    assert remove_dead_code(b.graph) == 0


def test_one_of_several_results_keeps_the_node() -> None:
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4)))
    _, indices = b.op("topk", x, k=2, dim=1)
    b.graph.outputs = [indices]
    assert remove_dead_code(b.graph) == 0


def test_masks_keep_what_computes_them() -> None:
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4, 3, 3)))
    gate = b.op("spatial_reduce", x, kind="mean")
    zero = b.constant("zero", np.float32(0))
    live = b.op("ne", gate, zero)
    computed = b.op("gt", gate, zero)
    y = b.op("conv2d", x, b.constant("w", np.ones((4, 4, 1, 1), np.float32)))
    y.live = live
    assert y.producer is not None
    y.producer.computed = computed
    b.graph.outputs = [y]
    assert remove_dead_code(b.graph) == 0
    y.live = None
    assert remove_dead_code(b.graph) == 1
    y.producer.computed = None
    assert remove_dead_code(b.graph) == 2
