"""What a user of a CIFAR ResNet can choose between, at measured accuracies: the headline table.

Dense in float32 and int8 (this runtime, and OpenVINO with int8 by NNCF), gated in float32 and int8, and statically
pruned in float32 and int8: top-1 on the 10,000 test images through the runtime that is timed, and milliseconds at
batch 1 on one thread, all interleaved in one process. Gated networks are those that come with the package and every
finished run under --runs (see `dynprune_rt.recipes.cifar10_methods`); runs that are missing are named.

    python benchmarks/alternatives_cifar10.py --data DIR --runs runs --work work --accuracy
    python benchmarks/alternatives_cifar10.py --data DIR --runs runs --work work --latency
    python benchmarks/alternatives_cifar10.py               print the table of the results that are there

--accuracy quantizes into the folder given by --work, and measures what the results lack; --latency times what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dynprune_rt
from dynprune_rt import models
from dynprune_rt.benchmark.case import export_onnx
from dynprune_rt.benchmark.machine import machine_facts
from dynprune_rt.benchmark.peers.openvino import compiled, int8_model
from dynprune_rt.benchmark.timing import Runner, measure
from dynprune_rt.demo.cifar10 import load_images, normalize
from dynprune_rt.program import Program
from dynprune_rt.recipes.cifar10_methods import RECIPES

RESULTS = Path(__file__).parent / "results" / "alternatives_cifar10.json"
NETWORKS = {"cifar_resnet20": "ResNet-20", "cifar_resnet56": "ResNet-56"}
DEMO = Path(dynprune_rt.__file__).parent / "demo"
#: Gated programs that come with the package, by architecture.
PACKAGED = {
    "cifar_resnet20": ("FBS, 60 % of the channels", DEMO / "resnet20_fbs.dpr"),
    "cifar_resnet56": ("instance-wise sparsity", DEMO / "resnet56_instance_wise.dpr"),
}
STATIC = ("di", "cwp")
#: Images that both quantizers calibrate on; NNCF's default number.
CALIBRATION_IMAGES = 300
TIMED_IMAGES = 16


@dataclass(frozen=True)
class Contender:
    """One row: ``path`` is a .dpr file, or an OpenVINO or ONNX model."""

    arch: str
    kind: str
    name: str
    dtype: str
    runtime: str
    path: Path

    @property
    def key(self) -> str:
        return f"{self.arch} | {self.kind} | {self.name} | {self.dtype} | {self.runtime}"

    def runner(self, inputs: list[np.ndarray]) -> Runner:
        if self.runtime == "OpenVINO":
            return compiled(str(self.path), self.dtype, inputs, 1)
        session = dynprune_rt.load(self.path, threads=1)
        return lambda i: session.run(inputs[i])


def contenders(arch: str, runs: Path | None, work: Path) -> list[Contender]:
    """Every row of a network whose file could be there."""
    rows = []
    for dtype, runtime, suffix in (
        ("f32", "OpenVINO", "onnx"),
        ("int8", "OpenVINO", "xml"),
        ("f32", "dynprune-rt", "dpr"),
        ("int8", "dynprune-rt", "dpr"),
    ):
        rows.append(Contender(arch, "dense", "", dtype, runtime, work / f"{arch}_dense_{dtype}.{suffix}"))
    programs = [("gated", *PACKAGED[arch])]
    for name, recipe in RECIPES.items():
        if recipe.arch == arch and runs is not None and (runs / name / "model.dpr").exists():
            programs.append(("static" if recipe.method in STATIC else "gated", name, runs / name / "model.dpr"))
    for kind, name, path in programs:
        rows.append(Contender(arch, kind, name, "f32", "dynprune-rt", path))
        narrow = work / f"{arch}_{''.join(c if c.isalnum() else '_' for c in name)}_int8.dpr"
        rows.append(Contender(arch, kind, name, "int8", "dynprune-rt", narrow))
    return rows


def prepare(rows: list[Contender], data: Path, calibration: np.ndarray) -> None:
    """Write the files that the rows need."""
    arch = rows[0].arch
    weights = data / f"cifar10_{arch.removeprefix('cifar_')}.safetensors"
    dense = models.create(arch, weights=weights)
    for row in rows:
        if row.path.exists():
            continue
        if row.runtime == "OpenVINO":
            import openvino
            import torch

            onnx = export_onnx(dense, torch.from_numpy(calibration[:1]))
            if onnx is None:
                raise SystemExit("the onnx package is missing")
            if row.dtype == "f32":
                row.path.write_bytes(onnx)
            else:
                openvino.save_model(int8_model(onnx, list(calibration[:, None])), row.path, compress_to_fp16=False)
        elif row.dtype == "f32":
            dynprune_rt.convert(dense, calibration[:2]).save(row.path)
        else:
            twin = next(
                r for r in rows if (r.kind, r.name, r.runtime, r.dtype) == (row.kind, row.name, row.runtime, "f32")
            )
            dynprune_rt.quantize(Program.load(twin.path), [calibration]).save(row.path)


def top1(row: Contender, images: np.ndarray, labels: np.ndarray) -> float:
    run = row.runner([images[i : i + 1] for i in range(len(images))])
    return float(np.mean([int(run(i).argmax()) == labels[i] for i in range(len(images))]))


def executed_macs(row: Contender, images: np.ndarray) -> float | None:
    if row.runtime == "OpenVINO":
        return None
    return float(dynprune_rt.load(row.path, threads=1).profile(images).macs) / len(images)


def markdown(results: dict[str, Any]) -> str:
    lines = ["| network | | type | runtime | top-1 | MMACs | ms |", "|---|---|---|---|---|---|---|"]
    for entry in results["rows"].values():
        what = f"{entry['kind']}{': ' if entry['name'] else ''}{entry['name']}"
        macs = "" if entry.get("macs") is None else f"{entry['macs'] / 1e6:.1f}"
        ms = f"{entry['ms']:.3f}" if "ms" in entry else ""
        cells = (NETWORKS[entry["arch"]], what, entry["dtype"], entry["runtime"], f"{entry['accuracy']:.2%}", macs, ms)
        lines.append(f"| {' | '.join(cells)} |")
    if results["missing_runs"]:
        lines += ["", f"Not trained so far: {', '.join(results['missing_runs'])}."]
    return "\n".join(lines)


def each_network(action: Callable[[list[Contender]], None], args: argparse.Namespace) -> None:
    for arch in args.only.split(","):
        action(contenders(arch, args.runs, args.work))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 and the weights")
    parser.add_argument("--runs", type=Path, help="folder of finished runs")
    parser.add_argument("--work", type=Path, default=Path("alternatives"), help="prepared files (default: %(default)s)")
    parser.add_argument("--accuracy", action="store_true", help="prepare, and measure top-1")
    parser.add_argument("--latency", action="store_true", help="measure milliseconds")
    parser.add_argument("--limit", type=int, help="test images for --accuracy (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--only", metavar="LIST", default=",".join(NETWORKS), help="default: %(default)s")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}

    def accuracy(rows: list[Contender]) -> None:
        args.work.mkdir(parents=True, exist_ok=True)
        prepare(rows, args.data, normalize(load_images(args.data / "cifar10_train_a.npz", CALIBRATION_IMAGES)[0]))
        raw, labels = load_images(args.data / "cifar10_test.npz", args.limit)
        images = normalize(raw)
        for row in rows:
            entry = results["rows"].setdefault(row.key, {})
            if entry.get("images") == len(images):
                continue
            entry.update({k: v for k, v in vars(row).items() if k != "path"})
            entry.update(accuracy=top1(row, images, labels), images=len(images), macs=executed_macs(row, images[:500]))
            print(f"{row.key}: {entry['accuracy']:.2%}", file=sys.stderr, flush=True)
            save()

    def latency(rows: list[Contender]) -> None:
        images = normalize(load_images(args.data / "cifar10_test.npz", TIMED_IMAGES)[0])
        inputs = [images[i : i + 1] for i in range(TIMED_IMAGES)]
        there = [row for row in rows if row.path.exists() and row.key in results["rows"]]
        samples = measure({row.key: row.runner(inputs) for row in there}, args.rounds, TIMED_IMAGES)
        for row in there:
            results["rows"][row.key].update(ms=samples[row.key].median, ms_p99=samples[row.key].p99)
        save()

    def save() -> None:
        missing = [n for n in RECIPES if args.runs is None or not (args.runs / n / "model.dpr").exists()]
        command = f"python {os.path.relpath(__file__)} --data DIR --runs RUNS --accuracy, then --latency"
        results.update(command=command, machine=machine_facts(), missing_runs=missing)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")

    if (args.accuracy or args.latency) and args.data is None:
        parser.error("--accuracy and --latency need --data")
    if args.accuracy:
        each_network(accuracy, args)
    if args.latency:
        each_network(latency, args)
    if not results["rows"]:
        parser.error("no results yet; use --accuracy")
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
