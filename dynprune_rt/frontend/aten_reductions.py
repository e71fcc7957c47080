"""ATen reductions, softmax and cumulative sums. Over exactly H and W they become spatial_reduce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynprune_rt.frontend.aten_shape import dimension
from dynprune_rt.frontend.registry import Handler, Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation

#: reduce kind -> spatial_reduce kind
_SPATIAL = {"mean": "mean", "sum": "sum", "max": "max", "min": "min", "l1": "sum_abs", "l2": "l2"}


def reduced(t: Translation, x: Value, kind: str, dims: Any, keepdim: bool) -> Value:
    """Reduce over ``dims`` (an int, a list; None and [] mean all, which includes the batch)."""
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if not dims:
        raise Unsupported("reduces over the batch; give the dimensions to reduce")
    dims = tuple(sorted({dimension(x, d) for d in dims}))
    if x.type.is_map and x.type.dtype == "f32" and dims == (2, 3) and kind in _SPATIAL:
        return spatially_reduced(t, x, _SPATIAL[kind], keepdim)
    return t.op("reduce", x, kind=kind, dims=dims, keepdim=keepdim)


def spatially_reduced(t: Translation, x: Value, kind: str, keepdim: bool) -> Value:
    """[N, C, H, W] -> [N, C], or [N, C, 1, 1]."""
    y = t.op("spatial_reduce", x, kind=kind)
    return t.reshape(y, (*y.type.shape, 1, 1)) if keepdim else y


@aten("mean.dim")
def _mean(t: Translation, x: Value, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    return reduced(t, t.value(x, "f32"), "mean", dims, keepdim)


@aten("sum.dim_IntList")
def _sum(t: Translation, x: Value, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    return reduced(t, t.value(x, t.result.dtype), "sum", dims, keepdim)


@aten("prod.dim_int")
def _prod(t: Translation, x: Value, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Value:
    return reduced(t, t.value(x, t.result.dtype), "prod", dim, keepdim)


def _extreme(kind: str) -> Handler:
    def handler(t: Translation, x: Value, dims: Sequence[int] = (), keepdim: bool = False) -> Value:
        if x.type.dtype == "bool":
            return reduced(t, x, {"max": "any", "min": "all"}[kind], dims, keepdim)
        return reduced(t, x, kind, dims, keepdim)

    return handler


aten("amax.default")(_extreme("max"))
aten("amin.default")(_extreme("min"))


def _quantifier(kind: str) -> Handler:
    def handler(t: Translation, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
        return reduced(t, t.value(x, "bool"), kind, dims, keepdim)

    return handler


aten("any.dim", "any.dims")(_quantifier("any"))
aten("all.dim", "all.dims")(_quantifier("all"))


@aten("sum.default", "mean.default", "max.default", "min.default", "any.default", "all.default", "prod.default")
@aten("std.default", "var.default", "median.default", "count_nonzero.default")
def _over_everything(t: Translation, x: Value, *rest: Any, **kwargs: Any) -> Value:
    raise Unsupported("reduces over the batch; give the dimensions to reduce")


@aten("linalg_vector_norm.default")
def _vector_norm(
    t: Translation, x: Value, order: float = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    if order == 1:
        return reduced(t, x, "l1", dims, keepdim)
    if order == 2:
        return reduced(t, x, "l2", dims, keepdim)
    if order in (math.inf, -math.inf):
        return reduced(t, t.op("abs", x), "max" if order > 0 else "min", dims, keepdim)
    if order == 0:
        return reduced(t, t.value(t.op("ne", x, t.constant(0.0)), "f32"), "sum", dims, keepdim)
    total = reduced(t, t.op("pow_scalar", t.op("abs", x), exponent=float(order)), "sum", dims, keepdim)
    return t.op("pow_scalar", total, exponent=1.0 / order)


@aten("norm.ScalarOpt_dim", "norm.Scalar")
def _norm(t: Translation, x: Value, order: float | None = None, dims: Any = None, keepdim: bool = False) -> Value:
    return _vector_norm(t, x, 2 if order is None else order, dims, keepdim)


def _variance(t: Translation, x: Value, dims: Any, correction: float | None, keepdim: bool) -> tuple[Value, Value]:
    """(variance, mean) over ``dims``; divides by n - correction."""
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if not dims:
        raise Unsupported("reduces over the batch; give the dimensions to reduce")
    dims = sorted({dimension(x, d) for d in dims})
    n = math.prod(x.type.shape[d] for d in dims)
    mean = reduced(t, x, "mean", dims, True)
    squares = reduced(t, t.op("square", t.op("sub", x, mean)), "sum", dims, keepdim)
    divisor = n - (1 if correction is None else correction)
    variance = t.op("div", squares, t.constant(float(max(divisor, 0))))
    return variance, mean if keepdim else t.reshape(mean, variance.type.shape)


@aten("var.correction")
def _var(t: Translation, x: Value, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Value:
    return _variance(t, x, dims, correction, keepdim)[0]


@aten("std.correction")
def _std(t: Translation, x: Value, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Value:
    return t.op("sqrt", _variance(t, x, dims, correction, keepdim)[0])


@aten("var_mean.correction")
def _var_mean(
    t: Translation, x: Value, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> tuple[Value, Value]:
    return _variance(t, x, dims, correction, keepdim)


def _normalised_exponential(op: str) -> Handler:
    def handler(t: Translation, x: Value, dim: int, *rest: Any) -> Value:
        return t.op(op, t.value(x, "f32"), dim=dimension(x, dim))

    return handler


aten("softmax.int", "_softmax.default")(_normalised_exponential("softmax"))
aten("log_softmax.int", "_log_softmax.default")(_normalised_exponential("log_softmax"))


@aten("cumsum.default")
def _cumsum(t: Translation, x: Value, dim: int, *, dtype: Any = None) -> Value:
    return t.op("cumsum", t.value(x, t.result.dtype), dim=dimension(x, dim))
