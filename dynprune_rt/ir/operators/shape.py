"""Operators that move, repeat or drop elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynprune_rt.ir.operators import rules
from dynprune_rt.ir.operators.attributes import Attribute, integer, integers, number
from dynprune_rt.ir.operators.registry import Arrays, Attrs, Channels, Operator, Types, register
from dynprune_rt.ir.types import BATCH, TensorType


def _operand(arrays: Arrays) -> np.ndarray:
    x = arrays[0]
    assert x is not None
    return x


def _require_same_batch(x: TensorType, shape: Sequence[int]) -> None:
    """A target shape starts with -1 (N) exactly if the operand is batched, and has -1 nowhere else."""
    if (bool(shape) and shape[0] == BATCH) != x.batched or any(d < 1 for d in shape[1:]):
        raise ValueError(
            f"the target shape {tuple(shape)} must {'start' if x.batched else 'not start'} with -1 (the batch) "
            "and be positive elsewhere"
        )


def _with_batch(x: np.ndarray, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(x.shape[0] if d == BATCH else d for d in shape)


# ---- reshape, expand, repeat ------------------------------------------------------------------


def _infer_reshape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    _require_same_batch(x, attrs["shape"])
    result = TensorType(x.dtype, attrs["shape"])
    if result.elements != x.elements:
        raise ValueError(f"{x.elements} elements do not fit the target shape {attrs['shape']}")
    return (result,)


def _reshape(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = _operand(arrays)
    return (x.reshape(_with_batch(x, attrs["shape"])),)


def _infer_expand(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, result = rules.operand(types, 0), TensorType(rules.operand(types, 0).dtype, attrs["shape"])
    _require_same_batch(x, result.shape)
    if rules.broadcast([x, result]) != result.shape:
        raise ValueError(f"the operand does not expand to {result}")
    return (result,)


def _expand(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = _operand(arrays)
    return (np.broadcast_to(x, _with_batch(x, attrs["shape"])).copy(),)


def _require_one_per_dim(x: TensorType, values: Sequence[int], what: str) -> None:
    if len(values) != x.rank:
        raise ValueError(f"{what} has {len(values)} entries for rank {x.rank}")


def _infer_repeat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, repeats = rules.operand(types, 0), attrs["repeats"]
    _require_one_per_dim(x, repeats, "repeats")
    if x.batched and repeats[0] != 1:
        raise ValueError("the batch may not be repeated")
    return (TensorType(x.dtype, tuple(d * r for d, r in zip(x.shape, repeats, strict=True))),)


def _repeat(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.tile(_operand(arrays), attrs["repeats"]),)


register(
    Operator(
        "reshape",
        (1, 1),
        _infer_reshape,
        _reshape,
        Channels.STRUCTURAL,
        zero_preserving=True,
        attrs={"shape": Attribute(integers(low=BATCH))},
    )
)
register(
    Operator(
        "expand",
        (1, 1),
        _infer_expand,
        _expand,
        Channels.STRUCTURAL,
        zero_preserving=True,
        attrs={"shape": Attribute(integers(low=BATCH))},
    )
)
register(
    Operator(
        "repeat",
        (1, 1),
        _infer_repeat,
        _repeat,
        Channels.STRUCTURAL,
        zero_preserving=True,
        attrs={"repeats": Attribute(integers(low=1))},
    )
)

# ---- permute ----------------------------------------------------------------------------------


def _infer_permute(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, dims = rules.operand(types, 0), attrs["dims"]
    if sorted(dims) != list(range(x.rank)):
        raise ValueError(f"{dims} is not a permutation of the {x.rank} dimensions")
    if x.batched and dims[0] != 0:
        raise ValueError("the batch has to stay in dimension 0")
    return (TensorType(x.dtype, tuple(x.shape[d] for d in dims)),)


def _permute(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.ascontiguousarray(_operand(arrays).transpose(attrs["dims"])),)


register(
    Operator(
        "permute",
        (1, 1),
        _infer_permute,
        _permute,
        Channels.STRUCTURAL,
        zero_preserving=True,
        attrs={"dims": Attribute(integers())},
    )
)

# ---- slice, pad -------------------------------------------------------------------------------


def _infer_slice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, dim = rules.operand(types, 0), attrs["dim"]
    rules.require_dim(x, dim)
    start, stop, step = attrs["start"], attrs["stop"], attrs["step"]
    if not start < stop <= x.shape[dim]:
        raise ValueError(f"the range {start}:{stop} is empty or leaves dimension {dim} of size {x.shape[dim]}")
    return (TensorType(x.dtype, rules.with_dim(x, dim, -(-(stop - start) // step))),)


def _slice(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    where = [slice(None)] * attrs["dim"] + [slice(attrs["start"], attrs["stop"], attrs["step"])]
    return (np.ascontiguousarray(_operand(arrays)[tuple(where)]),)


register(
    Operator(
        "slice",
        (1, 1),
        _infer_slice,
        _slice,
        Channels.STRUCTURAL,
        zero_preserving=True,
        attrs={
            "dim": Attribute(integer()),
            "start": Attribute(integer()),
            "stop": Attribute(integer()),
            "step": Attribute(integer(1), 1),
        },
    )
)


def _infer_pad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, low, high = rules.operand(types, 0), attrs["low"], attrs["high"]
    _require_one_per_dim(x, low, "low")
    _require_one_per_dim(x, high, "high")
    if x.batched and (low[0] or high[0]):
        raise ValueError("the batch may not be padded")
    return (TensorType(x.dtype, tuple(d + a + b for d, a, b in zip(x.shape, low, high, strict=True))),)


def _pad(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = _operand(arrays)
    widths = list(zip(attrs["low"], attrs["high"], strict=True))
    return (np.pad(x, widths, constant_values=x.dtype.type(attrs["value"])),)


register(
    Operator(
        "pad",
        (1, 1),
        _infer_pad,
        _pad,
        Channels.STRUCTURAL,
        zero_preserving=lambda attrs: attrs["value"] == 0.0,
        attrs={
            "low": Attribute(integers()),
            "high": Attribute(integers()),
            "value": Attribute(number(finite=False), 0.0),
        },
    )
)

# ---- cat, index_select, one_hot ---------------------------------------------------------------


def _infer_cat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    parts, dim = [rules.operand(types, i) for i in range(len(types))], attrs["dim"]
    first = parts[0]
    for part in parts:
        rules.require_dim(part, dim)
        if part.dtype != first.dtype or rules.with_dim(part, dim, 1) != rules.with_dim(first, dim, 1):
            raise ValueError(f"{part} and {first} do not match outside dimension {dim}")
    return (TensorType(first.dtype, rules.with_dim(first, dim, sum(p.shape[dim] for p in parts))),)


def _cat(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.concatenate([a for a in arrays if a is not None], axis=attrs["dim"]),)


register(
    Operator(
        "cat",
        (1, None),
        _infer_cat,
        _cat,
        Channels.STRUCTURAL,
        zero_preserving=True,
        attrs={"dim": Attribute(integer())},
    )
)


def _infer_index_select(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, index = rules.operand(types, 0), rules.operand(types, 1)
    rules.require_dim(x, attrs["dim"])
    if index.dtype != "i64" or index.rank != 1 or index.batched:
        raise ValueError(f"the index is {index}, expected a constant vector i64[n]")
    return (TensorType(x.dtype, rules.with_dim(x, attrs["dim"], index.shape[0])),)


def _index_select(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, index = arrays
    assert x is not None and index is not None
    return (np.take(x, index, axis=attrs["dim"]),)


register(
    Operator(
        "index_select",
        (2, 2),
        _infer_index_select,
        _index_select,
        Channels.STRUCTURAL,
        zero_preserving=True,
        attrs={"dim": Attribute(integer())},
        constant_operands=frozenset({1}),
    )
)


def _infer_one_hot(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    rules.require_dtype(x, rules.INDEX)
    return (TensorType("i64", (*x.shape, attrs["classes"])),)


def _one_hot(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """A class outside [0, classes) gives a row of zeros."""
    return ((_operand(arrays)[..., None] == np.arange(attrs["classes"])).astype(np.int64),)


register(
    Operator(
        "one_hot",
        (1, 1),
        _infer_one_hot,
        _one_hot,
        Channels.MIXING,
        attrs={"classes": Attribute(integer(1))},
    )
)
