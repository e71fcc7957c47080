"""What the GPU back end is measured against: the ungated network in torch, as fast as torch runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F

from dynprune_rt.backends.cuda.torch_ops import TORCH_OPS
from dynprune_rt.ir.graph import Graph, Node, Value

Tensor = Any
_RELU: Final = (0.0, float("inf"))
_NONE: Final = (float("-inf"), float("inf"))


@dataclass(frozen=True)
class FusedConvolutions:
    """Convolution with bias and ReLU, and the same with a residual before the ReLU, in one kernel each.

    Arguments as of torch.cudnn_convolution_relu and torch.cudnn_convolution_add_relu.
    """

    relu: Callable[..., Tensor]
    add_relu: Callable[..., Tensor]


def cudnn() -> FusedConvolutions:
    return FusedConvolutions(torch.cudnn_convolution_relu, torch.cudnn_convolution_add_relu)


class FusedNetwork:
    """An ungated graph with folded batch norms, on torch in channels_last and one type, with fused convolutions."""

    def __init__(
        self,
        graph: Graph,
        device: torch.device,
        dtype: torch.dtype = torch.float16,
        fused: FusedConvolutions | None = None,
    ) -> None:
        self._graph, self._dtype, self._fused = graph, dtype, fused or cudnn()
        self._constants: dict[Value, Tensor] = {}
        for node in graph.nodes:
            for value in node.inputs:
                if value is not None and graph.is_constant(value) and value not in self._constants:
                    tensor = torch.from_numpy(np.array(graph.constant(value))).to(device)
                    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
                    if tensor.dim() == 4:
                        tensor = tensor.to(memory_format=torch.channels_last)
                    self._constants[value] = tensor

    def __call__(self, x: Tensor) -> Tensor:
        values = {**self._constants, self._graph.inputs[0]: x.to(self._dtype).to(memory_format=torch.channels_last)}
        for node in self._graph.nodes:
            operands = [None if v is None else values[v] for v in node.inputs]
            if node.op == "conv2d":
                y = self._convolution(node, operands)
                pools = (TORCH_OPS["spatial_reduce"]([y], {"kind": kind}) for kind in node.attrs["pools"])
                results: Any = (y, *pools)
            elif node.op == "max_pool2d":
                results = _max_pool(node, operands[0])
            elif node.op == "linear":
                results = F.linear(*operands).clamp(*node.attrs["inner"])
            else:
                results = TORCH_OPS[node.op](operands, node.attrs)
            for value, result in zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True):
                values[value] = result
        return values[self._graph.outputs[0]]

    def _convolution(self, node: Node, operands: Sequence[Tensor | None]) -> Tensor:
        attrs = node.attrs
        padded: list[Any] = [*operands, *[None] * (6 - len(operands))]
        x, weight, bias, gate, shift, residual = padded
        top, left, bottom, right = attrs["padding"]
        if gate is not None or shift is not None or (top, left) != (bottom, right):
            raise ValueError(f"layer {node.name} is none of an ungated network with symmetric padding")
        inner, outer = tuple(attrs["inner"]), tuple(attrs["outer"])
        where = (attrs["stride"], (top, left), attrs["dilation"], attrs["groups"])
        if residual is not None and inner == _NONE and outer == _RELU:
            return self._fused.add_relu(x, weight, residual, 1.0, bias, *where)
        if residual is None and _RELU in (inner, outer) and _NONE in (inner, outer):
            return self._fused.relu(x, weight, bias, *where)
        y = F.conv2d(x, weight, bias, *where)
        y = y if inner == _NONE else y.clamp(*inner)
        y = y if residual is None else y + residual
        return y if outer == _NONE else y.clamp(*outer)


def _max_pool(node: Node, x: Tensor) -> Tensor:
    attrs = node.attrs
    top, left, bottom, right = attrs["padding"]
    if (top, left) != (bottom, right):
        return TORCH_OPS["max_pool2d"]([x], attrs)
    return F.max_pool2d(x, attrs["kernel"], attrs["stride"], (top, left), attrs["dilation"], attrs["ceil_mode"])


def compiled(model: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """torch.compile's max-autotune, which captures CUDA graphs of its own; channels_last in fp16."""
    torch._dynamo.reset()
    module = model.to(device).half().to(memory_format=torch.channels_last)
    run = torch.compile(module, mode="max-autotune")

    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return run(x)

    return call
