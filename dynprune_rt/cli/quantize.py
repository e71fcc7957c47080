"""Quantize a .dpr program to int8 or bf16, and keep what must stay in float32.

int8 is calibrated on images; bf16 needs none. Prints a row per convolution and, where there are images, the error of
the outputs on them. Needs no torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from dynprune_rt.cli.arguments import add_normalization, positive
from dynprune_rt.cli.arrays import add_input, as_batch, read_array
from dynprune_rt.errors import DynpruneError, InputError

ABOUT = "quantize a program to int8 (with calibration images) or bf16"

_BATCH = 16
_MAPS = ("input", "output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", type=Path, metavar="PROGRAM", help="a .dpr file")
    add_input(parser, "calibration images (bf16 needs none)", optional=True)
    parser.add_argument("--dtype", choices=("int8", "bf16"), default="int8", help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .dpr file to write")
    parser.add_argument(
        "--images", type=positive, default=128, metavar="N", help="use the first N (default: %(default)s)"
    )
    parser.add_argument(
        "--method", choices=("minmax", "percentile", "mse"), default="minmax", help="ranges (default: %(default)s)"
    )
    parser.add_argument(
        "--percentile", type=float, default=99.99, metavar="P", help="for --method percentile (default: %(default)s)"
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="LAYER", help="leave these convolutions in float32 (wildcards)"
    )
    parser.add_argument(
        "--max-layer-error",
        type=float,
        default=0.25,
        metavar="E",
        help="leave convolutions with a larger relative error of their own in float32 (default: %(default)s)",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--weight-bits",
        type=float,
        metavar="B",
        help="store the weights of int8 convolutions at B bits on average: 8, 4 or 2 per output channel",
    )
    budget.add_argument("--weight-bytes", type=positive, metavar="N", help="the same, for a size of these weights")
    parser.add_argument(
        "--bits-by",
        choices=("sensitivity", "information"),
        default="sensitivity",
        help="what decides where bits go: the change of the output, or discriminant information, which needs --labels "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class numbers of the images, .npy or .npz: reports accuracies too"
    )
    parser.add_argument("--labels-key", metavar="KEY", help="name of the labels in a .npz file with several arrays")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_normalization(parser)


def run(args: argparse.Namespace) -> int:
    import dynprune_rt

    program = dynprune_rt.Program.load(args.program)
    types = list(program.inputs.values())
    if len(types) != 1:
        raise DynpruneError(f"{args.program} has {len(types)} inputs; programs with one can be quantized")
    batches: list[np.ndarray] = []
    labels = None
    if args.input is not None:
        images = as_batch(read_array(args.input, args.key), types[0].shape[1:], args.mean, args.std)[: args.images]
        batches = [np.asarray(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        if args.labels is not None:
            classes = read_array(args.labels, args.labels_key).reshape(-1)[: args.images]
            if len(classes) != len(images) or not np.issubdtype(classes.dtype, np.integer):
                raise InputError(f"{args.labels}: expected a class number for each of the {len(images)} images")
            labels = [classes[i : i + _BATCH] for i in range(0, len(classes), _BATCH)]
    elif args.dtype == "int8":
        raise InputError("int8 needs calibration images: dynprune quantize net.dpr images.npy -o net8.dpr")
    quantized = dynprune_rt.quantize(
        program,
        batches,
        args.dtype,
        method=args.method,
        percentile=args.percentile,
        keep=args.keep,
        max_layer_error=args.max_layer_error,
        labels=labels,
        weight_bits=args.weight_bits,
        weight_bytes=args.weight_bytes,
        bits_by=args.bits_by,
    )
    quantized.save(args.output)
    report = quantized.report["quantization"]
    print(json.dumps(report, indent=2) if args.json else table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    """The report for people: one row per convolution, then the totals."""
    rows = [("layer", "type", "input", "output", "error", "channels at 8/4/2 bits" if "weights" in report else "")]
    for layer in report["layers"]:
        maps = [f"{layer[m]} x {layer[f'{m}_scale']:.4g}" if f"{m}_scale" in layer else layer.get(m, "") for m in _MAPS]
        error = f"{layer['error']:.4f}" if "error" in layer else ""
        bits = "/".join(str(layer["bits"][width]) for width in ("8", "4", "2")) if "bits" in layer else ""
        rows.append((layer["name"], layer["kind"], *maps, error, layer.get("why") or bits))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if report["images"]:
        ranges = f"ranges: {report['method']}, " if "method" in report else ""
        lines.append("")
        lines.append(
            f"output error {report['output_error']:.4f} (relative), same largest output on "
            f"{100 * report['same_largest_output']:.1f} % of the measured images; {ranges}{report['images']} images"
        )
    if "weights" in report:
        weights = report["weights"]
        lines.append(f"int8 weights: {weights['bytes']} bytes, {weights['mean_bits']:.2f} bits each on average")
    return "\n".join(lines)
