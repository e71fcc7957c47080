"""Tensors made from a shape: they are known at once, whatever the shape was taken from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dynprune_rt.frontend.operands import BatchIndex, Known, Symbolic
from dynprune_rt.frontend.registry import Handler, Unsupported, aten

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation

# These are looked up by the packet's name: every overload is made from the traced result's shape and type.


def _filled(fill_position: int | None, default: float) -> Handler:
    def handler(t: Translation, node: Any) -> Known:
        fill = default if fill_position is None else node.args[fill_position]
        if not isinstance(fill, (bool, int, float)):
            known = t.operands.get(fill)
            if not isinstance(known, Known) or known.scalar is None:
                raise Unsupported("fills a tensor with a computed value; use expand")
            fill = known.scalar
        value = node.meta["val"]
        batched = value.ndim > 0 and isinstance(value.shape[0], torch.SymInt)
        if batched and value.shape[0].node.expr != t.batch_symbol:
            raise Unsupported("merges the batch with another dimension")
        rest = value.shape[1:] if batched else value.shape
        if any(isinstance(size, torch.SymInt) for size in rest):
            raise Unsupported("moves the batch away from dimension 0")
        sizes = [int(size) for size in rest]
        return Known(torch.full([1, *sizes] if batched else sizes, fill, dtype=value.dtype), batched)

    return handler


aten("full_like")(_filled(1, 0.0))
aten("new_full")(_filled(2, 0.0))
aten("zeros_like", "new_zeros", "empty_like", "new_empty")(_filled(None, 0.0))
aten("ones_like", "new_ones")(_filled(None, 1.0))


@aten("arange")
def _arange_over_batch(t: Translation, args: Any) -> BatchIndex:
    """arange(N), which only serves to address every image's own entry."""
    start, step = (args[0] if len(args) > 1 else 0), (args[2] if len(args) > 2 else 1)
    end = args[1] if len(args) > 1 else args[0]
    if (start, step) != (0, 1) or not isinstance(end, Symbolic) or end.expression != t.batch_symbol:
        raise Unsupported("counts over the batch with a start or step")
    return BatchIndex()
