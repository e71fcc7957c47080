"""torch.nn.Module -> a decomposed, checked torch.export program with a dynamic batch."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynprune_rt.errors import ConversionError
from dynprune_rt.frontend import outputs as output_selection
from dynprune_rt.frontend import source_location
from dynprune_rt.frontend.adapter_mode import AdapterMode, ScalarRead
from dynprune_rt.frontend.arguments import ExtraArguments, at_batch
from dynprune_rt.frontend.decompositions import trimmed_table
from dynprune_rt.frontend.eager import EagerModel, agreed_reads, preserved_state
from dynprune_rt.frontend.export_checks import RandomnessError, check_exported
from dynprune_rt.frontend.outputs import OutputSelector

#: Attribute under which the traced wrapper holds the user's model; stripped from module paths.
WRAPPER_PREFIX = "model"

_TORCH_DIR = Path(torch.__file__).parent

#: torch.export specialises a dimension of size 1, so models are traced with two images.
TRACED_BATCH = 2


@dataclass
class Captured:
    """A traced model. ``program`` is decomposed; its user outputs are the selected ones, in order."""

    program: Any
    output_paths: list[str]
    left_out: list[str]
    selected: list[int]


class _Traced(torch.nn.Module):
    """The user's model with its extra arguments bound and its outputs selected."""

    def __init__(self, model: torch.nn.Module, extra: ExtraArguments, selected: Sequence[int], count: int) -> None:
        super().__init__()
        self.model = model
        self.extra = extra
        self.selected = list(selected)
        self.count = count
        self.training = False

    def forward(self, image: torch.Tensor, batched: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        args, kwargs = self.extra.bind(batched)
        return output_selection.pick(self.model(image, *args, **kwargs), self.selected, self.count)


def capture(
    model: torch.nn.Module,
    example: torch.Tensor,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    outputs: OutputSelector = 0,
) -> Captured:
    """Trace ``model(example, *args, **kwargs)`` with a dynamic batch; non-strict, never strict.

    Raises ConversionError, naming the user's line where it is known, for anything that one traced program
    cannot stand for: branches on values, noise, state, a fixed batch size.
    """
    eager = EagerModel(model, example, args, kwargs)
    image = at_batch(example, TRACED_BATCH)
    leaves, reads = _run_eager(eager, image)
    runs = [reads]
    # A second batch size tells numbers that follow the batch from constants. If it fails, so will tracing.
    if any(not read.depends_on_input for read in reads):
        runs.append(_run_eager(eager, at_batch(example, TRACED_BATCH + 1))[1])
    selected = output_selection.select(outputs, leaves)
    changed = _changed_outputs(leaves, _run_eager(eager, image)[0], selected)
    traced = _Traced(model, eager.extra, selected, len(leaves))
    try:
        program = _export(traced, image, eager.extra.batched(TRACED_BATCH), agreed_reads(runs))
        check_exported(program, WRAPPER_PREFIX, eager.extra.batched_names)
    except RandomnessError:
        raise  # explains why two runs differ
    except ConversionError as error:
        raise (_state_error(changed) if changed else error) from error.__cause__
    if changed:
        raise _state_error(changed)
    return Captured(
        program,
        [leaves[i][0] for i in selected],
        [path for i, (path, _) in enumerate(leaves) if i not in selected],
        selected,
    )


def _run_eager(eager: EagerModel, image: torch.Tensor) -> tuple[list[tuple[str, torch.Tensor]], list[ScalarRead]]:
    try:
        return eager.run_recorded(image)
    except Exception as error:
        raise ConversionError(
            f"the model itself fails on an input of shape {list(image.shape)}"
            f"{_at(source_location.of_exception(error))}: {type(error).__name__}: {error}"
        ) from error


def _changed_outputs(
    first: Sequence[tuple[str, torch.Tensor]], second: Sequence[tuple[str, torch.Tensor]], selected: Sequence[int]
) -> list[int]:
    """The selected outputs that differ between two runs on the same input."""
    if [path for path, _ in first] != [path for path, _ in second]:
        return list(selected)
    return [i for i in selected if not torch.equal(first[i][1].nan_to_num(), second[i][1].nan_to_num())]


def _state_error(changed: Sequence[int]) -> ConversionError:
    return ConversionError(
        f"two runs of the model on the same input differ in output {changed[0]}: forward keeps state in an attribute "
        "or a buffer, or draws noise outside torch. Reset the state at the start of forward, or freeze it in eval mode"
    )


def _export(
    traced: _Traced, image: torch.Tensor, batched: tuple[torch.Tensor, ...], reads: Sequence[ScalarRead]
) -> Any:
    dynamic = {0: torch.export.Dim.DYNAMIC}
    mode = AdapterMode(reads=reads)
    with (
        warnings.catch_warnings(),
        redirect_stderr(io.StringIO()),  # torch prints the graph so far where it gives up
        torch.no_grad(),
        preserved_state(traced.model),
        _specialisations() as lines,
    ):
        warnings.simplefilter("ignore")
        try:
            with mode:
                program = torch.export.export(
                    traced,
                    (image, batched),
                    dynamic_shapes=(dynamic, tuple(dynamic for _ in batched)),
                    strict=False,
                )
            return program.run_decompositions(trimmed_table())
        except Exception as error:
            if mode.error is not None:
                raise mode.error from None
            if isinstance(error, ConversionError):
                raise
            raise ConversionError(_explain(error, lines)) from error


def _explain(error: Exception, specialised_at: Sequence[str]) -> str:
    """torch.export's error in terms of the user's model."""
    text = str(error)
    place = source_location.of_exception(error)
    if "data-dependent" in text:
        user_frames = re.findall(r'File "([^"]+)", line (\d+)', text)
        if user_frames and not place:
            place = source_location.short(user_frames[-1][0], int(user_frames[-1][1]))
        return (
            f"a shape or a Python branch depends on the values of the images{_at(place)}; use torch.where or masks "
            "of fixed size"
        )
    if "specialized" in text or "Constraints violated" in text:
        where = ", ".join(dict.fromkeys(specialised_at))
        return (
            f"the model fixes the batch size{_at(where)}: it uses x.shape[0] as a Python number (a loop over images, "
            "list(range(n)), unpacking), or a tensor of the example's batch size kept from an earlier call. Write "
            "the line for the whole batch at once"
        )
    if "fake tensor" in text and "constant" in text:
        return (
            f"the model keeps a tensor made while tracing{_at(place)}: it stores a result of forward in an attribute "
            "or list, or reads the inside of a tensor; return it instead"
        )
    if ".numpy()" in text:
        return f"NumPy is used on tensors inside forward{_at(place)}; use torch operators there"
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"torch.export cannot trace the model{_at(place)}: {type(error).__name__}: {first_line}"


def _at(place: str) -> str:
    return f" at {place}" if place else ""


@contextmanager
def _specialisations() -> Iterator[list[str]]:
    """Collect the source lines where torch turns a symbolic size into a number, and keep torch's loggers quiet."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            match = re.match(r"eval Eq\(.*\[guard added\] \(([^:()]+):(\d+) in ", record.getMessage())
            if match and source_location.is_user_file(match[1]) and not (_TORCH_DIR / match[1]).exists():
                lines.append(source_location.short(match[1], int(match[2])))

    symbolic_shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    loggers = [symbolic_shapes, *(logging.getLogger(n) for n in ("torch.export", "torch._export", "torch.fx", "torch"))]
    saved = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers = []
            logger.propagate = False
            logger.setLevel(logging.CRITICAL)
        symbolic_shapes.setLevel(logging.INFO)
        symbolic_shapes.addHandler(Collector())
        yield lines
    finally:
        for logger, level, propagate, handlers in saved:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers = handlers
