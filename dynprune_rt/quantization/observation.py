"""What the maps of a program hold on calibration images: extremes and histograms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dynprune_rt.errors import InputError, QuantizationError
from dynprune_rt.ir.graph import Graph, Value
from dynprune_rt.program import Program
from dynprune_rt.session import Session

#: Maps that one pass over the calibration images reads out; a plan has at most 64 outputs.
_VALUES_PER_PASS = 32
#: Images that run at once; bounds the memory of a pass.
_IMAGES_PER_RUN = 8

HISTOGRAM_BINS = 2048


@dataclass
class Statistics:
    """Extremes of one map over all images, the mean of every channel, and how its magnitudes are distributed.

    ``histogram[i]`` counts magnitudes in [i, i+1) * peak / HISTOGRAM_BINS; None until asked for.
    """

    low: float = 0.0
    high: float = 0.0
    histogram: np.ndarray | None = field(default=None, repr=False)
    means: np.ndarray | None = field(default=None, repr=False)

    @property
    def peak(self) -> float:
        return max(-self.low, self.high)


def check_batches(graph: Graph, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The calibration images as float32 arrays; raises InputError, QuantizationError for bad ones."""
    if len(graph.inputs) != 1:
        raise QuantizationError(f"the program has {len(graph.inputs)} inputs; programs with one can be quantized")
    expected = graph.inputs[0].type
    checked = []
    for position, batch in enumerate(batches):
        array = np.ascontiguousarray(batch, dtype=np.float32)
        if array.ndim != expected.rank or array.shape[1:] != expected.shape[1:]:
            raise InputError(f"calibration batch {position} has shape {list(array.shape)}, expected {expected}")
        if not np.isfinite(array).all():
            raise QuantizationError(f"calibration batch {position} holds values that are not finite")
        if array.shape[0]:
            checked.append(array)
    if not checked:
        raise QuantizationError("quantization needs at least one calibration image")
    return checked


def read_out(
    graph: Graph, values: Sequence[Value], batches: Sequence[np.ndarray]
) -> Iterator[tuple[Value, np.ndarray]]:
    """Every value's arrays on all images, a few images at a time; float32, zero in channels that are not stored."""
    inputs = [v for v in values if v in graph.inputs]
    computed = [v for v in values if v not in graph.inputs]
    for value in inputs:
        for batch in batches:
            yield value, batch
    for start in range(0, len(computed), _VALUES_PER_PASS):
        part = computed[start : start + _VALUES_PER_PASS]
        session = Session(Program(Graph(graph.inputs, part, graph.nodes, graph.constants)))
        for batch in batches:
            for first in range(0, len(batch), _IMAGES_PER_RUN):
                result = session.run(batch[first : first + _IMAGES_PER_RUN])
                yield from zip(part, result if isinstance(result, tuple) else (result,), strict=True)


def observe(
    graph: Graph, values: Sequence[Value], batches: Sequence[np.ndarray], histograms: bool
) -> dict[Value, Statistics]:
    """Statistics of float maps. Raises QuantizationError where a map is not finite."""
    table = {value: Statistics() for value in values}
    images = sum(len(batch) for batch in batches)
    for value, array in read_out(graph, values, batches):
        low, high = float(array.min()), float(array.max())
        if not np.isfinite(low + high):
            maker = value.producer.name if value.producer is not None else value.name
            raise QuantizationError(f"the output of layer {maker!r} is not finite on the calibration images")
        entry = table[value]
        entry.low, entry.high = min(entry.low, low), max(entry.high, high)
        means = array.mean(axis=(2, 3), dtype=np.float64).sum(axis=0) / images
        entry.means = means if entry.means is None else entry.means + means
    if not histograms:
        return table
    for value, array in read_out(graph, values, batches):
        entry = table[value]
        if entry.histogram is None:
            entry.histogram = np.zeros(HISTOGRAM_BINS, np.int64)
        if entry.peak > 0:
            bins = np.minimum((np.abs(array) * (HISTOGRAM_BINS / entry.peak)).astype(np.int64), HISTOGRAM_BINS - 1)
            entry.histogram += np.bincount(bins.reshape(-1), minlength=HISTOGRAM_BINS)
    return table
