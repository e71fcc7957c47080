"""Comparison of a converted program with the model itself, and the search for the first layer that differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dynprune_rt.errors import VerificationError
from dynprune_rt.frontend import source_location
from dynprune_rt.frontend.capture import WRAPPER_PREFIX, Captured
from dynprune_rt.frontend.eager import EagerModel
from dynprune_rt.frontend.export_checks import place
from dynprune_rt.frontend.exported_graph import operator_name, output_nodes
from dynprune_rt.frontend.near_threshold import near_threshold
from dynprune_rt.frontend.reference_values import reference_values
from dynprune_rt.frontend.translate import translate
from dynprune_rt.ir import interpreter

#: Largest difference allowed, relative to the largest output.
TOLERANCE = 1e-4

#: A difference beyond the tolerance is rounding if neither program nor model is further from the float64
#: result than this many times the fp32 trace is.
ROUNDING_FACTOR = 4.0

#: Batch sizes of the fresh inputs.
BATCHES = (1, 2, 3)

#: image batch -> the program's outputs
Runner = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass
class Parity:
    """The outcome of a comparison that passed.

    ``near_threshold`` counts images that differ because a gate lies within rounding of its threshold,
    ``rounding_sensitive`` those where the model itself is off by a like amount (``rounding_error``, against
    its evaluation in float64).
    """

    max_error: float = 0.0
    images: int = 0
    near_threshold: int = 0
    near_threshold_at: list[str] = field(default_factory=list)
    rounding_sensitive: int = 0
    rounding_error: float = 0.0
    notes: list[str] = field(default_factory=list)


def check_parity(run: Runner, captured: Captured, eager: EagerModel, example: torch.Tensor) -> Parity:
    """Compare on the example and on fresh random images at batches 1, 2 and 3.

    Images on which a gate lies within rounding of its threshold, and images on which the model's own
    fp32 rounding error is as large, are counted. Raises VerificationError for any other difference,
    naming the first layer that differs.
    """
    result = Parity()
    failures: list[_Failure] = []
    for image in [example, *(_random_like(example, n, seed=n) for n in BATCHES)]:
        expected = _eager_outputs(eager, captured, image, result.notes)
        if expected is None:
            continue
        if any(np.isnan(e).any() for e in expected if e.dtype == np.float32):
            result.notes.append("the model itself returns NaN; where it does, only that was compared")
        actual = [np.asarray(a) for a in run(image.numpy())]
        errors = _errors(actual, _as_program_shapes(expected, actual, image.shape[0], result.notes))
        result.images += len(errors)
        good = errors[errors <= TOLERANCE]
        result.max_error = max(result.max_error, float(good.max(initial=0.0)))
        failures += [_Failure(image, int(i), float(errors[i])) for i in np.flatnonzero(errors > TOLERANCE)]
    if failures:
        _judge(failures, run, captured, eager, result)
    result.notes = list(dict.fromkeys(result.notes))
    return result


def _random_like(example: torch.Tensor, batch: int, seed: int) -> torch.Tensor:
    """Normal images with the example's mean and deviation."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((batch, *example.shape[1:]), generator=generator)
    deviation = float(example.std()) if example.numel() > 1 else 0.0
    return noise * deviation + example.mean() if deviation > 0 else noise


def _eager_outputs(
    eager: EagerModel, captured: Captured, image: torch.Tensor, notes: list[str]
) -> list[np.ndarray] | None:
    """The selected outputs; None, with a note, where the model itself fails on this batch."""
    try:
        leaves = eager.run(image)
    except Exception as error:
        where = source_location.of_exception(error)
        notes.append(
            f"the model itself fails at batch {image.shape[0]}{f' ({where})' if where else ''}: "
            f"{type(error).__name__}; the program does not"
        )
        return None
    return [leaves[i][1].numpy() for i in captured.selected]


def _as_program_shapes(
    expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], batch: int, notes: list[str]
) -> list[np.ndarray]:
    """Eager's outputs in the program's shapes, which keep the batch where a squeeze() drops it at batch 1."""
    shaped = []
    for e, a in zip(expected, actual, strict=True):
        if e.shape != a.shape and batch == 1 and e.size == a.size:
            notes.append("the model drops the batch dimension at batch 1 (a squeeze); the program keeps it")
            e = e.reshape(a.shape)
        shaped.append(e)
    return shaped


def _errors(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> np.ndarray:
    """Per image, the largest difference over all outputs, relative to the output's largest value."""
    worst = np.zeros(actual[0].shape[0])
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape:
            return np.full(a.shape[0], np.inf)
        if a.dtype != np.float32:
            difference = np.where(a == e, 0.0, np.inf)
        else:
            finite = np.isfinite(e)
            scale = max(float(np.abs(e[finite]).max(initial=0.0)), np.finfo(np.float32).tiny)
            same = (a == e) | (np.isnan(a) & np.isnan(e))
            with np.errstate(invalid="ignore"):
                difference = np.where(same, 0.0, np.abs(a.astype(np.float64) - e) / scale)
            difference = np.where(np.isnan(difference), np.inf, difference)
        worst = np.maximum(worst, difference.reshape(len(worst), -1).max(axis=1, initial=0.0))
    return worst


# ---- differences ------------------------------------------------------------------------------


@dataclass
class _Failure:
    """One image on which program and model differ."""

    image: torch.Tensor
    index: int
    error: float


def _judge(failures: Sequence[_Failure], run: Runner, captured: Captured, eager: EagerModel, result: Parity) -> None:
    """Count the differences that rounding explains; raise for the first one that it does not."""
    near_of: dict[int, dict[int, str]] = {}
    errors_of: dict[int, _Distances] = {}
    for failure in failures:
        image, key = failure.image, id(failure.image)
        if key not in near_of:
            values = reference_values(captured.program, [image, *eager.extra.batched(image.shape[0])])
            near_of[key] = near_threshold(captured.program, values)
            errors_of[key] = _distances(run, captured, eager, image)
        where = near_of[key].get(failure.index)
        own = errors_of[key].traced[failure.index]
        others = max(errors_of[key].program[failure.index], errors_of[key].model[failure.index])
        # If no image at all agreed, a threshold is not the reason, unless ties alone explain every difference.
        if where is not None and (len(failures) < result.images or errors_of[key].ties[failure.index] <= TOLERANCE):
            result.near_threshold += 1
            result.near_threshold_at.append(where)
        elif others <= ROUNDING_FACTOR * own:
            result.rounding_sensitive += 1
            result.rounding_error = max(result.rounding_error, float(own))
        else:
            raise VerificationError(_explain(failure, failures, captured, eager))
    result.near_threshold_at = list(dict.fromkeys(result.near_threshold_at))


@dataclass
class _Distances:
    """Per image, how far three evaluations are from the trace evaluated in float64.

    ``traced``: the trace in fp32, the model's own rounding error. ``program`` and ``model`` are of the same
    size if rounding is all that tells them apart, and if the trace stands for the model at all. ``ties``: how far
    the program is from the trace in fp32 whose topk takes the lower index of equal elements; torch takes any.
    """

    traced: np.ndarray
    program: np.ndarray
    model: np.ndarray
    ties: np.ndarray


def _distances(run: Runner, captured: Captured, eager: EagerModel, image: torch.Tensor) -> _Distances:
    inputs = [image, *eager.extra.batched(image.shape[0])]
    nodes = output_nodes(captured.program)
    single = reference_values(captured.program, inputs)
    double = reference_values(captured.program, inputs, torch.float64)
    traced = [single[node].numpy() for node in nodes]
    exact = [double[node].numpy().astype(t.dtype) for node, t in zip(nodes, traced, strict=True)]
    stable = reference_values(captured.program, inputs, stable_ties=True)
    model = _eager_outputs(eager, captured, image, [])
    assert model is not None
    program = [np.asarray(a) for a in run(image.numpy())]
    return _Distances(
        _errors(traced, exact),
        _errors(program, exact),
        _errors(_as_program_shapes(model, exact, image.shape[0], []), exact),
        _errors(program, [stable[node].numpy() for node in nodes]),
    )


def _explain(failure: _Failure, failures: Sequence[_Failure], captured: Captured, eager: EagerModel) -> str:
    image = failure.image
    text = (
        f"the converted program differs from the model by {failure.error:.1e} of the largest output "
        f"(batch {len(image)}, image {failure.index})"
    )
    if {len(f.image) for f in failures} == {1}:
        return (
            f"{text}, at batch 1 only: the model takes another path for a single image (a Python branch on "
            "x.shape[0], or a squeeze()); make it treat every batch size alike"
        )
    difference = _first_difference(captured, eager, image, failure.index)
    if difference is not None:
        return f"{text}; the first layer that differs is {difference}"
    return (
        f"{text}, although the translated graph agrees with the model layer by layer: an optimisation or a kernel of "
        "dynprune-rt is at fault. Please report it with the model; it is not your code"
    )


def _first_difference(captured: Captured, eager: EagerModel, image: torch.Tensor, index: int) -> str | None:
    """The first traced operation whose value the un-optimised graph does not reproduce on this image."""
    graph, translated = translate(captured)
    inputs = {graph.inputs[0].name: image.numpy()}
    computed = {**graph.constants, **interpreter.trace(graph, inputs)}
    expected = reference_values(captured.program, [image, *eager.extra.batched(image.shape[0])])
    outputs = _eager_outputs(eager, captured, image, [])
    for node, value in translated.items():
        reference = expected[node]
        if not value.type.batched or not isinstance(reference, torch.Tensor):
            continue
        actual = computed[value.name][index : index + 1]
        if _errors([actual], [reference[index : index + 1].numpy().astype(actual.dtype)])[0] > TOLERANCE:
            return f"{place(node, WRAPPER_PREFIX)}, aten.{operator_name(node)}"
    if outputs is not None:
        traced = [computed[v.name] for v in graph.outputs]
        shaped = _as_program_shapes(outputs, traced, image.shape[0], [])
        if _errors(traced, shaped)[index] > TOLERANCE:
            return (
                "unknown: torch's own trace of the model differs from the model itself, so it behaves differently "
                "when traced (a branch on the batch size, or state)"
            )
    return None
