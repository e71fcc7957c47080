"""Runs a graph through the compiled plan in every mode and compares with the reference interpreter."""

from __future__ import annotations

import math

import numpy as np

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.verifier import verify
from dynprune_rt.program import Program
from dynprune_rt.session import Session


def execute(session: Session, inputs: list[np.ndarray], *, skip: bool = True, poison: bool = False) -> list[np.ndarray]:
    """Outputs of one run, as float32; ``poison`` fills all activation memory with NaN first."""
    batch = inputs[0].shape[0]
    shapes = [(batch, *shape) for shape in session._plan.output_shapes]
    outputs = [np.full(shape, 777.0, np.float32) for shape in shapes]
    inputs = [np.ascontiguousarray(x, dtype=np.float32) for x in inputs]
    session._executor.run(inputs, outputs, batch, skip, poison)
    return outputs


def expected_macs(node: Node, values: dict[str, np.ndarray]) -> np.ndarray:
    """Multiply-accumulates of a conv2d per image: live inputs x computed outputs x taps x pixels, per group."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    groups = node.attrs["groups"]
    out = node.output.type.shape
    batch = values[x.name].shape[0]

    def mask(value: Value | None, channels: int) -> np.ndarray:
        if value is None:
            return np.ones((batch, channels), bool)
        return np.broadcast_to(values[value.name], (batch, channels))

    read = mask(x.live, x.type.channels).reshape(batch, groups, -1).sum(2)
    computed = (
        mask(node.computed if node.computed is not None else node.output.live, out[1]).reshape(batch, groups, -1).sum(2)
    )
    return (read * computed).sum(1) * math.prod(weight.type.shape[2:]) * math.prod(out[2:])


def check_plan(graph: Graph, inputs: list[np.ndarray], *, tolerance: float = 2e-5) -> None:
    """Assert: parity with the reference, and equal bits for skip, poison, batch split and threads."""
    graph.sort()
    verify(graph)
    names = [v.name for v in graph.inputs]
    values = interpreter.trace(graph, dict(zip(names, inputs, strict=True)), honour_live=True)
    wanted = interpreter.run(graph, dict(zip(names, inputs, strict=True)), honour_live=True)
    session = Session(Program(graph), threads=1)
    got = execute(session, inputs)
    for index, (have, want) in enumerate(zip(got, wanted, strict=True)):
        want = want.astype(np.float32)
        scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
        np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * scale, err_msg=f"output {index}")
    for index, have in enumerate(execute(session, inputs, poison=True)):
        np.testing.assert_array_equal(have, got[index], err_msg="memory that nobody wrote was read")
    for index, have in enumerate(execute(session, inputs, skip=False)):
        np.testing.assert_array_equal(have, got[index], err_msg="skipping changed bits")
    for index, have in enumerate(execute(session, inputs, skip=False, poison=True)):
        np.testing.assert_array_equal(have, got[index], err_msg="memory that nobody wrote was read without skipping")
    split = [execute(session, [x[i : i + 1] for x in inputs]) for i in range(inputs[0].shape[0])]
    for index, have in enumerate(got):
        np.testing.assert_array_equal(
            np.concatenate([part[index] for part in split]), have, err_msg="batch changed bits"
        )
    for threads in (2, 3):
        for index, have in enumerate(execute(Session(Program(graph), threads=threads), inputs)):
            np.testing.assert_array_equal(have, got[index], err_msg=f"{threads} threads changed bits")
    buffers = [np.empty((inputs[0].shape[0], *shape), np.float32) for shape in session._plan.output_shapes]
    arrays = [np.ascontiguousarray(x, dtype=np.float32) for x in inputs]
    images = session._executor.run(arrays, buffers, inputs[0].shape[0], True, False, True)
    counted = {
        layer.name: [image[i][1] for image in images]
        for i, layer in enumerate(session._plan.layers)
        if layer.op == "conv2d"
    }
    for node in graph.nodes:
        if node.op == "conv2d" and node.name in counted:
            np.testing.assert_array_equal(
                counted[node.name], expected_macs(node, values), err_msg=f"MACs of {node.name}"
            )
