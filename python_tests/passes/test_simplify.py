"""Simplification: idle operators go, chains and equal nodes merge, results stay bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dynprune_rt.ir import interpreter
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Value
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.passes.simplify import simplify

Body = Callable[[Builder, Value], Value]

RNG = np.random.default_rng(0)


def f(b: Builder, value: object) -> Value:
    return b.constant("c", np.asarray(value, np.float32))


def graph_of(body: Body) -> Graph:
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4, 3, 3)))
    b.graph.outputs = [body(b, x)]
    verify(b.graph)
    return b.graph


def pool(b: Builder, x: Value) -> Value:
    return b.op("spatial_reduce", x, kind="mean")  # type: ignore[no-any-return]


def conv_after_pad(b: Builder, x: Value) -> Value:
    padded = b.op("pad", x, low=(0, 0, 0, 1), high=(0, 0, 1, 2))
    weight = b.constant("w", RNG.standard_normal((2, 4, 3, 3)).astype(np.float32))
    return b.op("conv2d", padded, weight, padding=(1, 1, 1, 1), stride=(2, 2))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Body, list[str]]] = {
    "cast to the same type": (lambda b, x: b.op("cast", x, dtype="f32"), []),
    "cast of a cast of a bool": (
        lambda b, x: b.op("cast", b.op("cast", b.op("gt", x, f(b, 0)), dtype="f32"), dtype="i64"),
        ["gt", "cast"],
    ),
    "bool and back": (
        lambda b, x: b.op("cast", b.op("cast", b.op("gt", x, f(b, 0)), dtype="f32"), dtype="bool"),
        ["gt"],
    ),
    "float to integer and back stays": (
        lambda b, x: b.op("cast", b.op("cast", x, dtype="i64"), dtype="f32"),
        ["cast", "cast"],
    ),
    "reshape there and back": (
        lambda b, x: b.op("reshape", b.op("reshape", x, shape=(BATCH, 36)), shape=(BATCH, 4, 3, 3)),
        [],
    ),
    "reshape twice": (
        lambda b, x: b.op("reshape", b.op("reshape", x, shape=(BATCH, 36)), shape=(BATCH, 6, 6)),
        ["reshape"],
    ),
    "permute there and back": (
        lambda b, x: b.op("permute", b.op("permute", x, dims=(0, 2, 3, 1)), dims=(0, 3, 1, 2)),
        [],
    ),
    "permute twice": (
        lambda b, x: b.op("permute", b.op("permute", x, dims=(0, 2, 3, 1)), dims=(0, 2, 3, 1)),
        ["permute"],
    ),
    "permute of ones": (
        lambda b, x: b.op("permute", b.op("spatial_reduce", x, kind="max"), dims=(0, 1)),
        ["spatial_reduce"],
    ),
    "permute that moves a dimension of 1": (
        lambda b, x: b.op("permute", b.op("reshape", x, shape=(BATCH, 4, 1, 9)), dims=(0, 2, 1, 3)),
        ["reshape"],
    ),
    "whole slice": (lambda b, x: b.op("slice", x, dim=1, start=0, stop=4), []),
    "idle expand and repeat and pad": (
        lambda b, x: b.op(
            "pad",
            b.op("repeat", b.op("expand", x, shape=(BATCH, 4, 3, 3)), repeats=(1, 1, 1, 1)),
            low=(0, 0, 0, 0),
            high=(0, 0, 0, 0),
        ),
        [],
    ),
    "cat of one": (lambda b, x: b.op("cat", x, dim=1), []),
    "identity index": (lambda b, x: b.op("index_select", x, b.constant("i", np.arange(4)), dim=1), []),
    "index of an index": (
        lambda b, x: b.op(
            "index_select",
            b.op("index_select", x, b.constant("i", np.array([3, 1, 2])), dim=1),
            b.constant("j", np.array([2, 2, 0, 1])),
            dim=1,
        ),
        ["index_select"],
    ),
    "relu of relu": (lambda b, x: b.op("relu", b.op("relu", x)), ["relu"]),
    "relu then an upper bound": (lambda b, x: b.op("clamp", b.op("relu", x), hi=0.5), ["clamp"]),
    "clamp is relu": (lambda b, x: b.op("clamp", x, lo=0.0), ["relu"]),
    "open clamp": (lambda b, x: b.op("clamp", x), []),
    "clamp outside the first": (
        lambda b, x: b.op("clamp", b.op("clamp", x, lo=0.2, hi=0.4), lo=0.0, hi=1.0),
        ["clamp"],
    ),
    "disjoint clamps": (lambda b, x: b.op("clamp", b.op("clamp", x, lo=0.2, hi=0.4), lo=0.5, hi=1.0), ["clamp"]),
    "identity affine": (lambda b, x: b.op("affine", x, f(b, np.ones(4)), f(b, np.zeros(4))), []),
    "not not": (lambda b, x: b.op("logical_not", b.op("logical_not", b.op("gt", x, f(b, 0)))), ["gt"]),
    "times one": (lambda b, x: b.op("mul", f(b, 1), b.op("mul", x, f(b, np.ones((4, 1, 1))))), []),
    "times one that broadcasts": (
        lambda b, x: b.op("mul", b.op("reshape", pool(b, x), shape=(BATCH, 4, 1)), f(b, np.ones((4, 3)))),
        ["spatial_reduce", "reshape", "mul"],
    ),
    "plus zero, minus zero, over one": (
        lambda b, x: b.op("div", b.op("sub", b.op("add", x, f(b, 0)), f(b, 0)), f(b, 1)),
        [],
    ),
    "one over x stays": (lambda b, x: b.op("div", f(b, 1), x), ["div"]),
    "where a constant chooses": (
        lambda b, x: b.op("where", b.constant("m", np.ones((1, 4, 1, 1), bool)), x, f(b, 3)),
        [],
    ),
    "where of the same": (lambda b, x: b.op("where", b.op("gt", x, f(b, 0)), x, x), []),
    "resize to the same size": (lambda b, x: b.op("interpolate", x, size=(3, 3), mode="bilinear"), []),
    "expanded mask": (
        lambda b, x: b.op(
            "mul",
            b.op("expand", b.op("reshape", pool(b, x), shape=(BATCH, 4, 1, 1)), shape=(BATCH, 4, 3, 3)),
            x,
        ),
        ["spatial_reduce", "reshape", "mul"],
    ),
    "an expand that gives the shape stays": (
        lambda b, x: b.op(
            "mul",
            b.op("expand", b.op("reshape", pool(b, x), shape=(BATCH, 4, 1, 1)), shape=(BATCH, 4, 3, 3)),
            f(b, np.full((1, 4, 1, 1), 2)),
        ),
        ["spatial_reduce", "reshape", "expand", "mul"],
    ),
    "padding before a convolution": (conv_after_pad, ["conv2d"]),
    "equal nodes": (
        lambda b, x: b.op("add", b.op("sigmoid", b.op("mul", x, f(b, 2))), b.op("sigmoid", b.op("mul", x, f(b, 2)))),
        ["mul", "sigmoid", "add"],
    ),
    "unequal attributes": (
        lambda b, x: b.op("add", b.op("leaky_relu", x, slope=0.1), b.op("leaky_relu", x, slope=0.2)),
        ["leaky_relu", "leaky_relu", "add"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    body, expected = CASES[name]
    plain, graph = graph_of(body), graph_of(body)
    if any(c.size > 100 or c.ndim == 4 for c in graph.constants.values()):
        graph.constants.update(plain.constants)  # random weights
    simplify(graph)
    remove_dead_code(graph)
    verify(graph)
    assert [n.op for n in graph.nodes] == expected
    x = {"x": RNG.standard_normal((2, 4, 3, 3)).astype(np.float32)}
    np.testing.assert_array_equal(interpreter.run(graph, x)[0], interpreter.run(plain, x)[0])


def test_padding_with_a_value_or_of_channels_stays() -> None:
    for attrs in ({"value": 1.0, "low": (0, 0, 1, 1)}, {"low": (0, 1, 0, 0)}):

        def body(b: Builder, x: Value, attrs: dict[str, object] = attrs) -> Value:
            padded = b.op("pad", x, high=(0, 0, 0, 0), attrs=attrs)
            weight = np.ones((2, padded.type.channels, 1, 1), np.float32)
            return b.op("conv2d", padded, b.constant("w", weight))  # type: ignore[no-any-return]

        graph = graph_of(body)
        assert simplify(graph) == 0


def test_infinite_bounds_survive() -> None:
    graph = graph_of(lambda b, x: b.op("clamp", b.op("clamp", x, lo=-math.inf, hi=2.0), lo=-1.0))
    simplify(graph)
    remove_dead_code(graph)
    assert [n.attrs for n in graph.nodes] == [{"lo": -1.0, "hi": 2.0}]


def test_nodes_with_masks_are_left_alone() -> None:
    def body(b: Builder, x: Value) -> Value:
        live = b.op("gt", pool(b, x), f(b, 0))
        first, second = b.op("relu", x), b.op("relu", x)
        first.live = second.live = live
        return b.op("add", first, second)  # type: ignore[no-any-return]

    graph = graph_of(body)
    assert simplify(graph) == 0


def test_replacements_keep_name_and_origin() -> None:
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4, 3, 3)))
    padded = b.op("pad", x, low=(0, 0, 1, 1), high=(0, 0, 1, 1))
    weight = b.constant("w", np.ones((2, 4, 3, 3), np.float32))
    b.graph.outputs = [b.op("conv2d", padded, weight, name="layer1.conv", origin="net.py:7")]
    simplify(b.graph)
    remove_dead_code(b.graph)
    (node,) = b.graph.nodes
    assert (node.name, node.origin, node.attrs["padding"]) == ("layer1.conv", "net.py:7", (1, 1, 1, 1))


def test_masks_and_outputs_follow_a_replacement() -> None:
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4, 3, 3)))
    live = b.op("gt", pool(b, x), f(b, 0))
    copy = b.op("logical_not", b.op("logical_not", live))
    y = b.op("relu", x)
    y.live = copy
    z = b.op("cast", b.op("neg", x), dtype="f32")
    b.graph.outputs = [y, z]
    simplify(b.graph)
    assert y.live is live
    assert b.graph.outputs[1].producer is not None
    assert b.graph.outputs[1].producer.op == "neg"
