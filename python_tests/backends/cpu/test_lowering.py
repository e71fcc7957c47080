"""Graphs written by hand, through the compiled plan, against the reference interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.backends.cpu import lower_maps
from dynprune_rt.backends.cpu.lowering import lower
from dynprune_rt.errors import DeviceError
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph, Value
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.program import Program
from dynprune_rt.session import Session
from python_tests.backends.cpu.plan_checks import check_plan

RNG = np.random.default_rng(7)


def map_input(graph: Graph, channels: int, height: int, width: int | None = None) -> Value:
    return graph.add_input("x", TensorType("f32", (BATCH, channels, height, width or height)))


def random_images(value: Value, batch: int = 3) -> np.ndarray:
    return RNG.standard_normal((batch, *value.type.shape[1:])).astype(np.float32)


def weights(b: Builder, *shape: int) -> Value:
    return b.constant("w", (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))


def vector(b: Builder, size: int) -> Value:
    return b.constant("v", RNG.standard_normal(size).astype(np.float32))


def gate(b: Builder, x: Value, channels: int, keep: float) -> Value:
    """A gate [N, channels] that depends on the image and has about ``keep`` non-zero entries."""
    pooled = b.op("spatial_reduce", x, kind="mean")
    score = b.op("linear", pooled, weights(b, channels, x.type.channels), vector(b, channels))
    threshold = b.constant("t", np.float32(np.quantile(RNG.standard_normal(1000), 1 - keep)))
    return b.op("mul", b.op("cast", b.op("gt", score, threshold), dtype="f32"), score)


def support(b: Builder, m: Value) -> Value:
    return b.op("ne", m, b.constant("zero", np.float32(0)))


CONVOLUTIONS = {
    "1x1": ((1, 1), {}, 6, 9, 1),
    "3x3": ((3, 3), {"padding": (1, 1, 1, 1)}, 6, 9, 1),
    "3x3 stride 2": ((3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 2)}, 6, 9, 1),
    "3x3 valid": ((3, 3), {}, 5, 4, 1),
    "3x3 dilated": ((3, 3), {"padding": (2, 2, 2, 2), "dilation": (2, 2)}, 5, 4, 1),
    "3x3 asymmetric": ((3, 3), {"padding": (0, 0, 1, 1), "stride": (2, 2)}, 5, 4, 1),
    "1x5": ((1, 5), {"padding": (0, 2, 0, 2)}, 5, 4, 1),
    "7x7 stride 2": ((7, 7), {"padding": (3, 3, 3, 3), "stride": (2, 2)}, 3, 8, 1),
    "5x5 stride 3": ((5, 5), {"padding": (2, 2, 2, 2), "stride": (3, 3)}, 3, 8, 1),
    "stride 2x1": ((3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 1)}, 3, 8, 1),
    "padding wider than the kernel": ((3, 3), {"padding": (3, 4, 3, 4)}, 3, 8, 1),
    "1x1 stride 2": ((1, 1), {"stride": (2, 2)}, 6, 9, 1),
    "3x3 stride 2, few inputs": ((3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 2)}, 3, 12, 1),
    "3x3 stride 2, many outputs": ((3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 2)}, 6, 40, 1),
    "1x1 many channels": ((1, 1), {}, 70, 90, 1),
    "grouped": ((3, 3), {"padding": (1, 1, 1, 1), "groups": 3}, 6, 9, 3),
    "depthwise": ((3, 3), {"padding": (1, 1, 1, 1), "groups": 6}, 6, 6, 6),
    "depthwise stride 2": ((3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 2), "groups": 6}, 6, 6, 6),
    "depthwise multiplier": ((5, 5), {"padding": (2, 2, 2, 2), "groups": 6}, 6, 12, 6),
}


@pytest.mark.parametrize("size", [(9, 9), (16, 13), (30, 20)], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case, size):
    kernel, attrs, in_channels, out_channels, groups = CONVOLUTIONS[case]
    b = Builder(Graph())
    x = map_input(b.graph, in_channels, *size)
    w = weights(b, out_channels, in_channels // groups, *kernel)
    b.graph.outputs = [b.op("conv2d", x, w, vector(b, out_channels), attrs=attrs, inner=(0.0, np.inf), name="conv")]
    check_plan(b.graph, [random_images(x)])


@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("channels", [5, 19])
@pytest.mark.parametrize("stride", [1, 2])
def test_expansion_runs_with_the_depthwise_convolution_behind_it(stride, channels, keep, monkeypatch):
    """Gated in the middle as in an inverted residual block; the last block's depthwise result is gated on its own."""
    monkeypatch.setattr(lower_maps, "_RESIDENT_MAP_BYTES", 0)
    b = Builder(Graph())
    h = x = map_input(b.graph, 4, 17, 14)
    relu6 = {"inner": (0.0, 6.0)}
    for block in ("first", "last"):
        own = gate(b, x, channels, 0.5) if block == "last" else None
        m = gate(b, h, channels, keep)
        e = b.op("conv2d", h, weights(b, channels, h.type.channels, 1, 1), vector(b, channels), m, attrs=relu6,
                 name=f"{block}.expand")  # fmt: skip
        e.live = support(b, m)
        h = b.op("conv2d", e, weights(b, channels, 1, 3, 3), vector(b, channels), own, padding=(1, 1, 1, 1),
                 stride=(stride, stride), groups=channels, attrs=relu6, name=f"{block}.depthwise")  # fmt: skip
        if own is not None:
            h.live = support(b, own)
    b.graph.outputs = [h, b.op("spatial_reduce", h, kind="mean")]
    check_plan(b.graph, [random_images(x)])
    rows = Session(Program(b.graph), threads=1).profile(random_images(x)).rows
    kernels = {row["name"]: row["kernel"] for row in rows}
    assert kernels["first.expand"] == kernels["last.expand"] == "direct, few channels"


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("channels", [5, 16, 33])
def test_gated_chain_skips_outputs_then_inputs(channels, keep):
    b = Builder(Graph())
    x = map_input(b.graph, 4, 14)
    m = gate(b, x, channels, keep)
    live = support(b, m)
    a = b.op(
        "conv2d",
        x,
        weights(b, channels, 4, 3, 3),
        vector(b, channels),
        m,
        padding=(1, 1, 1, 1),
        inner=(0.0, np.inf),
        name="a",
    )
    a.live = live
    y = b.op("conv2d", a, weights(b, 7, channels, 3, 3), vector(b, 7), padding=(1, 1, 1, 1), name="b")
    b.graph.outputs = [y]
    check_plan(b.graph, [random_images(x)])


@pytest.mark.parametrize("size", [2, 4, 7, 8, 14, 28])
@pytest.mark.parametrize("non_negative", [True, False])
@pytest.mark.parametrize("pools", [("mean", "max"), ("mean", "sum")], ids="-".join)
def test_gated_residual_block(size, non_negative, pools):
    """Both convolutions gated as in ManiDP, the residual fused and updated in place where possible."""
    channels = 19
    b = Builder(Graph())
    x = map_input(b.graph, 3, size)
    stem_clamp = {"outer": (0.0, np.inf)} if non_negative else {}
    h = b.op("conv2d", x, weights(b, channels, 3, 3, 3), padding=(1, 1, 1, 1), attrs=stem_clamp, name="stem")
    m1 = gate(b, h, channels, 0.5)
    t, pooled = b.op("conv2d", h, weights(b, channels, channels, 3, 3), vector(b, channels), m1, padding=(1, 1, 1, 1),
                     inner=(0.0, np.inf), pools=("mean",), name="conv1")  # fmt: skip
    t.live = support(b, m1)
    score = b.op("linear", pooled, weights(b, channels, channels), vector(b, channels), inner=(0.0, np.inf))
    y, mean, other = b.op("conv2d", t, weights(b, channels, channels, 3, 3), vector(b, channels), score, None, h,
                          padding=(1, 1, 1, 1), outer=(0.0, np.inf), pools=pools, name="conv2")  # fmt: skip
    y.producer.computed = support(b, score)
    b.graph.outputs = [mean, other, y]
    check_plan(b.graph, [random_images(x)])


@pytest.mark.parametrize("channels", [12, 40])
@pytest.mark.parametrize("size", [8, 16, 30])
def test_residual_blocks_keep_what_the_last_one_did_not_change(size, channels):
    """Transformed inputs and pooled sums of untouched channels, whatever the blocks and images before left behind."""
    blocks, batch = 3, 24
    b = Builder(Graph())
    x = map_input(b.graph, 3, size)
    gates = [b.graph.add_input(f"gate{i}", TensorType("f32", (BATCH, channels))) for i in range(2 * blocks)]
    h, mean = b.op("conv2d", x, weights(b, channels, 3, 3, 3), padding=(1, 1, 1, 1), inner=(0.0, np.inf),
                   pools=("mean",), name="stem")  # fmt: skip
    for i in range(blocks):
        m1, m2 = gates[2 * i : 2 * i + 2]
        t = b.op("conv2d", h, weights(b, channels, channels, 3, 3), vector(b, channels), m1, padding=(1, 1, 1, 1),
                 inner=(0.0, np.inf), name=f"conv{i}.1")  # fmt: skip
        t.live = support(b, m1)
        h, new = b.op("conv2d", t, weights(b, channels, channels, 3, 3), vector(b, channels), m2, None, h,
                      padding=(1, 1, 1, 1), outer=(0.0, np.inf), pools=("mean",), name=f"conv{i}.2")  # fmt: skip
        h.producer.computed = support(b, m2)
        mean = b.op("add", mean, new)
    b.graph.outputs = [mean, h]
    # A layer of few live channels takes the direct kernel, one of none does nothing: nothing kept must outlive that.
    share = RNG.choice([0.0, 0.1, 0.5, 1.0], size=(2 * blocks, batch, 1))
    live = [(RNG.random((batch, channels)) < share[i]).astype(np.float32) for i in range(2 * blocks)]
    check_plan(b.graph, [random_images(x, batch), *live])


def test_residual_that_is_also_the_input_is_not_overwritten():
    b = Builder(Graph())
    x = map_input(b.graph, 6, 12)
    h = b.op("relu", b.op("conv2d", x, weights(b, 6, 6, 1, 1), name="stem"))
    y = b.op("conv2d", h, weights(b, 6, 6, 3, 3), None, None, None, h, padding=(1, 1, 1, 1), name="conv")
    b.graph.outputs = [y]
    check_plan(b.graph, [random_images(x)])


def test_shift_fills_channels_that_are_not_computed():
    """A mask before batch norm: masked channels become the constant clamp(shift)."""
    b = Builder(Graph())
    x = map_input(b.graph, 4, 10)
    m = gate(b, x, 12, 0.5)
    y = b.op(
        "conv2d",
        x,
        weights(b, 12, 4, 3, 3),
        None,
        m,
        vector(b, 12),
        padding=(1, 1, 1, 1),
        outer=(0.0, np.inf),
        name="conv",
    )
    y.producer.computed = support(b, m)
    z = b.op("conv2d", y, weights(b, 5, 12, 3, 3), padding=(1, 1, 1, 1), name="next")
    b.graph.outputs = [z]
    check_plan(b.graph, [random_images(x)])


def test_channel_bookkeeping_moves_nothing():
    """cat, slice, shuffle, pad and a strided slice are views; residual and masks follow them."""
    b = Builder(Graph())
    x = map_input(b.graph, 6, 12)
    m = gate(b, x, 6, 0.5)
    live = support(b, m)
    a = b.op("conv2d", x, weights(b, 6, 6, 3, 3), None, m, padding=(1, 1, 1, 1), name="a")
    a.live = live
    joined = b.op("cat", a, x, dim=1)
    joined.live = b.op("cat", live, b.op("logical_or", live, b.constant("all", np.ones((1, 6), bool))), dim=1)
    order = np.arange(12).reshape(2, 6).T.reshape(-1)
    shuffled = b.op("index_select", joined, b.constant("order", order), dim=1)
    shuffled.live = b.op("index_select", joined.live, b.constant("order", order), dim=1)
    part = b.op("slice", shuffled, dim=1, start=2, stop=10, step=1)
    part.live = b.op("slice", shuffled.live, dim=1, start=2, stop=10, step=1)
    h = b.op(
        "conv2d", part, weights(b, 10, 8, 3, 3), padding=(1, 1, 1, 1), stride=(2, 2), inner=(0.0, np.inf), name="down"
    )
    small = b.op("slice", b.op("slice", part, dim=2, start=0, stop=12, step=2), dim=3, start=0, stop=12, step=2)
    small.live = small.producer.inputs[0].live = part.live
    padded = b.op("pad", small, low=(0, 1, 0, 0), high=(0, 1, 0, 0), value=0.0)
    none = b.op("logical_and", part.live, b.constant("none", np.zeros((1, 8), bool)))
    edge = b.op("slice", none, dim=1, start=0, stop=1, step=1)
    padded.live = b.op("cat", edge, part.live, edge, dim=1)
    y = b.op(
        "conv2d",
        h,
        weights(b, 10, 10, 3, 3),
        None,
        None,
        None,
        padded,
        padding=(1, 1, 1, 1),
        outer=(0.0, np.inf),
        name="conv",
    )
    b.graph.outputs = [y]
    check_plan(b.graph, [random_images(x)])


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("max_pool2d", {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}),
        ("max_pool2d", {"kernel": (2, 2), "stride": (2, 2)}),
        ("max_pool2d", {"kernel": (3, 3), "stride": (2, 2), "ceil_mode": True}),
        ("avg_pool2d", {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "count_include_pad": False}),
        ("avg_pool2d", {"kernel": (3, 2), "stride": (2, 3), "padding": (1, 0, 1, 0), "ceil_mode": True}),
        ("adaptive_avg_pool2d", {"output": (3, 5)}),
        ("adaptive_max_pool2d", {"output": (1, 1)}),
        ("interpolate", {"size": (20, 31), "mode": "bilinear"}),
        ("interpolate", {"size": (26, 22), "mode": "nearest"}),
        ("softmax", {"dim": 1}),
        ("clamp", {"lo": -0.5, "hi": 0.25}),
        ("leaky_relu", {"slope": 0.1}),
        ("gelu", {"approximate": "tanh"}),
        ("hardswish", {}),
        ("sigmoid", {}),
        ("cast", {"dtype": "bool"}),
        ("reduce", {"kind": "max", "dims": (1,), "keepdim": True}),
        ("permute", {"dims": (0, 2, 3, 1)}),
        ("pad", {"low": (0, 0, 1, 2), "high": (0, 0, 0, 1), "value": 0.5}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_map_operator(op, attrs):
    b = Builder(Graph())
    x = map_input(b.graph, 5, 13, 11)
    h = b.op("conv2d", x, weights(b, 5, 5, 1, 1), name="conv")
    b.graph.outputs = [b.op(op, h, attrs=attrs)]
    check_plan(b.graph, [random_images(x)])


@pytest.mark.parametrize("shape", [(1, 9, 7), (6, 1, 1), (6, 9, 7), (), (1, 6, 1, 1)], ids=str)
@pytest.mark.parametrize("op", ["add", "sub", "mul", "maximum", "gt"])
def test_binary_with_a_constant_of_every_broadcast(op, shape):
    b = Builder(Graph())
    x = map_input(b.graph, 6, 9, 7)
    constant = b.constant("c", RNG.standard_normal(shape).astype(np.float32))
    b.graph.outputs = [b.op(op, x, constant), b.op(op, constant, x)]
    check_plan(b.graph, [random_images(x)])


@pytest.mark.parametrize("op", ["add", "mul", "sub"])
def test_binary_reads_unstored_channels_as_zero(op):
    b = Builder(Graph())
    x = map_input(b.graph, 8, 9)
    maps = []
    for name in "ab":
        m = gate(b, x, 8, 0.5)
        y = b.op("conv2d", x, weights(b, 8, 8, 3, 3), None, m, padding=(1, 1, 1, 1), name=name)
        y.live = support(b, m)
        maps.append(y)
    total = b.op(op, *maps)
    total.live = b.op("logical_and" if op == "mul" else "logical_or", maps[0].live, maps[1].live)
    b.graph.outputs = [b.op("sigmoid", total), b.op("spatial_reduce", total, kind="l2")]
    check_plan(b.graph, [random_images(x)])


def test_constant_masks_hold_without_skipping():
    b = Builder(Graph())
    x = map_input(b.graph, 6, 9)
    keep = b.constant("keep", np.array([[1, 0, 1, 1, 0, 0, 1]], bool))
    y = b.op("conv2d", x, weights(b, 7, 6, 3, 3), padding=(1, 1, 1, 1), name="a")
    y.live = keep
    b.graph.outputs = [b.op("conv2d", b.op("relu", y), weights(b, 5, 7, 3, 3), padding=(1, 1, 1, 1), name="b")]
    b.graph.nodes[1].output.live = keep
    check_plan(b.graph, [random_images(x)])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("readers", ["mask", "mask and values", "two masks"])
def test_mask_of_the_largest_is_one_step(readers, largest):
    b = Builder(Graph())
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 21)))
    values, indices = b.append("topk", [x], {"k": 8, "dim": 1, "largest": largest})
    one, zeros = b.constant("one", np.float32(1)), b.constant("zeros", np.zeros((1, 21), np.float32))
    masks = [b.op("scatter", base, indices, one, dim=1) for base in ([zeros, x] if readers == "two masks" else [zeros])]
    b.graph.outputs = [*masks, values] if readers == "mask and values" else masks
    images = random_images(x, 4)
    images[1, 5:] = 0.25  # ties
    images[2, 3] = np.nan
    check_plan(b.graph, [images])
    kernels = [layer.op for layer in lower(b.graph).layers]
    assert ("topk" in kernels) == (readers != "mask")


def test_several_inputs_and_outputs_of_every_kind():
    b = Builder(Graph())
    x = map_input(b.graph, 3, 8)
    scale = b.graph.add_input("scale", TensorType("f32", (BATCH, 3)))
    y = b.op("mul", x, b.op("reshape", scale, shape=(BATCH, 3, 1, 1)))
    best = b.op("argmax", b.op("spatial_reduce", y, kind="max"), dim=1, keepdim=False)
    b.graph.outputs = [y, best, x, scale]
    check_plan(b.graph, [random_images(x), random_images(scale)])


def test_one_by_one_maps_run_as_vectors():
    b = Builder(Graph())
    x = map_input(b.graph, 8, 6)
    pooled = b.op("reshape", b.op("spatial_reduce", x, kind="mean"), shape=(BATCH, 8, 1, 1))
    squeeze = b.op("conv2d", pooled, weights(b, 4, 8, 1, 1), vector(b, 4), inner=(0.0, np.inf), name="squeeze")
    excite = b.op("sigmoid", b.op("conv2d", squeeze, weights(b, 8, 4, 1, 1), name="excite"))
    b.graph.outputs = [b.op("mul", x, excite)]
    check_plan(b.graph, [random_images(x)])


def test_unknown_operator_names_the_layer():
    b = Builder(Graph())
    x = map_input(b.graph, 3, 8)
    b.graph.outputs = [b.op("relu", x, name="features.act", origin="net.py:12")]
    b.graph.nodes[0].op = "einsum"
    b.graph.nodes[0].inputs = [b.op("spatial_reduce", x, kind="mean")]
    b.graph.nodes.reverse()
    with pytest.raises(DeviceError, match=r"einsum.*features\.act.*net\.py:12"):
        Session(Program(b.graph), threads=1)
