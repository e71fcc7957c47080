"""A small gated network as a graph, used by the tests of the IR and of the artifact."""

from __future__ import annotations

import math

import numpy as np

from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph
from dynprune_rt.ir.types import BATCH, TensorType
from python_tests.ir.operators.case import random

CHANNELS = 6
SIZE = 5


def gated_residual_graph() -> Graph:
    """Two convolutions in a residual block, gated by a vector of the block's input, then a classifier.

    ``conv1`` skips outputs, ``conv2`` the same inputs; ``conv2`` has the residual fused, so it computes
    the channels of its own gate only and passes the others through.
    """
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, CHANNELS, SIZE, SIZE)))
    zero = b.constant("zero", 0.0)

    def gate(name: str, seed: int):
        saliency = b.op(
            "linear",
            b.op("spatial_reduce", x, kind="mean_abs", name=f"{name}.pool"),
            b.constant(f"{name}.weight", random(CHANNELS, CHANNELS, seed=seed)),
            name=f"{name}.fc",
        )
        vector = b.op("relu", saliency, name=name)
        return vector, b.op("ne", vector, zero, name=f"{name}.live")

    gate1, live1 = gate("block.gate1", 1)
    gate2, live2 = gate("block.gate2", 2)
    y = b.op(
        "conv2d",
        x,
        b.constant("block.conv1.weight", random(CHANNELS, CHANNELS, 3, 3)),
        b.constant("block.conv1.bias", random(CHANNELS)),
        gate1,
        name="block.conv1",
        origin="net.py:12",
        padding=(1, 1, 1, 1),
        inner=(0.0, math.inf),
    )
    y.live = live1
    y.producer.note = "skips the outputs that block.gate1 closes"
    z, pooled = b.op(
        "conv2d",
        y,
        b.constant("block.conv2.weight", random(CHANNELS, CHANNELS, 3, 3, seed=1)),
        None,
        gate2,
        b.constant("block.conv2.shift", random(CHANNELS, seed=3)),
        x,
        name="block.conv2",
        padding=(1, 1, 1, 1),
        outer=(0.0, math.inf),
        pools=("mean",),
    )
    z.producer.computed = live2
    index = b.constant("head.index", np.arange(CHANNELS)[::-1])
    logits = b.op(
        "linear",
        b.op("index_select", pooled, index, dim=1),
        b.constant("head.weight", random(4, CHANNELS)),
        name="head",
    )
    b.graph.outputs = [logits, z]
    return b.graph


def sample(batch: int = 3) -> np.ndarray:
    return random(batch, CHANNELS, SIZE, SIZE, seed=9)
