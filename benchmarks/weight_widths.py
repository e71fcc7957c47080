"""Accuracy against size of int8 networks whose weights take 8, 4 or 2 bits per output channel.

For each budget the bits are allotted by output sensitivity and by discriminant information, calibrated on training
images, and top-1 is measured through the runtime on the 10,000 CIFAR-10 test images, from the packed file. Uniform 8
and 4 bits stand beside them. Writes a table (JSON) and a plot (SVG).

    python benchmarks/weight_widths.py --data DIR --run     measure, then print
    python benchmarks/weight_widths.py                      print the table of the results that are there

DIR holds CIFAR-10 and the pretrained ResNets (see `dynprune_rt.methods.load_cifar10`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import dynprune_rt
from dynprune_rt import models
from dynprune_rt.benchmark.machine import machine_facts
from dynprune_rt.demo.cifar10 import load_images, normalize
from dynprune_rt.ir.graph import Node
from dynprune_rt.program import Program, weight_bytes
from dynprune_rt.quantization.bit_widths import allocate_bits, budget_of_mean
from dynprune_rt.quantization.channel_damage import CRITERIA, damage
from dynprune_rt.recipes.tradeoff_plot import Panel, Point, draw

RESULTS = Path(__file__).parent / "results" / "weight_widths_cifar10"
NETWORKS = {"cifar_resnet20": "ResNet-20", "cifar_resnet56": "ResNet-56"}
#: Bits per weight on average.
BUDGETS = (6.0, 5.0, 4.0, 3.5, 3.0, 2.5)
CALIBRATION_IMAGES = 500
#: Sensitivity takes a run per image, channel and width.
SENSITIVITY_IMAGES = {"cifar_resnet20": 8, "cifar_resnet56": 2}


def top1(program: Program, images: np.ndarray, labels: np.ndarray) -> float:
    session = dynprune_rt.load(program, threads=1)
    parts = [session.run(images[i : i + 200]).argmax(1) for i in range(0, len(images), 200)]
    return float((np.concatenate(parts) == labels).mean())


def conv_bytes(program: Program) -> int:
    """Bytes of the convolutions' weights in a file, their scales included."""
    nodes = [n for n in program.graph.nodes if n.op in ("conv2d", "quantized_conv2d")]
    scales = sum(4 * n.output.type.channels for n in nodes if n.op == "quantized_conv2d")
    return scales + sum(weight_bytes(program.graph, n) for n in nodes)


def shape_of(node: Node) -> tuple[int, int]:
    weight = node.inputs[1]
    assert weight is not None
    return weight.type.shape[0], weight.type.elements // weight.type.shape[0]


def measure(arch: str, data: Path) -> list[dict[str, Any]]:
    """The rows of one network: float32, uniform 8 and 4 bits, and every budget by every criterion."""
    test, test_labels = load_images(data / "cifar10_test.npz")
    train, train_labels = load_images(data / "cifar10_train_a.npz", CALIBRATION_IMAGES)
    images, calibration = normalize(test), normalize(train)
    weights = data / f"cifar10_{arch.removeprefix('cifar_')}.safetensors"
    program = dynprune_rt.convert(models.create(arch, weights=weights), calibration[:2])
    layers = [node for node in program.graph.nodes if node.op == "conv2d"]
    shapes = {node.name: shape_of(node) for node in layers}
    rows: list[dict[str, Any]] = []

    def add(kind: str, mean_bits: float, quantized: Program, seconds: float = 0.0) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.dpr"
            quantized.save(path)
            stored = Program.load(path)
            row = {
                "network": arch,
                "kind": kind,
                "mean_bits": mean_bits,
                "bytes": conv_bytes(stored),
                "accuracy": top1(stored, images, test_labels),
                "seconds_to_allot": round(seconds, 1),
            }
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    add("float32", 32, program)
    batches = [calibration]
    for bits in (8, 4):
        add("uniform", bits, dynprune_rt.quantize(program, batches, weight_bits=dict.fromkeys(shapes, bits)))
    for criterion in CRITERIA:
        begin = time.perf_counter()
        count = SENSITIVITY_IMAGES[arch] if criterion == "sensitivity" else CALIBRATION_IMAGES
        table = damage(program.graph, layers, criterion, calibration[:count], train_labels[:count])
        seconds = time.perf_counter() - begin
        for budget in BUDGETS:
            widths = allocate_bits(table, shapes, budget_of_mean(shapes, budget))
            chosen = {name: bits.tolist() for name, bits in widths.items()}
            add(criterion, budget, dynprune_rt.quantize(program, batches, weight_bits=chosen), seconds)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line per network, kind and budget."""
    lines = ["| network | bits by | bits per weight | conv weights, kB | top-1 |", "|---|---|---|---|---|"]
    for row in rows:
        cells = NETWORKS[row["network"]], row["kind"], f"{row['mean_bits']:g}", f"{row['bytes'] / 1e3:.0f}"
        lines.append(f"| {' | '.join(cells)} | {row['accuracy']:.2%} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> str:
    """A panel per network; what fell below 80 % is left to the table."""
    panels = []
    for arch, title in NETWORKS.items():
        shown = [r for r in rows if r["network"] == arch and r["kind"] != "float32" and r["accuracy"] > 0.8]
        points = [
            Point(r["bytes"] / 1e3, r["accuracy"], "" if r["kind"] == "information" else f"{r['mean_bits']:g}", dynamic)
            for r in shown
            if (dynamic := r["kind"] == "sensitivity") or r["kind"] == "information"
        ]
        uniform = [(r["bytes"] / 1e3, r["accuracy"]) for r in shown if r["kind"] == "uniform"]
        caption = f"{title}: top-1; circles: bits by sensitivity, squares: by information, line: uniform 4 and 8"
        panels.append(Panel("bytes of convolution weights (kB)", points, [sorted(uniform)], caption))
    return draw(panels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure before printing")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 and the weights")
    parser.add_argument("--only", metavar="LIST", default=",".join(NETWORKS), help="default: %(default)s")
    args = parser.parse_args()
    path = RESULTS.with_suffix(".json")
    if args.run:
        if args.data is None:
            parser.error("--run needs --data")
        kept = json.loads(path.read_text())["rows"] if path.exists() else []
        for arch in args.only.split(","):
            kept = [r for r in kept if r["network"] != arch] + measure(arch, args.data)
            command = f"python {os.path.relpath(__file__)} --run --data DIR"
            facts = {"command": command, "machine": machine_facts(), "calibration_images": CALIBRATION_IMAGES}
            facts["sensitivity_images"] = SENSITIVITY_IMAGES
            path.write_text(json.dumps({**facts, "rows": kept}, indent=1) + "\n")
            RESULTS.with_suffix(".svg").write_text(plot(kept))
    if not path.exists():
        parser.error("no results yet; use --run")
    print(markdown(json.loads(path.read_text())["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
