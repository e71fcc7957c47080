"""convert(): torch.nn.Module -> Program, checked against the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynprune_rt.frontend.torch_version import require_torch
from dynprune_rt.ir import interpreter
from dynprune_rt.ir.verifier import verify as verify_graph
from dynprune_rt.program import Program

if TYPE_CHECKING:
    from dynprune_rt.frontend.capture import Captured
    from dynprune_rt.frontend.outputs import OutputSelector
    from dynprune_rt.frontend.parity import Runner
    from dynprune_rt.ir.graph import Graph

__all__ = ["convert"]

#: With more outputs than this, their cost is reported together instead of one by one.
_MAX_COSTED_OUTPUTS = 8


def convert(
    model: Any,
    example: Any,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    outputs: OutputSelector = 0,
    verify: bool = True,
) -> Program:
    """Convert a trained torch model to a Program that skips the channels its gates switch off.

    Args:
        model: an ``nn.Module`` in eval mode, float32, on the CPU. It is left as it was.
        example: one input f32[N, ...] (tensor or numpy array), any N >= 1, with realistic values.
            The program takes any batch size; the other dimensions are fixed.
        args, kwargs: further arguments of ``model.forward``, bound as constants.
        outputs: which of the returned tensors to keep: an index into the flattened result (dicts and
            tuples may be nested), a key such as "logits", a tuple of these, or None for all. Auxiliary
            outputs (masks, features, statistics) keep channels alive, so the default is the first only.
        verify: compare the program with the model on the example and on random inputs at batches
            1, 2 and 3, to 1e-4 of the largest output.

    Returns:
        The program; ``program.report`` says what was left out, what the check measured and how often a
        gate lay within rounding of its threshold ("near_threshold").

    Raises:
        ConversionError: the model or its arguments cannot be converted; the message names the line.
        UnsupportedOperatorError: operators without counterpart; the message lists all of them.
        InputError: the example has the wrong type, dtype or rank.
        VerificationError: the program does not reproduce the model; names the first layer that differs.
    """
    torch = require_torch()
    from dynprune_rt.frontend.capture import capture
    from dynprune_rt.frontend.eager import EagerModel
    from dynprune_rt.frontend.model_checks import check_example, check_model
    from dynprune_rt.frontend.parity import check_parity

    check_model(model)
    image = check_example(example)
    captured = capture(model, image, args, kwargs, outputs)
    report: dict[str, Any] = {"torch": torch.__version__, "outputs": captured.output_paths}
    graph = _optimised(captured, None, report)
    if captured.left_out:
        report["outputs_left_out"] = captured.left_out
    if len(graph.outputs) > 1:
        report["lost_skips"] = _lost_skips(captured, graph)
    program = Program(graph, report)
    if verify:
        runner, runs_on = _runner(program)
        parity = check_parity(runner, captured, EagerModel(model, image, args, kwargs), image)
        report["verified_by"] = runs_on
        report["max_error"] = parity.max_error
        report["near_threshold"] = parity.near_threshold
        if parity.near_threshold_at:
            report["near_threshold_at"] = parity.near_threshold_at
        if parity.rounding_sensitive:
            report["rounding_sensitive"] = parity.rounding_sensitive
            report["model_rounding_error"] = parity.rounding_error
        if parity.notes:
            report["notes"] = parity.notes
    return program


def _optimised(captured: Captured, kept: Sequence[int] | None, report: dict[str, Any]) -> Graph:
    """The translated and optimised graph, with only the outputs at the positions ``kept`` (None: all)."""
    from dynprune_rt.frontend.canonical import canonicalise
    from dynprune_rt.frontend.translate import translate
    from dynprune_rt.passes.pipeline import optimize

    graph, _ = translate(captured)
    if kept is not None:
        graph.outputs = [graph.outputs[i] for i in kept]
    canonicalise(graph)
    verify_graph(graph)
    graph = optimize(graph, report)
    verify_graph(graph)
    return graph


def _lost_skips(captured: Captured, graph: Graph) -> dict[str, dict[str, int]]:
    """For each output after the first, by key path, how many convolutions lose their skip of outputs and of inputs."""

    def skips(kept: Sequence[int] | None) -> dict[str, int]:
        report: dict[str, Any] = {}
        _optimised(captured, kept, report)
        return {side: report["skips"][side] for side in ("outputs", "inputs")}

    alone = skips([0])

    def lost(kept: Sequence[int] | None) -> dict[str, int]:
        return {side: alone[side] - count for side, count in skips(kept).items()}

    positions = range(1, len(graph.outputs))
    if len(positions) > _MAX_COSTED_OUTPUTS:
        return {"all extra outputs": lost(None)}
    return {captured.output_paths[i]: lost([0, i]) for i in positions}


def _runner(program: Program) -> tuple[Runner, str]:
    """The compiled runtime if this machine has it, else the reference interpreter."""
    from dynprune_rt import session

    try:
        loaded = session.load(program, threads=1)
    except ImportError:
        name = program.graph.inputs[0].name
        return lambda x: interpreter.run(program.graph, {name: x}), "reference interpreter"

    def run(x: np.ndarray) -> Sequence[np.ndarray]:
        result = loaded.run(x)
        return result if isinstance(result, tuple) else (result,)

    return run, f"runtime ({loaded.isa})"
