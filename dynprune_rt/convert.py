"""convert(): torch.nn.Module -> Program, checked against the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynprune_rt.frontend.torch_version import require_torch
from dynprune_rt.program import Program

if TYPE_CHECKING:
    from dynprune_rt.frontend.outputs import OutputSelector

__all__ = ["convert"]


def convert(
    model: Any,
    example: Any,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    outputs: OutputSelector = 0,
    verify: bool = True,
) -> Program:
    """Convert a trained model in eval mode to a Program."""
    require_torch()
    from dynprune_rt.frontend.canonical import canonicalise
    from dynprune_rt.frontend.capture import capture
    from dynprune_rt.frontend.model_checks import check_example, check_model
    from dynprune_rt.frontend.translate import translate
    from dynprune_rt.ir.verifier import verify as verify_graph

    check_model(model)
    image = check_example(example)
    captured = capture(model, image, args, kwargs, outputs)
    graph, _ = translate(captured)
    canonicalise(graph)
    verify_graph(graph)
    return Program(graph, {})
