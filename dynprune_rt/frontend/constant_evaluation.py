"""Evaluation of nodes whose operands are all known: weights that are expressions, masks built with ones_like, ..."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from dynprune_rt.frontend.operands import BatchIndex, Known, Symbolic
from dynprune_rt.frontend.registry import Unsupported

_SHAPE_CHANGES_OF_BATCH_INDEX = ("view", "unsqueeze", "expand", "alias", "clone", "_to_copy", "reshape", "slice")


def evaluate(target: Any, args: Any, kwargs: Any, batch_symbol: Any, batched_result: bool) -> Any:
    """Run an ATen operator on known operands; returns Known values (a tuple where there are several).

    Whatever carries the batch is evaluated for one image and for two. A result that is not the same
    for every image, or that has lost the batch and depends on its size, raises Unsupported.
    """
    leaves = pytree.tree_leaves((args, kwargs), is_leaf=_is_operand)
    if any(isinstance(leaf, BatchIndex) for leaf in leaves):
        if target._schema.name.removeprefix("aten::") in _SHAPE_CHANGES_OF_BATCH_INDEX:
            return BatchIndex()
        raise Unsupported("computes with the positions of images in the batch")
    one = _call(target, args, kwargs, batch_symbol, 1)
    if not any(isinstance(leaf, Symbolic) or (isinstance(leaf, Known) and leaf.batched) for leaf in leaves):
        return pytree.tree_map(lambda r: Known(r) if isinstance(r, torch.Tensor) else r, one)
    two = _call(target, args, kwargs, batch_symbol, 2)
    return pytree.tree_map(lambda a, b: _agree(a, b, batched_result), one, two)


def _is_operand(value: Any) -> bool:
    return isinstance(value, (Known, Symbolic, BatchIndex))


def _call(target: Any, args: Any, kwargs: Any, batch_symbol: Any, batch: int) -> Any:
    def concrete(leaf: Any) -> Any:
        if isinstance(leaf, Symbolic):
            return int(leaf.expression.subs({batch_symbol: batch}))
        if isinstance(leaf, Known):
            return leaf.tensor.expand(batch, *leaf.tensor.shape[1:]) if leaf.batched else leaf.tensor
        return leaf

    real_args, real_kwargs = pytree.tree_map(concrete, (args, kwargs), is_leaf=_is_operand)
    if target._schema.name.startswith(("aten::empty", "aten::new_empty")):
        # Uninitialised memory is overwritten before it is read; zeros make the evaluation repeatable.
        return target(*real_args, **real_kwargs).zero_()
    result = target(*real_args, **real_kwargs)
    return list(result) if isinstance(result, (tuple, list)) else result


def _agree(one: Any, two: Any, batched: bool) -> Any:
    if not isinstance(one, torch.Tensor):
        if one != two:
            raise Unsupported("uses the batch size as a number")
        return one
    same = torch.equal(two.nan_to_num(), one.expand_as(two).nan_to_num()) if one.ndim == two.ndim else False
    if not same or (batched and (one.shape[0], two.shape[0]) != (1, 2)) or (not batched and one.shape != two.shape):
        raise Unsupported("builds a constant that depends on the batch size")
    return Known(one, batched=batched)
