"""What quantization costs: the error of every layer on its own, and that of the whole program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.program import Program
from dynprune_rt.quantization.rewriting import IntegerRewriting, WeightWidths
from dynprune_rt.quantization.selection import Selection
from dynprune_rt.session import Session

_LAYERS_PER_RUN = 16
_IMAGES_PER_RUN = 8


class _SideBySide(IntegerRewriting):
    """The float graph with the integer form of some layers beside it, each fed with exact operands."""

    def pairs(self, nodes: Sequence[Node], layers: Sequence[Node]) -> list[tuple[Value, Value]]:
        """(float result, result of the integer form) of each layer."""
        self.copy_inputs()
        pairs = []
        for node in nodes:
            self.copy_node(node)
            if node in layers:
                integers = self.convolution(node)
                floats = self._builder.op("dequantize", integers, scale=self.scale(node.output))
                floats.live = integers.live
                pairs.append((self.as_floats(node.output), floats))
        return pairs


def layer_errors(
    graph: Graph,
    selection: Selection,
    scales: Mapping[Value, float],
    images: np.ndarray,
    widths: WeightWidths | None = None,
) -> dict[str, float]:
    """Root mean square error of every integer layer's result over that of the result; operands exact."""
    layers = [node for node in graph.nodes if node in selection.nodes and node.op == "conv2d"]
    errors = {}
    for start in range(0, len(layers), _LAYERS_PER_RUN):
        part = layers[start : start + _LAYERS_PER_RUN]
        rewriting = _SideBySide(graph, selection, scales, widths)
        pairs = rewriting.pairs(graph.nodes, part)
        rewriting.graph.outputs = [value for pair in pairs for value in pair]
        session = Session(Program(rewriting.graph))
        sums = np.zeros((len(pairs), 2))
        for first in range(0, len(images), _IMAGES_PER_RUN):
            results = session.run(images[first : first + _IMAGES_PER_RUN])
            for i in range(len(pairs)):
                exact, rounded = results[2 * i], results[2 * i + 1]
                sums[i] += np.square(rounded - exact, dtype=np.float64).sum(), np.square(exact, dtype=np.float64).sum()
        for node, (noise, signal) in zip(part, sums, strict=True):
            errors[node.name] = math.sqrt(noise / signal) if signal > 0 else math.sqrt(noise)
    return errors


def output_error(
    program: Program, quantized: Program, dtype: str, batches: Sequence[np.ndarray], labels: Sequence[np.ndarray] | None
) -> dict[str, Any]:
    """Relative error of the first output, how often its largest entry is the same, and accuracies for labels."""
    sessions = Session(program), Session(quantized)
    noise = signal = 0.0
    images = agreed = 0
    correct = [0, 0]
    for position, batch in enumerate(batches):
        exact, rounded = (_first(session.run(batch)).reshape(len(batch), -1) for session in sessions)
        noise += float(np.square(rounded - exact, dtype=np.float64).sum())
        signal += float(np.square(exact, dtype=np.float64).sum())
        images += len(batch)
        classes = exact.argmax(1), rounded.argmax(1)
        agreed += int((classes[0] == classes[1]).sum())
        if labels is not None:
            for i in range(2):
                correct[i] += int((classes[i] == np.asarray(labels[position]).reshape(-1)).sum())
    result: dict[str, Any] = {
        "output_error": round(math.sqrt(noise / signal) if signal > 0 else math.sqrt(noise), 6),
        "same_largest_output": round(agreed / images, 6),
    }
    if labels is not None:
        result["accuracy_float32"], result[f"accuracy_{dtype}"] = (round(c / images, 6) for c in correct)
    return result


def _first(result: Any) -> np.ndarray:
    first: np.ndarray = result[0] if isinstance(result, tuple) else result
    return first
