"""What is refused after tracing: programs that would run, and be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from dynprune_rt.errors import ConversionError
from dynprune_rt.frontend import source_location
from dynprune_rt.frontend.exported_graph import (
    feeding_nodes,
    operator_name,
    output_nodes,
    target_name,
    user_inputs,
)


class RandomnessError(ConversionError):
    """Random numbers feed an output."""


def check_exported(program: Any, wrapper_prefix: str, batched_arguments: Sequence[str]) -> None:
    """Raise ConversionError if the traced program would not stand for the model on every input.

    ``batched_arguments`` names the user inputs after the image; nothing that feeds an output may read them.
    """
    for name, constant in {**program.constants, **program.state_dict}.items():
        if isinstance(constant, FakeTensor):
            raise ConversionError(
                f"constant {name} was captured without its value: the model stores a tensor made in forward, "
                "or reads the inside of one; compute it in __init__ or from the forward's own tensors"
            )
    mutated = list(program.graph_signature.user_inputs_to_mutate.values())
    if mutated:
        raise ConversionError(
            "the model writes into its input (an in-place operator such as nn.ReLU(inplace=True) applied to the "
            "image itself); let it work on a copy: x = x.clone()"
        )
    nodes = feeding_nodes(program)
    _check_inputs(program, nodes, batched_arguments)
    _check_buffers(program, nodes, wrapper_prefix)
    for node in nodes:
        if node.op == "call_function":
            _check_randomness(node, wrapper_prefix)
            _check_data_dependence(node, wrapper_prefix)
    for node in output_nodes(program):
        if not isinstance(node, torch.fx.Node):
            raise ConversionError(f"an output is the Python value {node!r}, not a tensor; leave it out with outputs=")


def _check_inputs(program: Any, nodes: Sequence[Any], batched_arguments: Sequence[str]) -> None:
    inputs = user_inputs(program)
    for placeholder, name in zip(inputs[1:], batched_arguments, strict=True):
        if placeholder in nodes:
            raise ConversionError(
                f"{name} has one entry per image and feeds a converted output; a program has one input. Choose "
                "outputs that do not depend on it, or compute it inside the model"
            )
    if inputs[0] not in nodes:
        raise ConversionError("the selected outputs do not depend on the input at all; choose others with outputs=")


def _check_buffers(program: Any, nodes: Sequence[Any], wrapper_prefix: str) -> None:
    mutated = set(program.graph_signature.buffers_to_mutate.values())
    for node in nodes:
        if node.op == "placeholder" and target_name(program, node) in mutated:
            name = target_name(program, node).removeprefix(wrapper_prefix + ".")
            raise ConversionError(
                f"buffer {name} is changed by forward and feeds an output: results would depend on earlier calls. "
                "Freeze it in eval mode (guard the update with 'if self.training:')"
            )


def _check_randomness(node: Any, wrapper_prefix: str) -> None:
    if operator_name(node).startswith("scaled_dot_product_attention") and not (node.args[4:5] or (0.0,))[0]:
        return  # random only with dropout
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
        raise RandomnessError(
            f"{place(node, wrapper_prefix)}: {operator_name(node)} draws random numbers that feed an output. Switch "
            "the noise off in eval mode: pass training=self.training to dropout, and use the arg max of the logits "
            "instead of a Gumbel sample"
        )


def _check_data_dependence(node: Any, wrapper_prefix: str) -> None:
    name = operator_name(node)
    if name in ("_local_scalar_dense.default", "item.default"):
        raise ConversionError(
            f"{place(node, wrapper_prefix)}: .item() (or int(), float()) turns a value computed from the images into "
            "a Python number that feeds an output; keep it a tensor"
        )


def place(node: Any, wrapper_prefix: str) -> str:
    """ "resnet.py:39 (layer1.0.conv1)"; whatever of it is known."""
    origin = source_location.of_node(node)
    path = source_location.module_path(node, wrapper_prefix)
    if origin and path:
        return f"{origin} ({path})"
    return origin or path or f"node {node.name}"
