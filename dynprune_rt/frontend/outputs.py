"""Which outputs of a model to convert: flattening of nested results and the user's selector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

from dynprune_rt.errors import ConversionError

#: 0 = the first tensor; a key path such as "['out']"; a sequence of these; None = every tensor.
OutputSelector: TypeAlias = int | str | Sequence[int | str] | None


def tensor_leaves(result: Any) -> list[tuple[str, torch.Tensor]]:
    """(key path, tensor) of every tensor in a nested result, in pytree order. A lone tensor has path ""."""
    leaves, _ = pytree.tree_flatten_with_path(result)
    return [(pytree.keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]


def select(selector: OutputSelector, leaves: Sequence[tuple[str, torch.Tensor]]) -> list[int]:
    """Indices into ``leaves`` that the selector asks for, in its order.

    Raises ConversionError for an index or key path that the model does not return.
    """
    if not leaves:
        raise ConversionError("the model returns no tensor: nothing can be converted")
    if selector is None:
        return list(range(len(leaves)))
    wanted = [selector] if isinstance(selector, (int, str)) else list(selector)
    if not wanted:
        raise ConversionError("outputs=() selects nothing; pass an index, a tuple of indices, or None for all")
    paths = [path for path, _ in leaves]
    indices: list[int] = []
    for item in wanted:
        if isinstance(item, bool) or not isinstance(item, (int, str)):
            raise ConversionError(f"outputs holds {item!r}; expected indices or key paths")
        if isinstance(item, str):
            key = item if item in paths else f"['{item}']"
            if key not in paths:
                raise ConversionError(f"the model has no output {item!r}; it returns {describe(leaves)}")
            indices.append(paths.index(key))
        elif not 0 <= item < len(leaves):
            raise ConversionError(f"outputs={item} is out of range; the model returns {describe(leaves)}")
        else:
            indices.append(item)
    if len(set(indices)) != len(indices):
        raise ConversionError(f"outputs={selector!r} names one output twice")
    return indices


def describe(leaves: Sequence[tuple[str, torch.Tensor]], limit: int = 12) -> str:
    """ "0: [2, 10], 1: ['features'] [2, 64]"."""
    texts = [f"{i}: {path + ' ' if path else ''}{list(t.shape)}" for i, (path, t) in enumerate(leaves[:limit])]
    if len(leaves) > limit:
        texts.append(f"... ({len(leaves)} in all)")
    return ", ".join(texts)


def pick(result: Any, indices: Sequence[int], count: int) -> tuple[torch.Tensor, ...]:
    """The selected tensors of a result that must hold ``count`` tensors (used while tracing)."""
    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    if len(tensors) != count:
        raise ConversionError(
            f"the model returned {count} tensors at first and {len(tensors)} when traced: "
            "its structure must not change between runs"
        )
    return tuple(tensors[i] for i in indices)
