"""Arguments of the model besides the image: bound as constants, or carried along with the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree


class ExtraArguments:
    """Positional and keyword arguments that follow the image.

    Everything is bound as a constant, except tensors that have one entry per example image (labels,
    previous states): those have to follow the batch size, so they become inputs of the traced graph.
    The converted program has one input, hence nothing that feeds an output may depend on them.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, batch: int) -> None:
        paths_and_leaves, self._spec = pytree.tree_flatten_with_path((tuple(args), dict(kwargs or {})))
        self._leaves = [leaf for _, leaf in paths_and_leaves]
        self._batched = [i for i, leaf in enumerate(self._leaves) if _follows_batch(leaf, batch)]
        self.batched_names = [_argument_name(paths_and_leaves[i][0]) for i in self._batched]

    def batched(self, n: int) -> tuple[torch.Tensor, ...]:
        """The per-image tensors, cut or repeated to ``n`` images."""
        return tuple(at_batch(self._leaves[i], n) for i in self._batched)

    def bind(self, batched: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with fresh containers, since models append to the lists and dicts they are given."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._batched, batched, strict=True):
            leaves[i] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs


def at_batch(tensor: torch.Tensor, n: int) -> torch.Tensor:
    """The first ``n`` images, repeated cyclically where there are fewer."""
    return tensor[torch.arange(n) % tensor.shape[0]].clone()


def _follows_batch(leaf: Any, batch: int) -> bool:
    if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0 or leaf.shape[0] != batch:
        return False
    # At batch 1 a float tensor [1] is a temperature rather than a label.
    return batch > 1 or not leaf.is_floating_point()


def _argument_name(path: Any) -> str:
    text = str(pytree.keystr(path))
    return ("kwargs" if text.startswith("[1]") else "args") + text[3:]
