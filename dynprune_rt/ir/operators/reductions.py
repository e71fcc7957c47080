"""Operators along dimensions: reductions, scans, selection of extreme elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dynprune_rt.ir.operators import rules
from dynprune_rt.ir.operators.attributes import Attribute, choice, flag, integer, integers
from dynprune_rt.ir.operators.registry import Arrays, Attrs, Channels, Operator, Types, register
from dynprune_rt.ir.types import TensorType

_DIM = Attribute(integer())
_KEEPDIM = Attribute(flag, False)


def _operand(arrays: Arrays) -> np.ndarray:
    (x,) = arrays
    assert x is not None
    return x


# ---- reduce -----------------------------------------------------------------------------------

Reduction = Callable[[np.ndarray, "tuple[int, ...]", bool], np.ndarray]

#: kind -> (element types, function). float32 sums and products are accumulated in float64.
_KINDS: dict[str, tuple[tuple[str, ...], Reduction]] = {
    "sum": (rules.NUMERIC, lambda x, dims, keep: np.sum(_wide(x), axis=dims, keepdims=keep)),
    "mean": (rules.FLOAT, lambda x, dims, keep: np.mean(_wide(x), axis=dims, keepdims=keep)),
    "max": (rules.NUMERIC, lambda x, dims, keep: np.max(x, axis=dims, keepdims=keep)),
    "min": (rules.NUMERIC, lambda x, dims, keep: np.min(x, axis=dims, keepdims=keep)),
    "prod": (rules.NUMERIC, lambda x, dims, keep: np.prod(_wide(x), axis=dims, keepdims=keep)),
    "l1": (rules.FLOAT, lambda x, dims, keep: np.sum(np.abs(_wide(x)), axis=dims, keepdims=keep)),
    "l2": (rules.FLOAT, lambda x, dims, keep: np.sqrt(np.sum(np.square(_wide(x)), axis=dims, keepdims=keep))),
    "any": (rules.BOOL, lambda x, dims, keep: np.any(x, axis=dims, keepdims=keep)),
    "all": (rules.BOOL, lambda x, dims, keep: np.all(x, axis=dims, keepdims=keep)),
}


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype == np.float32 else x


def _infer_reduce(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, dims = rules.operand(types, 0), attrs["dims"]
    rules.require_dtype(x, _KINDS[attrs["kind"]][0])
    if not dims or len(set(dims)) != len(dims):
        raise ValueError(f"dims {dims} must name each dimension to reduce once")
    return (TensorType(x.dtype, rules.reduced(x, dims, attrs["keepdim"])),)


def _reduce(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = _operand(arrays)
    result = _KINDS[attrs["kind"]][1](x, attrs["dims"], attrs["keepdim"])
    return (np.asarray(result).astype(x.dtype),)


register(
    Operator(
        "reduce",
        (1, 1),
        _infer_reduce,
        _reduce,
        Channels.MIXING,
        zero_preserving=True,
        attrs={"kind": Attribute(choice(*_KINDS)), "dims": Attribute(integers()), "keepdim": _KEEPDIM},
    )
)

# ---- argmax, argmin ---------------------------------------------------------------------------


def _infer_arg(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_dtype(x, rules.NUMERIC)
    return (TensorType("i64", rules.reduced(x, [attrs["dim"]], attrs["keepdim"])),)


def _arg(function: Callable[..., np.ndarray]) -> Callable[[Arrays, Attrs], tuple[np.ndarray, ...]]:
    """The first position of the extreme; a NaN counts as extreme."""

    def reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        index = function(_operand(arrays), axis=attrs["dim"], keepdims=attrs["keepdim"])
        return (np.asarray(index, np.int64),)

    return reference


for _name, _function in (("argmax", np.argmax), ("argmin", np.argmin)):
    register(
        Operator(_name, (1, 1), _infer_arg, _arg(_function), Channels.MIXING, attrs={"dim": _DIM, "keepdim": _KEEPDIM})
    )

# ---- softmax, log_softmax, cumsum -------------------------------------------------------------


def _infer_along(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_dtype(x, rules.FLOAT)
    rules.require_dim(x, attrs["dim"])
    return (x,)


def _infer_cumsum(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_dtype(x, rules.NUMERIC)
    rules.require_dim(x, attrs["dim"])
    return (x,)


def _log_softmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = _operand(arrays).astype(np.float64)
    x = x - x.max(axis=attrs["dim"], keepdims=True)
    return ((x - np.log(np.exp(x).sum(axis=attrs["dim"], keepdims=True))).astype(np.float32),)


def _softmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = _operand(arrays).astype(np.float64)
    e = np.exp(x - x.max(axis=attrs["dim"], keepdims=True))
    return ((e / e.sum(axis=attrs["dim"], keepdims=True)).astype(np.float32),)


def _cumsum(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = _operand(arrays)
    return (np.cumsum(_wide(x), axis=attrs["dim"]).astype(x.dtype),)


register(Operator("softmax", (1, 1), _infer_along, _softmax, Channels.MIXING, attrs={"dim": _DIM}))
register(Operator("log_softmax", (1, 1), _infer_along, _log_softmax, Channels.MIXING, attrs={"dim": _DIM}))
register(Operator("cumsum", (1, 1), _infer_cumsum, _cumsum, Channels.MIXING, True, attrs={"dim": _DIM}))

# ---- order statistics -------------------------------------------------------------------------


def stable_order(x: np.ndarray, dim: int, descending: bool) -> np.ndarray:
    """Indices that sort x along ``dim``; equal elements keep their order, NaN counts as largest."""
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    # Sorting the mirror image and mirroring back keeps the order of equal elements.
    mirrored = np.argsort(np.flip(x, dim), axis=dim, kind="stable")
    order: np.ndarray = x.shape[dim] - 1 - np.flip(mirrored, dim)
    return order


def _take(x: np.ndarray, index: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    return np.take_along_axis(x, index, axis=dim), np.ascontiguousarray(index, np.int64)


def _both(x: TensorType, shape: tuple[int, ...]) -> tuple[TensorType, ...]:
    return TensorType(x.dtype, shape), TensorType("i64", shape)


def _infer_topk(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, dim, k = rules.operand(types, 0), attrs["dim"], attrs["k"]
    rules.require_dtype(x, rules.NUMERIC)
    rules.require_dim(x, dim)
    if k > x.shape[dim]:
        raise ValueError(f"k = {k} exceeds the {x.shape[dim]} elements of dimension {dim}")
    return _both(x, rules.with_dim(x, dim, k))


def _topk(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Sorted, best first. Of equal elements the one of the lower index comes first."""
    x, dim = _operand(arrays), attrs["dim"]
    order = stable_order(x, dim, attrs["largest"])
    return _take(x, np.take(order, np.arange(attrs["k"]), axis=dim), dim)


def _infer_sort(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_dtype(x, rules.NUMERIC)
    rules.require_dim(x, attrs["dim"])
    return _both(x, x.shape)


def _sort(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = _operand(arrays)
    return _take(x, stable_order(x, attrs["dim"], attrs["descending"]), attrs["dim"])


def _infer_kthvalue(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, dim, k = rules.operand(types, 0), attrs["dim"], attrs["k"]
    rules.require_dtype(x, rules.NUMERIC)
    shape = rules.reduced(x, [dim], attrs["keepdim"])
    if k > x.shape[dim]:
        raise ValueError(f"k = {k} exceeds the {x.shape[dim]} elements of dimension {dim}")
    return _both(x, shape)


def _kthvalue(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """The k-th smallest element, k from 1."""
    x, dim = _operand(arrays), attrs["dim"]
    order = stable_order(x, dim, descending=False)
    values, index = _take(x, np.take(order, [attrs["k"] - 1], axis=dim), dim)
    return (values, index) if attrs["keepdim"] else (values.squeeze(dim), index.squeeze(dim))


_K = Attribute(integer(1))
register(
    Operator(
        "topk",
        (1, 1),
        _infer_topk,
        _topk,
        Channels.MIXING,
        attrs={"k": _K, "dim": _DIM, "largest": Attribute(flag, True)},
    )
)
register(
    Operator(
        "sort",
        (1, 1),
        _infer_sort,
        _sort,
        Channels.MIXING,
        attrs={"dim": _DIM, "descending": Attribute(flag, False)},
    )
)
register(
    Operator(
        "kthvalue",
        (1, 1),
        _infer_kthvalue,
        _kthvalue,
        Channels.MIXING,
        attrs={"k": _K, "dim": _DIM, "keepdim": _KEEPDIM},
    )
)
