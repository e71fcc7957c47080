"""Normalizations whose statistics are computed per image."""

from __future__ import annotations

import numpy as np

from dynprune_rt.ir.operators import rules
from dynprune_rt.ir.operators.attributes import Attribute, integer, integers, number
from dynprune_rt.ir.operators.registry import Arrays, Attrs, Channels, Operator, Types, register
from dynprune_rt.ir.types import TensorType

_EPS = Attribute(number(), 1e-5)


def _normalize(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) in float64, biased variance."""
    x = x.astype(np.float64)
    centred = x - x.mean(axis=axes, keepdims=True)
    variance: np.ndarray = np.square(centred).mean(axis=axes, keepdims=True)
    result: np.ndarray = centred / np.sqrt(variance + eps)
    return result


def _infer_group_norm(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight, bias = rules.operand(types, 0), types[1], types[2]
    rules.require_dtype(x, rules.FLOAT, "the input")
    if x.channels % attrs["groups"]:
        raise ValueError(f"{x.channels} channels do not divide into {attrs['groups']} groups")
    rules.require_vector(weight, x.channels, "the weight")
    rules.require_vector(bias, x.channels, "the bias")
    return (x,)


def _group_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, weight, bias = arrays
    assert x is not None
    y = _normalize(x.reshape(x.shape[0], attrs["groups"], -1), (2,), attrs["eps"]).reshape(x.shape)
    per_channel = (-1, *[1] * (x.ndim - 2))
    if weight is not None:
        y = y * weight.reshape(per_channel)
    if bias is not None:
        y = y + bias.reshape(per_channel)
    return (y.astype(np.float32),)


register(
    Operator(
        "group_norm",
        (1, 3),  # x, weight?, bias?
        _infer_group_norm,
        _group_norm,
        Channels.MIXING,
        attrs={"groups": Attribute(integer(1)), "eps": _EPS},
        constant_operands=frozenset({1, 2}),
    )
)


def _infer_layer_norm(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, weight, bias = rules.operand(types, 0), types[1], types[2]
    dims = attrs["dims"]
    rules.require_dtype(x, rules.FLOAT, "the input")
    if not dims or dims != tuple(range(x.rank - len(dims), x.rank)):
        raise ValueError(f"dims {dims} must be the last dimensions of the input, in order")
    rules.require_dim(x, dims[0])
    expected = TensorType("f32", x.shape[dims[0] :])
    for what, t in (("the weight", weight), ("the bias", bias)):
        if t is not None and t != expected:
            raise ValueError(f"{what} is {t}, expected {expected}")
    return (x,)


def _layer_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, weight, bias = arrays
    assert x is not None
    y = _normalize(x, attrs["dims"], attrs["eps"])
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return (y.astype(np.float32),)


register(
    Operator(
        "layer_norm",
        (1, 3),  # x, weight?, bias?
        _infer_layer_norm,
        _layer_norm,
        Channels.MIXING,
        attrs={"dims": Attribute(integers()), "eps": _EPS},
        constant_operands=frozenset({1, 2}),
    )
)
