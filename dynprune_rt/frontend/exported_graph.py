"""Queries on a torch.export program: what its outputs are, what feeds them, and what is constant."""

from __future__ import annotations

from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

#: Operators whose result depends on the shape of their operand only.
_SHAPE_ONLY = ("full_like", "ones_like", "zeros_like", "empty_like", "new_full", "new_zeros", "new_ones", "new_empty")


def output_nodes(program: Any) -> list[Any]:
    """The fx nodes returned to the user. Mutation results, which come first in the output list, are not among them."""
    returned = next(n for n in reversed(program.graph.nodes) if n.op == "output").args[0]
    return [
        node
        for node, spec in zip(returned, program.graph_signature.output_specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]


def reads_values(node: Any) -> bool:
    """False for a node that looks at its operands' shape only."""
    name = operator_name(node)
    return not (name.startswith("sym_size") or name.partition(".")[0] in _SHAPE_ONLY)


def feeding_nodes(program: Any) -> list[Any]:
    """The nodes whose values reach a user output, in execution order.

    This drops statistics, losses and features that nobody asked for together with the assertions that torch
    keeps alive, and everything that computes only those.
    """
    needed: set[Any] = set()
    stack = [node for node in output_nodes(program) if isinstance(node, torch.fx.Node)]
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        needed.add(node)
        if reads_values(node):
            stack.extend(node.all_input_nodes)
    return [node for node in program.graph.nodes if node in needed]


def operator_name(node: Any) -> str:
    """ "relu.default" for torch.ops.aten.relu.default; the plain name for Python functions; "" for placeholders."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        namespace, _, packet = node.target._schema.name.partition("::")
        overload = node.target._overloadname
        return f"{'' if namespace == 'aten' else namespace + '::'}{packet}.{overload}"
    return getattr(node.target, "__name__", str(node.target))


def bound_tensor(program: Any, placeholder: Any) -> torch.Tensor | None:
    """The parameter, buffer or constant behind a placeholder; None for a user input."""
    spec = next(s for s in program.graph_signature.input_specs if getattr(s.arg, "name", None) == placeholder.name)
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        # Non-persistent buffers and plain attributes are not in the state dict.
        tensor = program.state_dict.get(spec.target)
        tensor = program.constants.get(spec.target) if tensor is None else tensor
        assert isinstance(tensor, torch.Tensor), f"{spec.target} is not a tensor"
        return tensor.detach()
    return None


def user_inputs(program: Any) -> list[Any]:
    """The tensor placeholders that the caller fills, in order: the image first."""
    names = [
        s.arg.name
        for s in program.graph_signature.input_specs
        if s.kind is InputKind.USER_INPUT and not hasattr(s.arg, "value")
    ]
    by_name = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    return [by_name[name] for name in names if isinstance(by_name[name].meta.get("val"), torch.Tensor)]


def target_name(program: Any, placeholder: Any) -> str:
    """Name of the parameter or buffer in the user's model."""
    for spec in program.graph_signature.input_specs:
        if getattr(spec.arg, "name", None) == placeholder.name:
            return str(spec.target or placeholder.name)
    return str(placeholder.name)
