"""Type rules that several operators share. All raise ValueError with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from dynprune_rt.ir.operators.registry import Types
from dynprune_rt.ir.types import BATCH, TensorType

FLOAT = ("f32",)
NUMERIC = ("f32", "i64")
BOOL = ("bool",)
INDEX = ("i64",)
ANY = ("f32", "i64", "bool")


def operand(types: Types, position: int) -> TensorType:
    """A mandatory operand."""
    found = types[position]
    if found is None:
        raise ValueError(f"operand {position} is missing")
    return found


def require_dtype(type: TensorType, allowed: Sequence[str], what: str = "the operand") -> None:
    if type.dtype not in allowed:
        raise ValueError(f"{what} is {type}, expected {' or '.join(allowed)} (insert a cast)")


def require_map(type: TensorType, what: str = "the operand") -> None:
    require_map_of(type, FLOAT, what)


def require_map_of(type: TensorType, dtypes: Sequence[str], what: str = "the operand") -> None:
    if not type.is_map or type.dtype not in dtypes:
        raise ValueError(f"{what} is {type}, expected a feature map {' or '.join(dtypes)}[N, C, H, W]")


def require_vector(type: TensorType | None, length: int, what: str) -> None:
    """An optional f32 vector of this length, the same for all images."""
    if type is not None and type != TensorType("f32", (length,)):
        raise ValueError(f"{what} is {type}, expected f32[{length}]")


def require_dim(type: TensorType, dim: int) -> None:
    """``dim`` is a dimension of ``type`` other than the batch."""
    if not 0 <= dim < type.rank:
        raise ValueError(f"dimension {dim} does not exist in {type}")
    if dim == 0 and type.batched:
        raise ValueError(f"dimension 0 of {type} is the batch, which no operator may change")


def broadcast(types: Sequence[TensorType]) -> tuple[int, ...]:
    """Shape of an elementwise result, as numpy broadcasts; the batch has to stay in dimension 0."""
    rank = max(t.rank for t in types)
    shape = []
    for axis in range(rank):
        size = 1
        for t in types:
            position = axis - (rank - t.rank)
            d = 1 if position < 0 else t.shape[position]
            if d == 1 or d == size:
                continue
            if size != 1:
                what = "the batch meets another dimension" if BATCH in (d, size) else f"sizes {size} and {d} differ"
                raise ValueError(f"operands do not broadcast: {what}")
            size = d
        if size == BATCH and axis != 0:
            raise ValueError("operands do not broadcast: the batch would not be the first dimension of the result")
        shape.append(size)
    return tuple(shape)


def with_dim(type: TensorType, dim: int, size: int) -> tuple[int, ...]:
    """The shape of ``type`` with one dimension resized."""
    return (*type.shape[:dim], size, *type.shape[dim + 1 :])


def reduced(type: TensorType, dims: Sequence[int], keepdim: bool) -> tuple[int, ...]:
    """The shape of ``type`` after a reduction over ``dims``."""
    for dim in dims:
        require_dim(type, dim)
    if keepdim:
        return tuple(1 if i in dims else d for i, d in enumerate(type.shape))
    return tuple(d for i, d in enumerate(type.shape) if i not in dims)
