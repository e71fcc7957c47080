"""The traced program run by torch node by node: what every value should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from dynprune_rt.frontend.exported_graph import bound_tensor, operator_name, user_inputs


def reference_values(
    program: Any, inputs: Sequence[torch.Tensor], dtype: torch.dtype = torch.float32, stable_ties: bool = False
) -> dict[Any, Any]:
    """Every fx node's value for these inputs (the image, then tensors that follow the batch).

    ``dtype`` float64 evaluates everything in double precision, to see the model's own rounding error.
    ``stable_ties`` lets topk take the lower index of equal elements, as the runtime does and torch need not.
    """

    def converted(value: Any) -> Any:
        if value is torch.float32:
            return dtype
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    given = dict(zip(user_inputs(program), inputs, strict=True))
    values: dict[Any, Any] = {}

    def operand(leaf: Any) -> Any:
        return values[leaf] if isinstance(leaf, torch.fx.Node) else converted(leaf)

    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                values[node] = converted(given[node] if node in given else bound_tensor(program, node))
            elif node.op == "call_function" and not _is_assertion(node):
                args, kwargs = pytree.tree_map(
                    operand, (node.args, node.kwargs), is_leaf=lambda leaf: isinstance(leaf, torch.fx.Node)
                )
                target = _stable_topk if stable_ties and operator_name(node) == "topk.default" else node.target
                values[node] = target(*args, **kwargs)
    return values


def _stable_topk(
    x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = x.sort(dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k), indices.narrow(dim, 0, k)


def _is_assertion(node: Any) -> bool:
    name = operator_name(node)
    return "assert" in name or name.startswith("sym_constrain")
