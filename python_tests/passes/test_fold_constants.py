"""Constant folding: nodes on constants become constants."""

from __future__ import annotations

import numpy as np

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes import fold_constants as module
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.fold_constants import fold_constants


def test_chains_on_constants_are_evaluated() -> None:
    b = Builder(fold=False)
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 3)))
    c = b.constant("c", np.array([1.0, -2.0, 3.0], np.float32))
    y = b.op("add", x, b.op("relu", b.op("neg", c)))
    b.graph.outputs = [y]
    assert fold_constants(b.graph) == 2
    remove_dead_code(b.graph)
    verify(b.graph)
    assert [n.op for n in b.graph.nodes] == ["add"]
    (result,) = interpreter.run(b.graph, {"x": np.zeros((1, 3), np.float32)})
    np.testing.assert_array_equal(result, [[0, 2, 0]])
    assert fold_constants(b.graph) == 0


def test_several_results_and_masks_follow() -> None:
    b = Builder(fold=False)
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4, 2, 2)))
    scores = b.constant("scores", np.array([[3.0, 1.0, 2.0, 0.0]], np.float32))
    _, indices = b.op("sort", scores, dim=1)
    live = b.op("logical_not", b.constant("off", np.array([[True, False, False, True]])))
    y = b.op("relu", x)
    y.live = live
    z = b.op("add", b.op("spatial_reduce", y, kind="mean"), b.op("cast", indices, dtype="f32"))
    b.graph.outputs = [z]
    assert fold_constants(b.graph) == 3
    assert y.live is not live
    assert y.live is not None
    np.testing.assert_array_equal(b.graph.constant(y.live), [[False, True, True, False]])


def test_large_expansions_are_left_to_run_time() -> None:
    b = Builder(fold=False)
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 2048)))
    wide = b.op("expand", b.constant("one", np.ones((1, 1), np.float32)), shape=(1, 2048 * 1024))
    b.graph.outputs = [b.op("add", b.op("repeat", x, repeats=(1, 1024)), wide)]
    assert module.MAX_GROWTH < 2048 * 1024
    assert fold_constants(b.graph) == 0
