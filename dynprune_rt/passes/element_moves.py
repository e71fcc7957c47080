"""How structural operators carry per-element facts of one image from operands to results and back.

A fact array of a batched value of rank r has r - 1 dimensions; each has the value's size or 1, where
1 says that the fact is the same along that dimension. Large maps stay small this way: a fact per
channel of [N, C, H, W] has the shape [C, 1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dynprune_rt.ir.graph import Graph, Node

#: Reshapes that would tell apart more elements than this give up.
MAX_ELEMENTS = 1 << 20

STRUCTURAL = frozenset({"reshape", "permute", "expand", "slice", "repeat", "cat", "index_select", "pad"})


def reshape(fact: np.ndarray, source: Sequence[int], target: Sequence[int]) -> np.ndarray | None:
    """``fact`` of an image of shape ``source``, for the same image reshaped to ``target``.

    None if too many elements would have to be told apart.
    """
    known: list[int] = []  # the shape to which the fact is expanded first
    result: list[int] = []
    i = j = 0
    while i < len(source) or j < len(target):
        first_i, first_j = i, j
        left, right = 1, 1
        while (i == first_i and i < len(source)) or left != right:
            if left <= right and i < len(source):
                left *= source[i]
                i += 1
            else:
                right *= target[j]
                j += 1
        # Dimensions of size 1 at the end belong to the last block.
        if left == math.prod(source[first_i:]) and right == math.prod(target[first_j:]):
            i, j = len(source), len(target)
        if all(d == 1 for d in fact.shape[first_i:i]):
            known += [1] * (i - first_i)
            result += [1] * (j - first_j)
        else:
            known += source[first_i:i]
            result += target[first_j:j]
    if math.prod(known) > MAX_ELEMENTS:
        return None
    return np.broadcast_to(fact, known).reshape(result)


def _widen(fact: np.ndarray, axis: int, size: int) -> np.ndarray:
    """The fact with one dimension written out."""
    if fact.shape[axis] == size:
        return fact
    return np.repeat(fact, size, axis=axis)


def forward(graph: Graph, node: Node, facts: Sequence[np.ndarray], fill: float) -> np.ndarray | None:
    """The fact of a structural node's result. ``fill``: the fact of elements that ``pad`` adds.

    None where the result cannot be told.
    """
    fact, x = facts[0], node.inputs[0]
    assert x is not None
    match node.op:
        case "reshape":
            return reshape(fact, x.type.shape[1:], node.output.type.shape[1:])
        case "permute":
            return np.transpose(fact, [d - 1 for d in node.attrs["dims"][1:]])
        case "expand":
            return fact
        case "slice":
            axis = node.attrs["dim"] - 1
            if fact.shape[axis] == 1:
                return fact
            part = [slice(None)] * axis + [slice(node.attrs["start"], node.attrs["stop"], node.attrs["step"])]
            return fact[tuple(part)]
        case "repeat":
            repeats = [r if d > 1 else 1 for r, d in zip(node.attrs["repeats"][1:], fact.shape, strict=True)]
            return np.tile(fact, repeats)
        case "cat":
            axis = node.attrs["dim"] - 1
            sizes = [v.type.shape[axis + 1] for v in node.inputs if v is not None]
            parts = [_widen(f, axis, size) for f, size in zip(facts, sizes, strict=True)]
            common = np.broadcast_shapes(*[(*f.shape[:axis], 1, *f.shape[axis + 1 :]) for f in parts])
            shapes = [(*common[:axis], size, *common[axis + 1 :]) for size in sizes]
            return np.concatenate([np.broadcast_to(f, s) for f, s in zip(parts, shapes, strict=True)], axis=axis)
        case "index_select":
            axis = node.attrs["dim"] - 1
            return fact if fact.shape[axis] == 1 else np.take(fact, _index(graph, node), axis=axis)
        case "pad":
            # Where the fact is the same all over a plane the caller has seen to it that ``fill`` agrees.
            width = []
            for axis, (low, high) in enumerate(zip(node.attrs["low"][1:], node.attrs["high"][1:], strict=True)):
                told_apart = (low or high) and (axis == 0 or fact.shape[axis] > 1)
                fact = _widen(fact, axis, x.type.shape[axis + 1]) if told_apart else fact
                width.append((low, high) if told_apart else (0, 0))
            return np.pad(fact, width, constant_values=fill) if fact.size <= MAX_ELEMENTS else None
    raise ValueError(f"{node.op} is not structural")


def backward(
    graph: Graph,
    node: Node,
    slot: int,
    fact: np.ndarray,
    everywhere: int,
    conj_over: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray | None:
    """What a fact of every copy of an operand's element says about operand ``slot`` of a structural node.

    ``everywhere``: the fact of elements of which the result holds no copy. ``conj_over(fact, axis)``
    joins several copies. None where nothing can be told.
    """
    x = node.inputs[slot]
    assert x is not None
    size = x.type.shape[1:]
    match node.op:
        case "reshape":
            return reshape(fact, node.output.type.shape[1:], size)
        case "permute":
            return np.transpose(fact, np.argsort([d - 1 for d in node.attrs["dims"][1:]]))
        case "expand":
            for axis, d in enumerate(size):
                if d == 1:
                    fact = conj_over(fact, axis)
            return fact
        case "slice":
            axis = node.attrs["dim"] - 1
            if fact.shape[axis] == 1 and axis > 0:  # over space the whole plane shares the fact of its part
                return fact
            part = [slice(None)] * axis + [slice(node.attrs["start"], node.attrs["stop"], node.attrs["step"])]
            result = np.full((*fact.shape[:axis], size[axis], *fact.shape[axis + 1 :]), everywhere, fact.dtype)
            result[tuple(part)] = fact
            return result
        case "repeat":
            for axis, (count, d) in enumerate(zip(node.attrs["repeats"][1:], size, strict=True)):
                if fact.shape[axis] > 1 and count > 1:
                    copies = fact.reshape(*fact.shape[:axis], count, d, *fact.shape[axis + 1 :])
                    fact = np.squeeze(conj_over(copies, axis), axis)
            return fact
        case "cat":
            axis = node.attrs["dim"] - 1
            if fact.shape[axis] == 1:
                return fact
            start = sum(v.type.shape[axis + 1] for v in node.inputs[:slot] if v is not None)
            return np.take(fact, range(start, start + size[axis]), axis=axis)
        case "index_select":
            axis, index = node.attrs["dim"] - 1, _index(graph, node)
            fact = np.moveaxis(_widen(fact, axis, len(index)), axis, 0)
            result = np.full((size[axis], *fact.shape[1:]), everywhere, fact.dtype)
            order = np.argsort(index, kind="stable")
            for group in np.split(order, np.nonzero(np.diff(index[order]))[0] + 1):
                copies = fact[group]
                result[index[group[0]]] = copies[0] if len(group) == 1 else conj_over(copies, 0)[0]
            return np.moveaxis(result, 0, axis)
        case "pad":
            low = node.attrs["low"][1:]
            part = [slice(a, a + d) if f > 1 else slice(None) for a, d, f in zip(low, size, fact.shape, strict=True)]
            return fact[tuple(part)]
    raise ValueError(f"{node.op} is not structural")


def _index(graph: Graph, node: Node) -> np.ndarray:
    index = node.inputs[1]
    assert index is not None
    return graph.constant(index)
