"""Operators on quantised maps (u8, s8): integer convolution with its float epilogue, conversions, reductions.

A quantised value is ``scale * integer``; there are no zero points, so zero is exact in every type. Scales are
attributes of the operators that meet floats; a convolution's ``scale`` operand holds input scale * weight
scale / output scale per channel. Float arithmetic is float32, one operation at a time in the order given
here, so that every backend can return the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from dynprune_rt.ir.operators import rules
from dynprune_rt.ir.operators.attributes import Attribute, choice, integer, integers, number
from dynprune_rt.ir.operators.convolution import conv_output_size, convolve
from dynprune_rt.ir.operators.registry import Arrays, Attrs, Channels, Operator, Types, register
from dynprune_rt.ir.types import DTYPES, QUANTIZED, TensorType

#: A convolution rounds values to integers in this range before it adds a residual of the same scale.
ROUNDED_LOW, ROUNDED_HIGH = -32768.0, 32767.0

#: Largest sum of magnitudes of one output element of a convolution: sums are 32-bit integers.
MAX_SUM = 2**31 - 1


def positive(value: object) -> float:
    """A finite number > 0 that float32 can hold."""
    result: float = number()(value)
    if not result > 0 or not np.isfinite(np.float32(result)) or np.float32(result) < np.finfo(np.float32).tiny:
        raise ValueError(f"expected a positive number in the range of float32, got {result}")
    return result


def positive_or_zero(value: object) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else positive(value)


def lower_bound(value: object) -> float:
    """A number or -inf."""
    result: float = number(finite=False)(value)
    if result == math.inf:
        raise ValueError("expected a lower bound, got inf")
    return result


def upper_bound(value: object) -> float:
    """A number >= 0, or inf."""
    result: float = number(finite=False)(value)
    if not result >= 0:
        raise ValueError(f"expected an upper bound of at least 0, got {result}")
    return result


def round_saturated(v: np.ndarray) -> np.ndarray:
    """float32 to the nearest int32 in [-32768, 32767], ties to even; NaN gives the lower bound."""
    with np.errstate(invalid="ignore"):
        kept = np.clip(np.where(np.isnan(v), np.float32(ROUNDED_LOW), v), ROUNDED_LOW, ROUNDED_HIGH)
    return np.asarray(np.rint(kept), np.int32)


def saturate(v: np.ndarray, dtype: str) -> np.ndarray:
    """Integers to the nearest ones that ``dtype`` holds."""
    limits = np.iinfo(DTYPES[dtype])
    return np.asarray(np.clip(v, limits.min, limits.max), DTYPES[dtype])


# -- quantize, dequantize ---------------------------------------------------------------------------


def _infer_quantize(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_map(x)
    return (TensorType(attrs["dtype"], x.shape),)


def _quantize(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    assert x is not None
    inverse = np.float32(1) / np.float32(attrs["scale"])
    return (saturate(round_saturated(x * inverse), attrs["dtype"]),)


register(
    Operator(
        "quantize",
        (1, 1),
        _infer_quantize,
        _quantize,
        Channels.POINTWISE,
        zero_preserving=True,
        attrs={"scale": Attribute(positive), "dtype": Attribute(choice(*QUANTIZED))},
    )
)


def _infer_dequantize(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_map_of(x, QUANTIZED)
    return (TensorType("f32", x.shape),)


def _dequantize(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    assert x is not None
    return (x.astype(np.float32) * np.float32(attrs["scale"]),)


register(
    Operator(
        "dequantize",
        (1, 1),
        _infer_dequantize,
        _dequantize,
        Channels.POINTWISE,
        zero_preserving=True,
        attrs={"scale": Attribute(positive)},
    )
)


# -- convolution ------------------------------------------------------------------------------------


def _infer_conv2d(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight, scale, bias = (rules.operand(types, i) for i in range(4))
    gate, shift, residual = types[4:]
    rules.require_map_of(x, QUANTIZED, "the input")
    if weight.dtype != "s8" or weight.rank != 4 or weight.batched:
        raise ValueError(f"the weight is {weight}, expected s8[K, C/groups, R, S]")
    out_channels, group_channels, *kernel = weight.shape
    groups = attrs["groups"]
    if x.channels != group_channels * groups:
        raise ValueError(f"the input has {x.channels} channels, the weight expects {group_channels} x {groups} groups")
    if out_channels % groups:
        raise ValueError(f"{groups} groups do not divide {out_channels} output channels")
    if math.prod(weight.shape[1:]) * 128 * 255 > MAX_SUM:
        raise ValueError(f"sums over {math.prod(weight.shape[1:])} products may leave 32 bits")
    size = conv_output_size(x.shape[2:], kernel, attrs["stride"], attrs["padding"], attrs["dilation"])
    out = TensorType(attrs["dtype"], (x.shape[0], out_channels, *size))
    per_channel = TensorType("f32", (x.shape[0], out_channels))
    for vector, what in ((scale, "the scale"), (bias, "the bias")):
        rules.require_vector(vector, out_channels, what)
    if shift is None or not shift.batched:
        rules.require_vector(shift, out_channels, "the shift")
    elif shift != per_channel:
        raise ValueError(f"the shift is {shift}, expected f32[{out_channels}] or {per_channel}")
    if gate is not None and gate != per_channel:
        raise ValueError(f"the gate is {gate}, expected {per_channel}")
    if (residual is None) != (attrs["residual_scale"] == 0):
        raise ValueError("a residual needs a scale, and the scale a residual")
    if attrs["inner_high"] != math.inf and (residual is not None or shift is not None):
        raise ValueError("inner_high is a bound of the scaled sum alone; there is a shift or a residual")
    if residual is None:
        if attrs["inner_low"] != -math.inf:
            raise ValueError("inner_low is a bound before the residual is added; there is none")
    elif residual.shape != out.shape or residual.dtype not in QUANTIZED:
        raise ValueError(f"the residual is {residual}, expected {out} or its other sign")
    return (out,)


def _finish(sums: np.ndarray, arrays: Arrays, attrs: Attrs) -> np.ndarray:
    """The epilogue for integer sums [N,K,H',W']."""
    _, _, scale, bias, gate, shift, residual = arrays
    assert scale is not None and bias is not None
    s, b = scale[None], bias[None]
    if gate is not None:
        s, b = s * gate, b * gate
    if shift is not None:
        b = b + shift
    v = sums.astype(np.float32) * s[:, :, None, None] + b[:, :, None, None]
    if residual is None:
        if attrs["inner_high"] != math.inf:
            high = np.float32(attrs["inner_high"]) * (np.float32(1) if gate is None else gate[:, :, None, None])
            v = np.where(v > high, high, v)
        return saturate(round_saturated(v), attrs["dtype"])
    v = np.maximum(v, np.float32(attrs["inner_low"]))
    if attrs["residual_scale"] == 1 and residual.dtype == DTYPES[attrs["dtype"]]:
        return saturate(round_saturated(v) + residual, attrs["dtype"])
    return saturate(
        round_saturated(v + residual.astype(np.float32) * np.float32(attrs["residual_scale"])), attrs["dtype"]
    )


def passed_residual(arrays: Arrays, attrs: Attrs) -> np.ndarray:
    """What a stored channel holds that is not computed: shift plus residual."""
    shift, residual = ([*arrays, *[None] * (7 - len(arrays))])[5:]
    assert residual is not None
    zero = np.zeros(residual.shape[1], np.float32)
    parts = [None, None, zero, zero, None, shift, residual]
    return _finish(np.zeros(residual.shape, np.int32), parts, {**attrs, "inner_low": -math.inf})


def _conv2d(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, weight = arrays[:2]
    assert x is not None and weight is not None
    sums = convolve(x, weight, attrs)  # float64 holds them exactly
    return (_finish(sums.astype(np.int64), arrays, attrs),)


register(
    Operator(
        "quantized_conv2d",
        (4, 7),  # x, weight, scale, bias, gate?, shift?, residual?
        _infer_conv2d,
        _conv2d,
        Channels.MIXING,
        attrs={
            "stride": Attribute(integers(2, low=1), (1, 1)),
            "padding": Attribute(integers(4), (0, 0, 0, 0)),
            "dilation": Attribute(integers(2, low=1), (1, 1)),
            "groups": Attribute(integer(1), 1),
            "dtype": Attribute(choice(*QUANTIZED)),
            # residual scale / output scale; 1 with equal types: added as integers, after rounding
            "residual_scale": Attribute(positive_or_zero, 0.0),
            "inner_low": Attribute(lower_bound, -math.inf),
            "inner_high": Attribute(upper_bound, math.inf),  # in units of the output's scale, before the gate
        },
        constant_operands=frozenset({1, 2, 3}),
    )
)


# -- reduction --------------------------------------------------------------------------------------


#: Largest square of a quantised value.
_MAX_SQUARE = 255**2

#: The exact integer reduction behind every kind.
INTEGER_REDUCTIONS = {
    "sum": "sum",
    "mean": "sum",
    "sum_abs": "sum_abs",
    "mean_abs": "sum_abs",
    "sum_squares": "sum_squares",
    "l2": "sum_squares",
    "max": "max",
}


def reduction_factor(kind: str, scale: float, pixels: int) -> float:
    """What the exact reduction of a plane, for ``l2`` its root, is multiplied with; a float32."""
    factors = {"mean": scale / pixels, "mean_abs": scale / pixels, "sum_squares": scale * scale}
    return float(np.float32(factors.get(kind, scale)))


def reduction_fits(kind: str, pixels: int) -> bool:
    """Whether the exact reduction of so many values stays within 32 bits."""
    return pixels * (_MAX_SQUARE if INTEGER_REDUCTIONS[kind] == "sum_squares" else 255) <= MAX_SUM


def _infer_reduce(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_map_of(x, QUANTIZED)
    if not reduction_fits(attrs["kind"], math.prod(x.shape[2:])):
        raise ValueError(f"{attrs['kind']} over {math.prod(x.shape[2:])} pixels may leave 32 bits")
    return (TensorType("f32", x.shape[:2]),)


def _reduce(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x,) = arrays
    assert x is not None
    wide = x.astype(np.int64)
    integers = {"sum": wide, "sum_abs": np.abs(wide), "sum_squares": wide * wide}
    reduction = INTEGER_REDUCTIONS[attrs["kind"]]
    exact = wide.max(axis=(2, 3)) if reduction == "max" else integers[reduction].sum(axis=(2, 3))
    value = exact.astype(np.float32)
    if attrs["kind"] == "l2":
        value = np.sqrt(value)
    factor = reduction_factor(attrs["kind"], attrs["scale"], math.prod(x.shape[2:]))
    return (value * np.float32(factor),)


register(
    Operator(
        "quantized_spatial_reduce",
        (1, 1),
        _infer_reduce,
        _reduce,
        Channels.SPATIAL,
        zero_preserving=True,
        attrs={"kind": Attribute(choice(*INTEGER_REDUCTIONS)), "scale": Attribute(positive)},
    )
)
