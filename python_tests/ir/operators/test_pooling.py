from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.operators.pooling import SPATIAL_REDUCTIONS
from dynprune_rt.ir.types import TensorType
from python_tests.ir.operators.case import Case, check_against_torch, random

X = random(2, 3, 9, 7)


def with_nan(x):
    x = x.copy()
    x[0, 1, 4, 3] = np.nan
    return x


def max_pool(label, x, kernel, stride, pad=(0, 0), dilation=(1, 1), ceil_mode=False):
    attrs = {
        "kernel": kernel,
        "stride": stride,
        "padding": (*pad, *pad),
        "dilation": dilation,
        "ceil_mode": ceil_mode,
    }

    def run(x):
        return F.max_pool2d(x, kernel, stride, pad, dilation, ceil_mode)

    return Case("max_pool2d", [x], run, attrs, label=label)


def avg_pool(label, x, kernel, stride, pad=(0, 0), ceil_mode=False, count_include_pad=True, divisor=0):
    attrs = {
        "kernel": kernel,
        "stride": stride,
        "padding": (*pad, *pad),
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
        "divisor": divisor,
    }

    def run(x):
        return F.avg_pool2d(x, kernel, stride, pad, ceil_mode, count_include_pad, divisor or None)

    return Case("avg_pool2d", [x], run, attrs, label=label)


def interpolate(label, x, **arguments):
    with_scale = "scale_factor" in arguments
    out = F.interpolate(torch.from_numpy(x), **arguments)
    recompute = arguments.get("recompute_scale_factor", False)
    attrs = {
        "size": tuple(out.shape[2:]),
        "mode": arguments["mode"],
        "align_corners": arguments.get("align_corners", False),
        "scale": arguments["scale_factor"] if with_scale and not recompute else None,
    }
    return Case("interpolate", [x], lambda x: F.interpolate(x, **arguments), attrs, label=label, atol=3e-6)


def adaptive(op, function, output):
    return Case(op, [X], lambda x: function(x, output), {"output": output}, label=str(output))


TORCH_REDUCTIONS = {
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum((2, 3)),
    "mean_abs": lambda x: x.abs().mean((2, 3)),
    "sum_abs": lambda x: x.abs().sum((2, 3)),
    "sum_squares": lambda x: x.square().sum((2, 3)),
    "l2": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "min": lambda x: x.amin((2, 3)),
    "max_abs": lambda x: x.abs().amax((2, 3)),
}

CASES = [
    max_pool("resnet", X, (3, 3), (2, 2), (1, 1)),
    max_pool("uneven", X, (2, 3), (1, 2), (1, 0)),
    max_pool("dilation", X, (3, 2), (1, 1), (1, 1), (2, 3)),
    max_pool("ceil", X, (3, 3), (2, 2), (1, 1), ceil_mode=True),
    max_pool("ceil drops a window", X, (2, 2), (3, 3), (1, 1), ceil_mode=True),
    max_pool("nan", with_nan(X), (2, 2), (2, 2)),
    avg_pool("2x2", X, (2, 2), (2, 2)),
    avg_pool("pad counts", X, (3, 3), (2, 2), (1, 1)),
    avg_pool("pad does not count", X, (3, 3), (2, 2), (1, 1), count_include_pad=False),
    avg_pool("ceil", X, (3, 2), (2, 2), (1, 1), ceil_mode=True),
    avg_pool("ceil, pad does not count", X, (2, 2), (2, 2), (1, 1), True, False),
    avg_pool("divisor", X, (3, 3), (2, 2), (1, 1), True, divisor=7),
    *(adaptive("adaptive_avg_pool2d", F.adaptive_avg_pool2d, size) for size in ((1, 1), (2, 3), (9, 7), (12, 10))),
    *(adaptive("adaptive_max_pool2d", F.adaptive_max_pool2d, size) for size in ((1, 1), (2, 3), (12, 10))),
    *(
        Case("spatial_reduce", [X], TORCH_REDUCTIONS[kind], {"kind": kind}, label=kind, atol=2e-5)
        for kind in SPATIAL_REDUCTIONS
    ),
    Case("spatial_reduce", [with_nan(X)], TORCH_REDUCTIONS["max"], {"kind": "max"}, label="max nan"),
    interpolate("nearest 2x", X, scale_factor=(2.0, 2.0), mode="nearest"),
    interpolate("nearest odd scale", X, scale_factor=(1.7, 0.6), mode="nearest"),
    interpolate("nearest size", X, size=(13, 4), mode="nearest"),
    interpolate("bilinear 2x", X, scale_factor=(2.0, 2.0), mode="bilinear"),
    interpolate("bilinear odd scale", X, scale_factor=(1.7, 0.6), mode="bilinear"),
    interpolate("bilinear recomputed", X, scale_factor=(1.7, 0.6), mode="bilinear", recompute_scale_factor=True),
    interpolate("bilinear size", X, size=(13, 4), mode="bilinear"),
    interpolate("bilinear corners", X, size=(13, 4), mode="bilinear", align_corners=True),
    interpolate("bilinear corners 1", X, size=(1, 1), mode="bilinear", align_corners=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case):
    check_against_torch(case)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil_mode=st.booleans(),
    count_include_pad=st.booleans(),
)
def test_any_pool(size, kernel, stride, pad, ceil_mode, count_include_pad):
    pad = tuple(min(p, k // 2) for p, k in zip(pad, kernel, strict=True))  # torch's own limit
    x = random(1, 2, *size)
    if any(n + 2 * p < k for n, p, k in zip(size, pad, kernel, strict=True)):
        with pytest.raises(VerificationError, match="does not fit"):
            OPERATORS["max_pool2d"].infer_types(
                [TensorType("f32", (-1, 2, *size))],
                {"kernel": kernel, "stride": stride, "padding": (*pad, *pad), "ceil_mode": ceil_mode},
            )
        return
    check_against_torch(max_pool("", x, kernel, stride, pad, ceil_mode=ceil_mode))
    check_against_torch(avg_pool("", x, kernel, stride, pad, ceil_mode, count_include_pad))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    out=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    align_corners=st.booleans(),
)
def test_any_resize(size, out, align_corners):
    x = random(1, 2, *size)
    check_against_torch(interpolate("", x, size=out, mode="nearest"))
    check_against_torch(interpolate("", x, size=out, mode="bilinear", align_corners=align_corners))
    check_against_torch(adaptive_of(x, out))


def adaptive_of(x, out):
    return Case("adaptive_avg_pool2d", [x], lambda t: F.adaptive_avg_pool2d(t, out), {"output": out})


def test_asymmetric_padding_equals_padding_first():
    attrs = {"kernel": (3, 3), "stride": (2, 2), "padding": (0, 1, 2, 0)}
    (out,) = OPERATORS["max_pool2d"].compute([X], attrs)
    padded = F.pad(torch.from_numpy(X), (1, 0, 0, 2), value=-np.inf)
    np.testing.assert_array_equal(out, F.max_pool2d(padded, 3, 2).numpy())
    (out,) = OPERATORS["avg_pool2d"].compute([X], attrs)
    padded = F.pad(torch.from_numpy(X), (1, 0, 0, 2))
    np.testing.assert_allclose(out, F.avg_pool2d(padded, 3, 2).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("max_pool2d", {"kernel": (2, 2), "stride": (1, 1), "padding": (2, 0, 0, 0)}, "must be less than the extent"),
        ("max_pool2d", {"kernel": (10, 2), "stride": (1, 1)}, "does not fit"),
        ("max_pool2d", {"kernel": (2, 2)}, "needs attribute 'stride'"),
        ("max_pool2d", {"kernel": (2, 2), "stride": (1, 1), "divisor": 2}, "has no attribute 'divisor'"),
        (
            "max_pool2d",
            {"kernel": (2, 2), "stride": (1, 1), "dilation": (10, 1), "padding": (5, 0, 0, 0)},
            "miss the input",
        ),
        ("adaptive_avg_pool2d", {"output": (0, 1)}, "expected an integer in"),
        ("spatial_reduce", {"kind": "median"}, "expected one of"),
        ("interpolate", {"size": (2, 2), "mode": "bicubic"}, "expected one of nearest, bilinear"),
        ("interpolate", {"size": (2, 2), "mode": "nearest", "align_corners": True}, "no meaning"),
        ("interpolate", {"size": (2, 2), "mode": "nearest", "scale": (0.0, 1.0)}, "expected positive numbers"),
    ],
)
def test_refuses(op, attrs, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS[op].infer_types([TensorType("f32", (-1, 3, 9, 7))], attrs)
