"""Chains of views and permutations that amount to choosing channels become index_select (or slice) on dimension 1.

Channel shuffle (view, permute, view), repetition of a mask over groups (repeat, view, permute, view;
repeat_interleave) and selections through intermediate views all have this form.
"""

from __future__ import annotations

import math

import numpy as np

from dynprune_rt.ir.graph import Node, Value
from dynprune_rt.ir.interpreter import evaluate
from dynprune_rt.passes.rewrite import Rewriter, Rule, has_masks, operand

_MOVES = ("reshape", "permute", "expand", "repeat", "slice", "index_select")

#: Larger tensors are not followed element by element.
_MAX_ELEMENTS = 1 << 22


def _chain(node: Node) -> list[Node]:
    """The moves that end in ``node``, first one first."""
    chain = [node]
    while True:
        producer = operand(chain[0]).producer
        if producer is None or producer.op not in _MOVES or has_masks(producer):
            return chain
        chain.insert(0, producer)


def _channel_choice(b: Rewriter, node: Node) -> Value | None:
    chain = _chain(node)
    # Try the longest chain first: it leaves the least behind.
    for start in range(len(chain) - 1):
        moves = chain[start:]
        if all(move.op == "reshape" for move in moves) or _is_canonical(moves):
            continue
        chosen = _replace(b, operand(moves[0]), moves)
        if chosen is not None:
            return chosen
    return None


def _is_canonical(moves: list[Node]) -> bool:
    """At most one choice of channels between reshapes that only add or drop dimensions of size 1."""
    choices = [m for m in moves if m.op != "reshape"]
    return (
        len(choices) == 1
        and choices[0].op in ("index_select", "slice", "expand")
        and (choices[0].op == "expand" or choices[0].attrs["dim"] == 1)
        and len(moves) <= 3
        and all(_same_channels(m) for m in moves if m.op == "reshape")
    )


def _same_channels(reshape: Node) -> bool:
    before, after = operand(reshape).type.shape, reshape.output.type.shape
    return len(before) > 1 and len(after) > 1 and before[1] == after[1]


def _replace(b: Rewriter, source: Value, moves: list[Node]) -> Value | None:
    shape, result = source.type.shape, moves[-1].output.type.shape
    if not source.type.batched or len(shape) < 2 or len(result) < 2:
        return None
    pixels = math.prod(shape[2:])
    if math.prod(result[2:]) != pixels or (pixels > 1 and result[2:] != shape[2:]):
        return None
    if source.type.elements > _MAX_ELEMENTS or moves[-1].output.type.elements > _MAX_ELEMENTS:
        return None
    index = _channel_index(b, source, moves, pixels)
    if index is None:
        return None
    if pixels == 1:
        source = b.reshape(source, (*shape[:2],))
        return b.reshape(_choose(b, source, index), result)
    return _choose(b, source, index)


def _channel_index(b: Rewriter, source: Value, moves: list[Node], pixels: int) -> np.ndarray | None:
    """Which channel of the source every channel of the result is; None if the moves do anything else."""
    shape = (1, *source.type.shape[1:])
    array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    for move in moves:
        constants = [b.graph.constant(v) for v in move.inputs[1:] if v is not None]
        array = evaluate(move, [array, *constants])[0]
    planes = array.reshape(-1, pixels)
    index: np.ndarray = planes[:, 0] // pixels
    return index if np.array_equal(planes, index[:, None] * pixels + np.arange(pixels)) else None


def _choose(b: Rewriter, x: Value, index: np.ndarray) -> Value:
    channels = x.type.channels
    if np.array_equal(index, np.arange(channels)):
        return x
    first, last = int(index[0]), int(index[-1])
    if np.array_equal(index, np.arange(first, last + 1)):
        return b.make("slice", x, dim=1, start=first, stop=last + 1, step=1)
    return b.make("index_select", x, b.constant("channels", index), dim=1)


CHANNEL_RULES: dict[str, Rule] = dict.fromkeys(_MOVES, _channel_choice)
