"""`quantize`: calibrate, choose layers and scales, rewrite, measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynprune_rt.errors import QuantizationError
from dynprune_rt.ir.graph import Graph, Node, Value
from dynprune_rt.ir.packed_weights import WIDTHS, packed_size
from dynprune_rt.ir.types import CHANNELS_PER_WORD
from dynprune_rt.ir.verifier import verify
from dynprune_rt.passes.dead_code import remove_dead_code
from dynprune_rt.program import Program
from dynprune_rt.quantization.bit_widths import allocate_bits, budget_of_bytes, budget_of_mean, given_bits
from dynprune_rt.quantization.channel_damage import CRITERIA, damage
from dynprune_rt.quantization.layer_errors import layer_errors, output_error
from dynprune_rt.quantization.observation import Statistics, check_batches, observe
from dynprune_rt.quantization.rewriting import Bf16Rewriting, IntegerRewriting, WeightWidths
from dynprune_rt.quantization.scales import METHODS, map_scale
from dynprune_rt.quantization.selection import Selection, select

#: Element types to quantize to.
DTYPES = ("int8", "bf16")

#: Images that the sensitivity of channels is measured on, of the first ones.
_SENSITIVITY_IMAGES = 8

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
    weight_bits: float | Mapping[str, int | Sequence[int]] | None = None,
    weight_bytes: int | None = None,
    bits_by: str = "sensitivity",
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
    ``weight_bits``: mean bits per weight of the int8 convolutions, 2 to 8; every output channel gets 8, 4 or 2 bits,
    where they do the least damage. Or those widths themselves: one per layer, or one per output channel, by name;
    layers that are not named keep 8. ``weight_bytes``: the budget as a size, of these weights in the file. Narrow
    weights make smaller files; loading expands them to 8 bits, so that they run no faster.
    ``bits_by``: what damage is: "sensitivity" (squared change of the first output; takes a run per channel, width and
    image) or "information" (discriminant information of the channel; needs ``labels``).

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
    _check_widths(dtype, labels, weight_bits, weight_bytes, bits_by)
    graph = program.graph
    if any(v.type.dtype in CHANNELS_PER_WORD for node in graph.nodes for v in node.outputs):
        raise QuantizationError("the program is quantized already")
    batches = check_batches(graph, calibration) if dtype == "int8" or len(calibration) else []
    _check_names(graph, keep)
    measured = [np.concatenate(batches)[:_MEASURED_IMAGES]] if batches else []

    errors: dict[str, float] = {}
    scales: dict[Value, float] = {}
    bits: dict[str, np.ndarray] = {}
    selection = select(graph, keep, dtype=dtype)
    if dtype == "int8":
        statistics = observe(graph, list(selection.dtypes), batches, histograms=method != "minmax")
        scales = _scales(selection, statistics, method, percentile)
        errors = layer_errors(graph, selection, scales, measured[0])
        kept = {name: f"error {error:.2f}" for name, error in errors.items() if not error <= max_layer_error}
        if kept:
            selection = select(graph, keep, kept)
            scales = _scales(selection, statistics, method, percentile)
        bits = _widths(graph, selection, batches, labels, weight_bits, weight_bytes, bits_by)
        means = {value: entry.means for value, entry in statistics.items() if entry.means is not None}
        widths = WeightWidths(bits, means)
        if any((each < 8).any() for each in bits.values()):
            errors.update(layer_errors(graph, selection, scales, measured[0], widths))
        result = IntegerRewriting(graph, selection, scales, widths).run()
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
    for row in report["layers"]:
        if row["name"] in bits:
            row["bits"] = {str(width): int((bits[row["name"]] == width).sum()) for width in WIDTHS}
    if dtype == "int8":
        report["method"] = method
        if bits:
            report["weights"] = _weights_row(result, bits, bits_by)
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


def _check_widths(
    dtype: str,
    labels: Sequence[np.ndarray] | None,
    weight_bits: float | Mapping[str, int | Sequence[int]] | None,
    weight_bytes: int | None,
    criterion: str,
) -> None:
    """Refuse what can be told without a look at the program."""
    if criterion not in CRITERIA:
        raise QuantizationError(f"unknown criterion {criterion!r}; expected one of {', '.join(CRITERIA)}")
    if weight_bits is None and weight_bytes is None:
        return
    if dtype != "int8":
        raise QuantizationError("weight_bits and weight_bytes are for int8")
    if weight_bits is not None and weight_bytes is not None:
        raise QuantizationError("weight_bits and weight_bytes are two ways to say the same; give one of them")
    if isinstance(weight_bits, (int, float)) and not WIDTHS[0] <= weight_bits <= WIDTHS[-1]:
        raise QuantizationError(f"weight_bits must be from {WIDTHS[0]} to {WIDTHS[-1]}, got {weight_bits}")
    if criterion == "information" and labels is None and not isinstance(weight_bits, Mapping):
        raise QuantizationError("bits by information need labels; give some, or allot bits by sensitivity")


def _widths(
    graph: Graph,
    selection: Selection,
    batches: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None,
    weight_bits: float | Mapping[str, int | Sequence[int]] | None,
    weight_bytes: int | None,
    criterion: str,
) -> dict[str, np.ndarray]:
    """Bits u8[K] of the output channels by integer convolution; empty: all 8."""
    if weight_bits is None and weight_bytes is None:
        return {}
    layers = [node for node in graph.nodes if node in selection.nodes and node.op == "conv2d"]
    shapes = {node.name: _weight_shape(node) for node in layers}
    if isinstance(weight_bits, Mapping):
        return given_bits(weight_bits, shapes)
    if weight_bytes is not None:
        budget: float = budget_of_bytes(shapes, weight_bytes)
    else:
        assert weight_bits is not None
        budget = budget_of_mean(shapes, weight_bits)
    images = np.concatenate(batches)
    if criterion == "sensitivity":
        images = images[:_SENSITIVITY_IMAGES]
    classes = None if labels is None else np.concatenate([np.asarray(part).reshape(-1) for part in labels])
    return allocate_bits(damage(graph, layers, criterion, images, classes), shapes, budget)


def _weight_shape(node: Node) -> tuple[int, int]:
    """Output channels of a convolution, and weights of each."""
    weight = node.inputs[1]
    assert weight is not None
    return weight.type.shape[0], math.prod(weight.type.shape[1:])


def _weights_row(result: Graph, bits: dict[str, np.ndarray], criterion: str) -> dict[str, Any]:
    """What the packed weights take, and how widths are distributed over all weights."""
    sizes = {n.name: _weight_shape(n)[1] for n in result.nodes if n.op == "quantized_conv2d"}
    counts = {width: sum(int((b == width).sum()) * sizes[name] for name, b in bits.items()) for width in WIDTHS}
    total = sum(counts.values())
    return {
        "bits_by": criterion,
        "mean_bits": round(sum(width * count for width, count in counts.items()) / total, 4),
        **{f"share_{width}": round(count / total, 4) for width, count in counts.items()},
        "bytes": sum(packed_size(b, sizes[name]) for name, b in bits.items()),
    }


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
