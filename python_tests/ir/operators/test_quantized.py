"""Operators on quantised maps, against torch on the same integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.operators.quantized import round_saturated
from dynprune_rt.ir.types import BATCH, TensorType
from python_tests.ir.operators.case import Case, check_against_torch, constants, integers, random

_TORCH_DTYPES = {"u8": torch.uint8, "s8": torch.int8}
_LIMITS = {"u8": (0, 255), "s8": (-128, 127)}


def unsigned(*shape: int, seed: int = 0) -> np.ndarray:
    return integers(256, *shape, seed=seed).astype(np.uint8)


def signed(*shape: int, seed: int = 0) -> np.ndarray:
    return (integers(256, *shape, seed=seed) - 128).astype(np.int8)


def stored(v: torch.Tensor, dtype: str) -> torch.Tensor:
    return v.clamp(*_LIMITS[dtype]).to(_TORCH_DTYPES[dtype])


def torch_quantize(scale: float, dtype: str):
    return lambda x: stored(torch.round(x * (torch.tensor(1.0) / torch.tensor(scale))), dtype)


def torch_convolution(**attrs):
    dtype, residual_scale = attrs["dtype"], attrs.get("residual_scale", 0.0)
    geometry = {name: attrs[name] for name in ("stride", "dilation", "groups") if name in attrs}

    def run(x, weight, scale, bias, gate=None, shift=None, residual=None):
        top, left, bottom, right = attrs.get("padding", (0, 0, 0, 0))
        padded = torch.nn.functional.pad(x.double(), (left, right, top, bottom))
        sums = torch.nn.functional.conv2d(padded, weight.double(), **geometry)
        scale, bias = scale[None], bias[None]
        if gate is not None:
            scale, bias = scale * gate, bias * gate
        if shift is not None:
            bias = bias + shift
        v = sums.float() * scale[:, :, None, None] + bias[:, :, None, None]
        if residual is None:
            high = torch.as_tensor(attrs.get("inner_high", math.inf))
            if gate is not None and high != math.inf:
                high = (high * gate)[:, :, None, None]
            return stored(torch.round(torch.minimum(v, high)), dtype)
        v = v.clamp(min=attrs.get("inner_low", -math.inf))
        if residual_scale == 1 and residual.dtype == _TORCH_DTYPES[dtype]:
            return stored(torch.round(v).clamp(-32768, 32767).int() + residual.int(), dtype)
        return stored(torch.round(v + residual.float() * residual_scale), dtype)

    return run


def conv_case(label: str, *inputs: np.ndarray | None, **attrs) -> Case:
    return Case("quantized_conv2d", inputs, torch_convolution(**attrs), attrs, constants(1, 2, 3, 5), label)


def vectors(channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias that fill the range of 8 bits for a few dozen products."""
    return np.abs(random(channels, seed=seed)) * np.float32(0.004), random(channels, seed=seed + 1) * np.float32(40)


GATE = np.where(random(3, 5) > 0, np.abs(random(3, 5, seed=3)), 0).astype(np.float32)

CASES = [
    Case("quantize", [random(2, 3, 4, 5)], torch_quantize(0.02, "s8"), {"scale": 0.02, "dtype": "s8"}, label="s8"),
    Case("quantize", [random(2, 3, 4, 5)], torch_quantize(0.007, "u8"), {"scale": 0.007, "dtype": "u8"}, label="u8"),
    Case("dequantize", [unsigned(2, 3, 4, 5)], lambda x: x.float() * 0.03, {"scale": 0.03}, label="u8"),
    Case("dequantize", [signed(2, 3, 4, 5)], lambda x: x.float() * 0.03, {"scale": 0.03}, label="s8"),
    Case(
        "quantized_spatial_reduce",
        [unsigned(2, 3, 5, 4)],
        lambda x: x.sum((2, 3)).float() * np.float32(0.02 / 20),
        {"kind": "mean", "scale": 0.02},
        label="mean",
    ),
    Case(
        "quantized_spatial_reduce",
        [signed(2, 3, 5, 4)],
        lambda x: x.sum((2, 3)).float() * 0.5,
        {"kind": "sum", "scale": 0.5},
        label="sum",
    ),
    Case(
        "quantized_spatial_reduce",
        [signed(2, 3, 5, 4)],
        lambda x: x.amax((2, 3)).float() * 0.5,
        {"kind": "max", "scale": 0.5},
        label="max",
    ),
    Case(
        "quantized_spatial_reduce",
        [signed(2, 3, 5, 4)],
        lambda x: x.int().abs().sum((2, 3)).float() * np.float32(0.5 / 20),
        {"kind": "mean_abs", "scale": 0.5},
        label="mean_abs",
    ),
    Case(
        "quantized_spatial_reduce",
        [signed(2, 3, 5, 4)],
        lambda x: x.int().square().sum((2, 3)).float() * 0.25,
        {"kind": "sum_squares", "scale": 0.5},
        label="sum_squares",
    ),
    Case(
        "quantized_spatial_reduce",
        [unsigned(2, 3, 5, 4)],
        lambda x: x.int().square().sum((2, 3)).float().sqrt() * 0.5,
        {"kind": "l2", "scale": 0.5},
        label="l2",
    ),
    Case(
        "max_pool2d",
        [unsigned(2, 3, 6, 7)],
        lambda x: torch.nn.functional.max_pool2d(x.float(), 3, 2, 1).to(torch.uint8),
        {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)},
        label="u8",
    ),
    Case(
        "max_pool2d",
        [signed(2, 3, 6, 7)],
        lambda x: torch.nn.functional.max_pool2d(x.float(), 3, 2, 1).to(torch.int8),
        {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)},
        label="s8",
    ),
    conv_case("plain", unsigned(3, 4, 6, 5), signed(5, 4, 3, 3), *vectors(5), padding=(1, 1, 1, 1), dtype="u8"),
    conv_case(
        "strided", signed(3, 4, 7, 6), signed(5, 4, 3, 3), *vectors(5), stride=(2, 2), padding=(1, 0, 2, 1), dtype="s8"
    ),
    conv_case(
        "depthwise", unsigned(3, 5, 6, 6), signed(5, 1, 3, 3), *vectors(5), padding=(1, 1, 1, 1), groups=5, dtype="s8"
    ),
    conv_case("gate", unsigned(3, 4, 3, 3), signed(5, 4, 1, 1), *vectors(5), GATE, random(5) * 9, dtype="u8"),
    conv_case(
        "bound before a gate", unsigned(3, 4, 3, 3), signed(5, 4, 1, 1), *vectors(5), GATE, dtype="u8", inner_high=31.5
    ),
    conv_case("bound", unsigned(3, 4, 3, 3), signed(5, 4, 1, 1), *vectors(5), dtype="s8", inner_high=20.0),
    conv_case(
        "residual",
        unsigned(3, 4, 3, 3),
        signed(5, 4, 1, 1),
        *vectors(5),
        GATE,
        None,
        unsigned(3, 5, 3, 3, seed=4),
        dtype="u8",
        residual_scale=1.0,
        inner_low=0.0,
    ),
    conv_case(
        "scaled residual",
        unsigned(3, 4, 3, 3),
        signed(5, 4, 1, 1),
        *vectors(5),
        None,
        random(5) * 9,
        signed(3, 5, 3, 3, seed=4),
        dtype="u8",
        residual_scale=0.75,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case):
    check_against_torch(case)


def test_rounding():
    v = np.array([0.5, 1.5, -0.5, -1.5, 2.4999998, 1e9, -1e9, np.inf, -np.inf, np.nan], np.float32)
    assert round_saturated(v).tolist() == [0, 2, 0, -2, 2, 32767, -32768, 32767, -32768, -32768]


def test_what_a_convolution_refuses():
    row = OPERATORS["quantized_conv2d"]
    x, residual = TensorType("u8", (BATCH, 4, 6, 6)), TensorType("u8", (BATCH, 5, 6, 6))
    weight, vector = TensorType("s8", (5, 4, 1, 1)), TensorType("f32", (5,))

    def infer(*types, **attrs):
        return row.infer_types([x, weight, vector, vector, *types], {"dtype": "u8", **attrs})

    assert infer()[0] == TensorType("u8", (BATCH, 5, 6, 6))
    for wrong, match in (
        (lambda: infer(None, None, residual), "needs a scale"),
        (lambda: infer(residual_scale=1.0), "needs a scale"),
        (lambda: infer(inner_low=0.0), "inner_low"),
        (lambda: infer(None, vector, inner_high=9.0), "inner_high"),
        (lambda: infer(inner_high=-1.0), "upper bound"),
        (lambda: infer(None, None, x, residual_scale=1.0), "the residual is"),
        (lambda: infer(vector), "the gate is"),
        (lambda: infer(residual_scale=1e-42), "range of float32"),
        (lambda: infer(dtype="f32"), "expected one of"),
        (lambda: row.infer_types([x, weight, vector], {"dtype": "u8"}), "operands"),
        (lambda: row.infer_types([x, TensorType("s8", (5, 9999, 3, 3)), vector, vector], {"dtype": "u8"}), "channels"),
        (
            lambda: row.infer_types(
                [TensorType("u8", (BATCH, 9999, 6, 6)), TensorType("s8", (5, 9999, 3, 3)), vector, vector],
                {"dtype": "u8"},
            ),
            "32 bits",
        ),
        (
            lambda: row.infer_types([x, TensorType("s8", (3, 2, 1, 1)), *[TensorType("f32", (3,))] * 2],
                                    {"dtype": "u8", "groups": 2}),
            "do not divide",
        ),
    ):  # fmt: skip
        with pytest.raises(VerificationError, match=match):
            wrong()
