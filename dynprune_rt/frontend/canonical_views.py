"""Elementwise work is done on the plain form of a tensor: maps as [N, C, H, W], vectors as [N, C].

Gates written on [N, C, 1, 1] maps become vector programs, and a multiplication in a grouped 5-D view
becomes one on the map itself, where channel activity is followed.
"""

from __future__ import annotations

import math

import numpy as np

from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.operators import OPERATORS, Channels
from dynprune_rt.passes.rewrite import Rewriter, Rule, made_by, operand

Shape = tuple[int, ...]


def _pointwise(b: Rewriter, node: Node) -> Value | None:
    """op(view(x), ...) as view(op(x, ...))."""
    result = node.output.type.shape
    for value in node.inputs:
        view = made_by(value, "reshape")
        if view is None or view.output.type.shape != result:
            continue
        source = operand(view)
        if source.type.rank == 2 and _is_vector(result, source.type.shape):
            inputs = [_as_vector(b, node, i, source.type.shape) for i in range(len(node.inputs))]
        elif source.type.is_map and source.type.shape[2:] != (1, 1) and node.op != "affine":
            inputs = [_as_map(b, node, i, source.type.shape) for i in range(len(node.inputs))]
        else:
            continue
        if any(v is None for v in inputs):
            continue
        return b.reshape(b.append(node.op, inputs, node.attrs)[0], result)
    return None


def _as_vector(b: Rewriter, node: Node, position: int, shape: Shape) -> Value | None:
    """An operand of an op on [N, C, 1, ...] as operand on [N, C]; None if it is not one number per channel."""
    value = operand(node, position)
    view = made_by(value, "reshape")
    if view is not None and operand(view).type.shape == shape and value.type.shape == node.output.type.shape:
        return operand(view)
    if not b.graph.is_constant(value):
        return None
    if node.op == "affine":
        return value
    array = b.graph.constant(value)
    if array.size == 1:
        return b.constant(value.name, array.reshape(()))
    aligned = (1,) * (node.output.type.rank - array.ndim) + array.shape
    return b.constant(value.name, array.reshape(-1)) if _is_vector(aligned, (1, shape[1])) else None


def _is_vector(shape: Shape, vector: Shape) -> bool:
    """``shape`` is that of a vector [N, C] with trailing dimensions of 1."""
    return len(shape) > 2 and shape[:2] == vector and all(d == 1 for d in shape[2:])


def _as_map(b: Rewriter, node: Node, position: int, shape: Shape) -> Value | None:
    """An operand of an op on a view of a map, as operand on the map [N, C, H, W] itself.

    The view may split the channels or flatten the pixels. Another operand must be a view of a map of
    the same shape, or be the same for all pixels.
    """
    value, result = operand(node, position), node.output.type.shape
    split = _split(result, shape)
    if split is None:
        return None
    view = made_by(value, "reshape")
    if view is not None and operand(view).type.shape == shape and value.type.shape == result:
        return operand(view)
    missing = len(result) - value.type.rank
    aligned = (1,) * missing + value.type.shape
    if any(d != 1 for d in aligned[split:]) or missing < 0:
        return None
    if all(d == 1 for d in aligned[1:]) and not value.type.batched:
        return b.constant(value.name, b.graph.constant(value).reshape(())) if b.graph.is_constant(value) else None
    if b.graph.is_constant(value):
        wide = np.broadcast_to(b.graph.constant(value).reshape(aligned[:split]), (1, *result[1:split]))
        return b.constant(value.name, wide.reshape(1, shape[1], 1, 1))
    if not value.type.batched or missing:
        return None
    wide_shape = (*result[:split], *[1] * (len(result) - split))
    wide_value = value if value.type.shape == wide_shape else b.make("expand", value, shape=wide_shape)
    return b.reshape(wide_value, (*shape[:2], 1, 1))


def _split(result: Shape, shape: Shape) -> int | None:
    """Number of leading dimensions of a view that hold batch and channels of the map; None if they mix."""
    for split in range(2, len(result) + 1):
        if math.prod(result[1:split]) == shape[1] and math.prod(result[split:]) == math.prod(shape[2:]):
            return split
    return None


def _conv2d(b: Rewriter, node: Node) -> Value | None:
    """A 1x1 convolution of a [N, C, 1, 1] map is a linear layer."""
    x, weight = operand(node), operand(node, 1)
    attrs = node.attrs
    plain = attrs["groups"] == 1 and not any(attrs["padding"]) and all(v is None for v in node.inputs[3:])
    if x.type.shape[2:] != (1, 1) or weight.type.shape[2:] != (1, 1) or not plain or attrs["pools"]:
        return None
    if any(math.isfinite(bound) for bound in (*attrs["inner"], *attrs["outer"])):
        return None
    matrix = b.constant(weight.name, b.graph.constant(weight).reshape(weight.type.shape[:2]))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    y = b.make("linear", b.reshape(x, x.type.shape[:2]), matrix, bias)
    return b.reshape(y, node.output.type.shape)


VIEW_RULES: dict[str, Rule] = {
    "conv2d": _conv2d,
    **{name: _pointwise for name, row in OPERATORS.items() if row.channels is Channels.POINTWISE},
}
