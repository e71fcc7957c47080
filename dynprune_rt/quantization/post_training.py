"""`quantize`: calibrate, choose layers and scales, rewrite, measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynprune_rt.errors import QuantizationError
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.types import CHANNELS_PER_WORD
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.program import Program
from dynprune_rt.quantization.layer_errors import layer_errors, output_error
from dynprune_rt.quantization.observation import Statistics, check_batches, observe
from dynprune_rt.quantization.rewriting import Bf16Rewriting, IntegerRewriting
from dynprune_rt.quantization.scales import METHODS, map_scale
from dynprune_rt.quantization.selection import Selection, select

#: Element types to quantize to.
DTYPES = ("int8", "bf16")

#: Images that the error of layers and outputs is measured on.
_MEASURED_IMAGES = 16


def quantize(
    program: Program,
    calibration: Sequence[np.ndarray] = (),
    dtype: str = "int8",
    *,
    method: str = "minmax",
    percentile: float = 99.99,
    keep: Sequence[str] = (),
    max_layer_error: float = 0.25,
    labels: Sequence[np.ndarray] | None = None,
) -> Program:
    """A program whose convolutions run on a narrower type and skip the channels that they skip in float32.

    ``dtype``: "int8" (8-bit integers) or "bf16" (maps and weights in bfloat16, sums in float32).
    ``calibration``: batches [N, C, H, W] of typical inputs; a few dozen images are enough. int8 needs them; bf16 has
    no ranges to find, and only measures its error where there are some.
    ``method``: how the range of a map is chosen: "minmax", "percentile" (of positive magnitudes, see
    ``percentile``) or "mse" (least squared error). Weights have one scale per output channel, maps one
    each, and all maps of a residual stream share one. Gates, linear layers and everything without a narrow
    kernel compute in float32; large linear layers keep their weights in bfloat16.
    ``keep``: names of convolutions and linear layers, with wildcards, that stay in float32 altogether; so do, for
    int8, convolutions whose own relative error on the calibration images is above ``max_layer_error``.
    ``labels``: class numbers per calibration batch; the report then has the accuracy before and after.

    The result's report holds, under "quantization", a row per convolution and the error of the outputs.

    Raises QuantizationError for data or a program that cannot be quantized, InputError for batches of the
    wrong shape.
    """
    if dtype not in DTYPES:
        raise QuantizationError(f"unknown element type {dtype!r}; expected one of {', '.join(DTYPES)}")
    if method not in METHODS:
        raise QuantizationError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise QuantizationError(f"percentile must be in (0, 100], got {percentile}")
    graph = program.graph
    if any(v.type.dtype in CHANNELS_PER_WORD for node in graph.nodes for v in node.outputs):
        raise QuantizationError("the program is quantized already")
    batches = check_batches(graph, calibration) if dtype == "int8" or len(calibration) else []
    _check_names(graph, keep)
    measured = [np.concatenate(batches)[:_MEASURED_IMAGES]] if batches else []

    errors: dict[str, float] = {}
    scales: dict[Value, float] = {}
    selection = select(graph, keep, dtype=dtype)
    if dtype == "int8":
        statistics = observe(graph, list(selection.dtypes), batches, histograms=method != "minmax")
        scales = _scales(selection, statistics, method, percentile)
        errors = layer_errors(graph, selection, scales, measured[0])
        kept = {name: f"error {error:.2f}" for name, error in errors.items() if not error <= max_layer_error}
        if kept:
            selection = select(graph, keep, kept)
            scales = _scales(selection, statistics, method, percentile)
        result = IntegerRewriting(graph, selection, scales).run()
    else:
        result = Bf16Rewriting(graph, selection).run()
    remove_dead_code(result)
    verify(result)
    quantized = Program(result, dict(program.report))
    report: dict[str, Any] = {
        "dtype": dtype,
        "images": sum(len(b) for b in batches),
        "layers": [_layer_row(node, dtype, selection, scales, errors) for node in graph.nodes if node.op == "conv2d"],
    }
    if dtype == "int8":
        report["method"] = method
    if batches:
        report.update(output_error(program, quantized, dtype, batches if labels is not None else measured, labels))
    quantized.report["quantization"] = report
    return quantized


def _check_names(graph: Graph, keep: Sequence[str]) -> None:
    import fnmatch

    names = [node.name for node in graph.nodes if node.op in ("conv2d", "linear")]
    for pattern in keep:
        if not fnmatch.filter(names, pattern):
            known = ", ".join(names) or "none"
            raise QuantizationError(f"no convolution or linear layer is called {pattern!r}; there are {known}")


def _scales(
    selection: Selection, statistics: dict[Value, Statistics], method: str, percentile: float
) -> dict[Value, float]:
    return {
        representative: map_scale(
            [statistics[v] for v in members], selection.dtypes[representative], method, percentile
        )
        for representative, members in selection.members().items()
    }


def _layer_row(
    node: Node, dtype: str, selection: Selection, scales: dict[Value, float], errors: dict[str, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": node.name}
    if node not in selection.nodes:
        row.update(kind="float32", why=selection.kept.get(node.name, ""))
    else:
        x = node.inputs[0]
        assert x is not None
        row["kind"] = dtype
        for what, value in (("input", x), ("output", node.output)):
            row[what] = selection.dtypes[value]
            if scales:
                row[f"{what}_scale"] = scales[selection.representative(value)]
    if node.name in errors:
        row["error"] = round(errors[node.name], 5)
    return row
