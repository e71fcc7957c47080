"""Convolution with its fused epilogue, linear layers and matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dynprune_rt.ir.bfloat16 import from_bfloat16, to_bfloat16
from dynprune_rt.ir.operators import rules
from dynprune_rt.ir.operators.attributes import Attribute, choices, integer, integers, interval
from dynprune_rt.ir.operators.pooling import SPATIAL_REDUCTIONS, spatial_reduction, window_view
from dynprune_rt.ir.operators.registry import Arrays, Attrs, Channels, Operator, Types, register
from dynprune_rt.ir.types import DTYPES, TensorType

#: Bounds of a clamp that does nothing.
UNBOUNDED = (-math.inf, math.inf)


def conv_output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """(H', W') of a convolution; ``padding`` is (top, left, bottom, right)."""
    out = []
    for axis in range(2):
        extent = size[axis] + padding[axis] + padding[axis + 2] - dilation[axis] * (kernel[axis] - 1) - 1
        if extent < 0:
            raise ValueError(f"the kernel {tuple(kernel)} does not fit into the padded input {tuple(size)}")
        out.append(extent // stride[axis] + 1)
    return out[0], out[1]


def _infer_conv2d(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight = rules.operand(types, 0), rules.operand(types, 1)
    _, _, bias, gate, shift, residual = types
    rules.require_map_of(x, ("f32", "bf16"), "the input")
    if weight.dtype != x.dtype or weight.rank != 4 or weight.batched:
        raise ValueError(f"the weight is {weight}, expected {x.dtype}[K, C/groups, R, S]")
    if x.dtype == "bf16" and attrs["pools"]:
        raise ValueError("a convolution of bf16 has no pools; reduce its result")
    out_channels, group_channels, *kernel = weight.shape
    groups = attrs["groups"]
    if x.channels != group_channels * groups:
        raise ValueError(f"the input has {x.channels} channels, the weight expects {group_channels} x {groups} groups")
    if out_channels % groups:
        raise ValueError(f"{out_channels} output channels do not divide into {groups} groups")
    size = conv_output_size(x.shape[2:], kernel, attrs["stride"], attrs["padding"], attrs["dilation"])
    out = TensorType(x.dtype, (x.shape[0], out_channels, *size))
    per_channel = TensorType("f32", (x.shape[0], out_channels))
    rules.require_vector(bias, out_channels, "the bias")
    if shift is None or not shift.batched:
        rules.require_vector(shift, out_channels, "the shift")
    elif shift != per_channel:
        raise ValueError(f"the shift is {shift}, expected f32[{out_channels}] or {per_channel}")
    if gate is not None and gate != per_channel:
        raise ValueError(f"the gate is {gate}, expected {per_channel}")
    if residual is not None and residual != out:
        raise ValueError(f"the residual is {residual}, expected {out}")
    return (out, *[per_channel] * len(attrs["pools"]))


def clamp(x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Clamp float32 values; NaN passes."""
    return np.asarray(np.clip(x, np.float32(bounds[0]), np.float32(bounds[1])))


def convolve(x: np.ndarray, weight: np.ndarray, attrs: Attrs) -> np.ndarray:
    """The sums of a convolution in float64, without bias: [N,C,H,W], [K,C/g,R,S] -> [N,K,H',W']."""
    groups = attrs["groups"]
    out_channels, group_channels, *kernel = weight.shape
    top, left, bottom, right = attrs["padding"]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = window_view(padded, kernel, attrs["stride"], attrs["dilation"])  # [N,C,H',W',R,S]
    batch, _, height, width, _, _ = windows.shape
    columns = windows.transpose(1, 4, 5, 0, 2, 3).reshape(groups, group_channels * math.prod(kernel), -1)
    rows = weight.astype(np.float64).reshape(groups, out_channels // groups, -1)
    sums: np.ndarray = np.matmul(rows, columns).reshape(out_channels, batch, height, width)
    return np.swapaxes(sums, 0, 1)


def finish(v: np.ndarray, arrays: Arrays, attrs: Attrs) -> np.ndarray:
    """The epilogue of conv2d after the bias: inner clamp, gate, shift, residual, outer clamp; in float32.

    A bfloat16 residual is widened; the result is not rounded to bfloat16 yet.
    """
    _, _, _, gate, shift, residual = arrays
    v = clamp(v, attrs["inner"])
    if gate is not None:
        v = v * gate[:, :, None, None]
    if shift is not None:
        v = v + shift[..., None, None]
    if residual is not None:
        v = v + (from_bfloat16(residual) if residual.dtype == DTYPES["bf16"] else residual)
    return clamp(v, attrs["outer"])


def _conv2d(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, weight, bias = arrays[:3]
    assert x is not None and weight is not None
    narrow = x.dtype == DTYPES["bf16"]
    sums = convolve(from_bfloat16(x), from_bfloat16(weight), attrs) if narrow else convolve(x, weight, attrs)
    if bias is not None:
        sums = sums + bias[:, None, None]
    out = finish(sums.astype(np.float32), arrays, attrs)
    if narrow:
        return (to_bfloat16(out),)
    return (out, *[spatial_reduction(kind, out) for kind in attrs["pools"]])


register(
    Operator(
        "conv2d",
        (2, 6),  # x, weight, bias?, gate?, shift?, residual?
        _infer_conv2d,
        _conv2d,
        Channels.MIXING,
        attrs={
            "stride": Attribute(integers(2, low=1), (1, 1)),
            "padding": Attribute(integers(4), (0, 0, 0, 0)),
            "dilation": Attribute(integers(2, low=1), (1, 1)),
            "groups": Attribute(integer(1), 1),
            "inner": Attribute(interval, UNBOUNDED),
            "outer": Attribute(interval, UNBOUNDED),
            "pools": Attribute(choices(*SPATIAL_REDUCTIONS), ()),
        },
        constant_operands=frozenset({1, 2}),
    )
)


def _infer_linear(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight, bias = rules.operand(types, 0), rules.operand(types, 1), types[2]
    rules.require_dtype(x, rules.FLOAT, "the input")
    rules.require_dim(x, x.rank - 1)
    if weight.dtype not in ("f32", "bf16") or weight.rank != 2 or weight.batched:
        raise ValueError(f"the weight is {weight}, expected f32[K, C] or bf16[K, C]")
    features = weight.shape[0]
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"the input has {x.shape[-1]} features, the weight expects {weight.shape[1]}")
    rules.require_vector(bias, features, "the bias")
    return (TensorType("f32", (*x.shape[:-1], features)),)


def _linear(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, weight, bias = arrays
    assert x is not None and weight is not None
    if weight.dtype == DTYPES["bf16"]:
        weight = from_bfloat16(weight)
    sums = x.astype(np.float64) @ weight.T.astype(np.float64)
    if bias is not None:
        sums = sums + bias
    return (clamp(sums.astype(np.float32), attrs["inner"]),)


register(
    Operator(
        "linear",
        (2, 3),  # x, weight, bias?
        _infer_linear,
        _linear,
        Channels.MIXING,
        attrs={"inner": Attribute(interval, UNBOUNDED)},
        constant_operands=frozenset({1, 2}),
    )
)


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = rules.operand(types, 0), rules.operand(types, 1)
    for what, t in (("the first operand", a), ("the second operand", b)):
        rules.require_dtype(t, rules.FLOAT, what)
        rules.require_dim(t, t.rank - 1)
    if b.rank >= 2:
        rules.require_dim(b, b.rank - 2)  # contracted
    if a.shape[-1] != b.shape[-2 if b.rank >= 2 else 0]:
        raise ValueError("the inner sizes differ")
    leading = [TensorType("f32", t.shape[:-2]) for t in (a, b)]
    rows = a.shape[-2:-1]
    columns = b.shape[-1:] if b.rank >= 2 else ()
    shape = (*rules.broadcast(leading), *rows, *columns)
    return (TensorType("f32", shape),)


def _matmul(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    a, b = arrays
    assert a is not None and b is not None
    return (np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64)), np.float32),)


register(Operator("matmul", (2, 2), _infer_matmul, _matmul, Channels.MIXING, zero_preserving=True))
