"""Shapes, strides and loop nests of contiguous tensors of one image."""

from __future__ import annotations

from collections.abc import Sequence

from dynprune_rt.ir.types import TensorType

Shape = tuple[int, ...]


def image_shape(type: TensorType, batched_rank: int = 0) -> Shape:
    """The shape of a value for one image.

    A batched value loses dimension 0. An operand that is the same for all images keeps its shape,
    except that a leading 1 that stands against the batch goes, where it has the rank
    ``batched_rank`` of the batched result.
    """
    if type.batched or (type.rank == batched_rank and batched_rank > 0 and type.shape[0] == 1):
        return type.shape[1:]
    return type.shape


def dense_strides(shape: Shape) -> list[int]:
    """Strides of a contiguous tensor, in elements."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return strides


def broadcast_strides(shape: Shape, target: Shape) -> list[int]:
    """Strides that read a contiguous tensor of ``shape`` as ``target``, aligned at the right."""
    missing = len(target) - len(shape)
    own = [0 if size == 1 else stride for size, stride in zip(shape, dense_strides(shape), strict=True)]
    return [0] * missing + own


def loop_nest(dims: Sequence[int], *strides: Sequence[int]) -> tuple[int, ...]:
    """rank, dims and strides per tensor of a loop nest, with as few dimensions as possible.

    Dimensions of size 1 go; neighbours that all tensors walk at even steps become one.
    """
    merged: list[tuple[int, list[int]]] = []
    for i, size in enumerate(dims):
        steps = [s[i] for s in strides]
        if size == 1:
            continue
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    if not merged:
        merged = [(1, [1] * len(strides))]
    nest = [len(merged), *(size for size, _ in merged)]
    for tensor in range(len(strides)):
        nest += [steps[tensor] for _, steps in merged]
    return tuple(nest)
