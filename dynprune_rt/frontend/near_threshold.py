"""Decisions that rounding can turn: a gate value so close to its threshold that two correct runs may differ.

torch and the runtime add in different orders, so their gate values differ in the last digits. Where such a
value lies next to its threshold the channel may be on in one and off in the other. That is no error, but it
has to be told apart from one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dynprune_rt.frontend.capture import WRAPPER_PREFIX
from dynprune_rt.frontend.export_checks import place
from dynprune_rt.frontend.exported_graph import feeding_nodes, operator_name

#: Distance to a threshold, relative to the largest compared value, within which rounding may decide.
MARGIN = 1e-5

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ROUNDINGS = ("round", "floor", "ceil", "trunc", "sign", "sgn")
_ORDERINGS = ("topk", "sort", "argsort", "kthvalue", "argmax", "argmin", "max", "min", "median")


def near_threshold(program: Any, values: dict[Any, Any]) -> dict[int, str]:
    """Image -> the first place where a decision on it lies within `MARGIN` of turning."""
    found: dict[int, str] = {}
    for node in feeding_nodes(program):
        name = operator_name(node).partition(".")[0]
        close: torch.Tensor | None = None
        if name in _COMPARISONS:
            close = _close_comparison(values, node)
        elif name in _ROUNDINGS:
            close = _close_rounding(name, values[node.args[0]])
        elif name in _ORDERINGS and operator_name(node) not in ("max.other", "min.other"):
            close = _close_order(node, values)
        if close is None:
            continue
        for image in torch.nonzero(close).flatten().tolist():
            found.setdefault(image, place(node, WRAPPER_PREFIX))
    return found


def _per_image(flags: torch.Tensor, batch: int) -> torch.Tensor | None:
    return flags.reshape(batch, -1).any(1) if flags.ndim and flags.shape[0] == batch else None


def _scale(x: torch.Tensor) -> torch.Tensor:
    """Largest magnitude in each image, in a shape that broadcasts."""
    return x.abs().reshape(x.shape[0], -1).amax(1).reshape(-1, *[1] * (x.ndim - 1))


def _close_comparison(values: dict[Any, Any], node: Any) -> torch.Tensor | None:
    """Operands that differ by less than rounding. Equal ones are equal by construction (x >= kth value of x)."""
    a, b = (values[v] if isinstance(v, torch.fx.Node) else v for v in node.args[:2])
    operands = [v.double() if isinstance(v, torch.Tensor) else torch.tensor(float(v)).double() for v in (a, b)]
    if not any(isinstance(v, torch.Tensor) and v.is_floating_point() for v in (a, b)):
        return None
    left, right = torch.broadcast_tensors(*operands)
    if left.ndim == 0:
        return None
    distance = (left - right).abs()
    close = (distance > 0) & (distance <= MARGIN * torch.maximum(_scale(left), _scale(right)))
    return _per_image(close, values[node].shape[0])


def _close_rounding(name: str, x: torch.Tensor) -> torch.Tensor | None:
    """Values next to where the function jumps; on the spot they are there by construction (a clamped bound)."""
    if not x.is_floating_point() or x.ndim == 0:
        return None
    x = x.double()
    if name in ("sign", "sgn"):
        distance = x.abs()
    elif name == "round":
        distance = (x - x.floor() - 0.5).abs()
    else:
        distance = (x - x.round()).abs()
    return _per_image((distance > 0) & (distance <= MARGIN * _scale(x)), x.shape[0])


def _close_order(node: Any, values: dict[Any, Any]) -> torch.Tensor | None:
    """Neighbours in the order that are closer than rounding, or equal, next to where the order is cut."""
    x = values[node.args[0]]
    arguments = {argument.name: i for i, argument in enumerate(node.target._schema.arguments)}

    def argument(name: str, default: Any) -> Any:
        position = arguments.get(name)
        if position is not None and position < len(node.args):
            return node.args[position]
        return node.kwargs.get(name, default)

    name = operator_name(node).partition(".")[0]
    dim = argument("dim", -1 if name in ("topk", "sort", "argsort", "kthvalue") else None)
    if dim is None or not x.is_floating_point() or x.ndim < 2 or x.shape[dim] < 2:
        return None
    descending = {"topk": argument("largest", True), "argmax": True, "max": True}.get(name, False)
    ordered = x.double().sort(dim=dim, descending=bool(descending)).values
    gaps = ordered.diff(dim=dim).abs()
    cut: Callable[[int], slice] = lambda k: slice(max(k - 1, 0), k)  # noqa: E731
    window = {
        "topk": cut(argument("k", 1)),
        "kthvalue": slice(max(argument("k", 1) - 2, 0), argument("k", 1)),
        "median": slice(0, None),
        "sort": slice(0, None),
        "argsort": slice(0, None),
    }.get(name, slice(0, 1))
    close = gaps <= MARGIN * _scale(x.double())
    return _per_image(close.movedim(dim, -1)[..., window], x.shape[0])
