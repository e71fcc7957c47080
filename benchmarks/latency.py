"""The README's latency table: runs `dynprune bench` for each network, keeps its JSON, prints the rows.

python benchmarks/latency.py --run            measure (each network in a process of its own), then print
python benchmarks/latency.py                  print the table of the results that are there
python benchmarks/latency.py --run --threads 2 --batch 8 --only resnet18,vgg16_bn
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

#: Zoo name, title in the table.
NETWORKS = {
    "resnet18": "ResNet-18, 224x224",
    "resnet34": "ResNet-34, 224x224",
    "resnet50": "ResNet-50, 224x224",
    "mobilenet_v2": "MobileNetV2, 224x224",
    "cifar_resnet20": "ResNet-20, CIFAR-10",
    "cifar_resnet56": "ResNet-56, CIFAR-10",
    "vgg16_bn": "VGG-16-BN, CIFAR-10",
}
COLUMNS = ("gated", "dense", "openvino", "onnxruntime", "torch.compile", "torch-eager")


def result_path(name: str, share: float, batch: int, threads: int) -> Path:
    """Where the result of one configuration is kept."""
    return RESULTS / f"latency_{name}_share{round(share * 100)}_b{batch}_t{threads}.json"


def measure(name: str, share: float, batch: int, threads: int, rounds: int) -> None:
    """Run one benchmark in a fresh process. Raises CalledProcessError if it fails."""
    path = result_path(name, share, batch, threads)
    options = {
        "--share": share,
        "--batch": batch,
        "--threads": threads,
        "--rounds": rounds,
        "--json": os.path.relpath(path),
    }
    arguments = [str(part) for pair in options.items() for part in pair]
    subprocess.run([sys.executable, "-m", "dynprune_rt.cli", "bench", name, "--refcheck", *arguments], check=True)


def line(title: str, share: float, result: dict[str, Any]) -> str:
    """One row of the table; runtimes that did not run leave their cell empty."""
    medians = {row["name"]: row["median_ms"] for row in result["rows"]}
    cells = [f"{medians[column]:.2f}" if medians.get(column) else "" for column in COLUMNS]
    speedups = f"{result['ideal']:.2f}x / {result['realised']:.2f}x"
    return f"| {title} | {share:.0%} | " + " | ".join(cells) + f" | {speedups} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure before printing")
    parser.add_argument("--only", metavar="LIST", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--share", type=float, default=0.5, help="live channels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=25, help="default: %(default)s")
    args = parser.parse_args()
    names = list(NETWORKS) if args.only is None else args.only.split(",")
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"unknown networks: {', '.join(unknown)}")
    RESULTS.mkdir(exist_ok=True)
    if args.run:
        for name in names:
            measure(name, args.share, args.batch, args.threads, args.rounds)
    print("| network | live | dynprune-rt | dynprune-rt, dense | OpenVINO f32 | ONNX Runtime | torch.compile "
          "| torch eager | ideal / realised |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        path = result_path(name, args.share, args.batch, args.threads)
        if path.is_file():
            print(line(NETWORKS[name], args.share, json.loads(path.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
