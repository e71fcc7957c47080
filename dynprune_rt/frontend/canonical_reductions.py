"""Reductions over a whole map become one spatial_reduce, however they were written."""

from __future__ import annotations

import numpy as np

from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.passes.rewrite import Rewriter, Rule, made_by, operand

#: reduce kind -> spatial_reduce kind
_KINDS = {"mean": "mean", "sum": "sum", "max": "max", "min": "min", "l1": "sum_abs", "l2": "l2"}

#: Reductions that may be done one dimension after the other.
_NESTED = ("mean", "sum", "max", "min")

_OF_ABS = {"mean": "mean_abs", "sum": "sum_abs", "max": "max_abs"}


def _reduce(b: Rewriter, node: Node) -> Value | None:
    """x.view(N, C, -1).mean(2), x.mean(3).mean(2) and the like."""
    kind, dims, x = node.attrs["kind"], node.attrs["dims"], operand(node)
    source: Value | None = None
    flattened = made_by(x, "reshape")
    inner = made_by(x, "reduce")
    if x.type.is_map and dims == (2, 3):
        source = x
    elif flattened is not None and operand(flattened).type.is_map and dims == (2,) and x.type.rank == 3:
        source = operand(flattened) if x.type.shape[1] == operand(flattened).type.shape[1] else None
    elif inner is not None and operand(inner).type.is_map and kind == inner.attrs["kind"] and kind in _NESTED:
        kept = [d for d in range(4) if inner.attrs["keepdim"] or d not in inner.attrs["dims"]]
        together = {*inner.attrs["dims"], *(kept[d] for d in dims)}
        source = operand(inner) if together == {2, 3} else None
    if source is None or source.type.dtype != "f32" or kind not in _KINDS:
        return None
    return b.reshape(b.make("spatial_reduce", source, kind=_KINDS[kind]), node.output.type.shape)


def _spatial_reduce(b: Rewriter, node: Node) -> Value | None:
    """Reductions of |x| and of x squared read x itself."""
    kind, x = node.attrs["kind"], operand(node)
    absolute = made_by(x, "abs")
    if absolute is not None and kind in (*_OF_ABS, "l2", "sum_squares"):
        return b.make("spatial_reduce", operand(absolute), kind=_OF_ABS.get(kind, kind))
    source = _squared(x)
    if source is None or kind not in ("sum", "mean"):
        return None
    total = b.make("spatial_reduce", source, kind="sum_squares")
    if kind == "sum":
        return total
    pixels = source.type.shape[2] * source.type.shape[3]
    return b.make("div", total, b.constant("pixels", np.asarray(pixels, np.float32)))


def _squared(x: Value) -> Value | None:
    square, product = made_by(x, "square"), made_by(x, "mul")
    if square is not None:
        return operand(square)
    if product is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    return None


def _sqrt(b: Rewriter, node: Node) -> Value | None:
    """The root of a sum of squares is the Euclidean norm."""
    x = operand(node)
    view = made_by(x, "reshape")
    total = made_by(operand(view) if view is not None else x, "spatial_reduce")
    if total is None or total.attrs["kind"] != "sum_squares":
        return None
    return b.reshape(b.make("spatial_reduce", operand(total), kind="l2"), node.output.type.shape)


REDUCTION_RULES: dict[str, Rule] = {"reduce": _reduce, "spatial_reduce": _spatial_reduce, "sqrt": _sqrt}
