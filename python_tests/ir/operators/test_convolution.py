from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.types import TensorType
from python_tests.ir.operators.case import Case, check_against_torch, constants, random


def torch_conv(attrs):
    """conv2d with its epilogue, spelled out in torch."""

    def run(x, weight, bias=None, gate=None, shift=None, residual=None):
        top, left, bottom, right = attrs.get("padding", (0, 0, 0, 0))
        v = F.conv2d(
            F.pad(x, (left, right, top, bottom)),
            weight,
            bias,
            attrs.get("stride", 1),
            0,
            attrs.get("dilation", 1),
            attrs.get("groups", 1),
        )
        v = v.clamp(*attrs.get("inner", (-math.inf, math.inf)))
        if gate is not None:
            v = v * gate[:, :, None, None]
        if shift is not None:
            v = v + shift[..., None, None]
        if residual is not None:
            v = v + residual
        v = v.clamp(*attrs.get("outer", (-math.inf, math.inf)))
        pools = {"mean": v.mean((2, 3)), "max": v.amax((2, 3)), "l2": v.square().sum((2, 3)).sqrt()}
        return (v, *(pools[kind] for kind in attrs.get("pools", ())))

    return run


def conv(label, inputs, constant=(1, 2, 4), **attrs):
    return Case("conv2d", inputs, torch_conv(attrs), attrs, constants(*constant), label, atol=1e-5)


X = random(2, 6, 9, 8)
GATE = np.maximum(random(2, 4, seed=3), 0)
CASES = [
    conv("1x1", [X, random(4, 6, 1, 1)]),
    conv("bias", [X, random(4, 6, 3, 3), random(4)], padding=(1, 1, 1, 1)),
    conv("stride", [X, random(4, 6, 3, 3)], padding=(1, 1, 1, 1), stride=(2, 2)),
    conv("uneven", [X, random(4, 6, 3, 2)], padding=(2, 0, 1, 1), stride=(1, 3), dilation=(2, 1)),
    conv("groups", [X, random(4, 3, 3, 3)], groups=2),
    conv("depthwise", [X, random(12, 1, 3, 3)], groups=6, dilation=(2, 2)),
    conv("gate", [X, random(4, 6, 3, 3), random(4), GATE], inner=(0.0, math.inf)),
    conv("shift per image", [X, random(4, 6, 3, 3), None, GATE, random(2, 4, seed=5)], constant=(1, 2)),
    conv("shift", [X, random(4, 6, 3, 3), None, GATE, random(4, seed=5)], outer=(0.0, 6.0)),
    conv(
        "everything",
        [X, random(4, 6, 3, 3), random(4), GATE, random(4, seed=5), random(2, 4, 9, 8)],
        padding=(1, 1, 1, 1),
        inner=(-1.0, 1.0),
        outer=(0.0, math.inf),
        pools=("max", "mean", "l2"),
    ),
    conv("residual", [X, random(4, 6, 1, 1), None, None, None, random(2, 4, 9, 8)], outer=(0.0, math.inf)),
    Case("linear", [random(3, 5), random(4, 5)], F.linear, unbatched=constants(1)),
    Case("linear", [random(3, 2, 5), random(4, 5), random(4)], F.linear, {}, constants(1, 2), "rank 3"),
    Case(
        "linear",
        [random(3, 5), random(4, 5), random(4)],
        lambda x, w, b: F.linear(x, w, b).clamp(0, 1),
        {"inner": (0.0, 1.0)},
        constants(1, 2),
        "clamp",
    ),
    Case("matmul", [random(3, 5), random(5, 4)], torch.matmul, {}, constants(1), "matrix"),
    Case("matmul", [random(3, 5), random(5)], torch.matmul, {}, constants(1), "vector"),
    Case("matmul", [random(3, 2, 5), random(3, 5, 4)], torch.matmul, label="batched"),
    Case("matmul", [random(2, 5), random(3, 5, 4)], torch.matmul, {}, constants(0), "constant first"),
    Case("matmul", [random(3, 2, 4, 5), random(2, 5, 3)], torch.matmul, {}, constants(1), "broadcast"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case):
    check_against_torch(case)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
)
def test_any_geometry(channels, groups, size, kernel, stride, dilation, padding):
    x = random(2, channels[0] * groups, *size)
    weight = random(channels[1] * groups, channels[0], *kernel)
    attrs = {"groups": groups, "stride": stride, "dilation": dilation, "padding": padding}
    fits = all(size[i] + padding[i] + padding[i + 2] > dilation[i] * (kernel[i] - 1) for i in range(2))
    case = Case("conv2d", [x, weight], torch_conv(attrs), attrs, constants(1), atol=1e-5)
    if fits:
        check_against_torch(case)
    else:
        with pytest.raises(VerificationError, match="does not fit"):
            OPERATORS["conv2d"].infer_types(case.types(), attrs)


def test_nan_passes_the_clamps():
    x = np.full((1, 1, 1, 1), np.nan, np.float32)
    attrs = {"inner": (0.0, 1.0), "outer": (0.0, 1.0)}
    (out,) = OPERATORS["conv2d"].compute([x, np.ones((1, 1, 1, 1), np.float32)], attrs)
    assert np.isnan(out).all()


MAP = TensorType("f32", (-1, 6, 9, 8))
WEIGHT = TensorType("f32", (4, 6, 3, 3))
VECTOR = TensorType("f32", (4,))


@pytest.mark.parametrize(
    ("types", "attrs", "message"),
    [
        ([MAP, TensorType("f32", (4, 5, 3, 3))], {}, "has 6 channels, the weight expects 5 x 1 groups"),
        ([MAP, TensorType("f32", (3, 3, 3, 3))], {"groups": 2}, "3 output channels do not divide into 2 groups"),
        ([TensorType("i64", (-1, 6, 9, 8)), WEIGHT], {}, "the input is i64"),
        ([TensorType("f32", (2, 6, 9, 8)), WEIGHT], {}, "expected a feature map"),
        ([MAP, VECTOR], {}, "the weight is"),
        ([MAP, WEIGHT, TensorType("f32", (5,))], {}, "the bias is"),
        ([MAP, WEIGHT, None, VECTOR], {}, "the gate is"),
        ([MAP, WEIGHT, None, None, TensorType("f32", (-1, 3))], {}, "the shift is"),
        ([MAP, WEIGHT, None, None, TensorType("f32", (3,))], {}, "the shift is"),
        ([MAP, WEIGHT, None, None, None, MAP], {}, "the residual is"),
        ([MAP, None], {}, "operand 1 is missing"),
        ([MAP], {}, "takes 2 to 6 operands, got 1"),
        ([MAP, WEIGHT], {"stride": (0, 1)}, "'stride': expected an integer in"),
        ([MAP, WEIGHT], {"stride": (1,)}, "expected 2 integers, got 1"),
        ([MAP, WEIGHT], {"inner": (1.0, 0.0)}, "exceeds the upper bound"),
        ([MAP, WEIGHT], {"outer": (math.nan, 0.0)}, "expected a number"),
        ([MAP, WEIGHT], {"pools": ("median",)}, "expected one of mean"),
        ([MAP, WEIGHT], {"pools": ("mean", "mean")}, "repeated"),
    ],
)
def test_conv2d_refuses(types, attrs, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS["conv2d"].infer_types(types, attrs)


@pytest.mark.parametrize(
    ("op", "a", "b", "message"),
    [
        ("linear", (-1, 5), (4, 6), "has 5 features, the weight expects 6"),
        ("linear", (-1,), (4, 6), "is the batch"),
        ("matmul", (-1, 5), (-1, 5), "is the batch"),
        ("matmul", (-1, 5), (6, 4), "the inner sizes differ"),
        ("matmul", (-1, 5), (2, 5, 4), "batch would not be the first|batch meets|dimension"),
        ("matmul", (-1, 2, 5), (3, 5, 4), "the batch meets another dimension"),
    ],
)
def test_products_refuse(op, a, b, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS[op].infer_types([TensorType("f32", a), TensorType("f32", b)], {})
