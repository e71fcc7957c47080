"""Checks that the IR graph of a torch function computes what torch computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dynprune_rt.frontend.canonical import canonicalise
from dynprune_rt.frontend.capture import capture
from dynprune_rt.frontend.translate import translate
from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Graph
from dynprune_rt.ir.verifier import verify

Function = Callable[..., Any]


class Functions(torch.nn.Module):
    """Several functions of one input as one module: tracing costs far more than they do."""

    def __init__(self, functions: Mapping[str, Function], **modules: torch.nn.Module) -> None:
        super().__init__()
        self.functions = dict(functions)
        for name, module in modules.items():
            self.add_module(name, module)
        self.eval()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: function(self, x) for name, function in self.functions.items()}


class Model(torch.nn.Module):
    """A module from submodules, tensors (buffers) and a function of (module, x, ...)."""

    def __init__(self, function: Function, **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, torch.nn.Module):
                self.add_module(name, member)
            elif isinstance(member, torch.Tensor):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def to_graph(model: torch.nn.Module, example: torch.Tensor, *, canonical: bool = True, **options: Any) -> Graph:
    """Capture and translate; the graph is verified."""
    graph, _ = translate(capture(model, example, **options))
    if canonical:
        canonicalise(graph)
    verify(graph)
    return graph


def run(graph: Graph, x: torch.Tensor) -> tuple[np.ndarray, ...]:
    return interpreter.run(graph, {graph.inputs[0].name: x.numpy()})


def assert_close(actual: np.ndarray, expected: torch.Tensor, what: str = "") -> None:
    """Equal within fp32 rounding; integers and bools exactly. Infinities and NaN have to match."""
    reference = expected.detach().numpy()
    assert actual.shape == reference.shape, what
    if reference.dtype != np.float32:
        np.testing.assert_array_equal(actual, reference, err_msg=what)
        return
    scale = np.abs(reference[np.isfinite(reference)]).max(initial=1e-6)
    np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=2e-6 * scale, err_msg=what)


def assert_equivalent(model: torch.nn.Module, example: torch.Tensor, **options: Any) -> Graph:
    """The model's first output and the canonical graph agree at batches 1, 2 and 3; returns the graph."""
    graph = to_graph(model, example, **options)
    for batch in (1, 2, 3):
        x = torch.randn(batch, *example.shape[1:], generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(x.clone())
        first = torch.utils._pytree.tree_leaves(expected)[0]
        assert_close(run(graph, x)[0], first)
    return graph


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]
