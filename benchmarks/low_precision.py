"""int8 and bf16 beside OpenVINO in the same type: runs `dynprune bench --dtype`, keeps its JSON, prints ratios.

python benchmarks/low_precision.py --run          measure (each network and type in a process of its own), then print
python benchmarks/low_precision.py                print the table of the results that are there
python benchmarks/low_precision.py --run --threads 2 --batch 8 --only resnet18 --dtypes int8
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
    "resnet50": "ResNet-50, 224x224",
    "cifar_resnet56": "ResNet-56, CIFAR-10",
    "mobilenet_v2": "MobileNetV2, 224x224",
}
DTYPES = ("int8", "bf16")


def result_path(name: str, dtype: str, batch: int, threads: int) -> Path:
    """Where the result of one configuration is kept."""
    return RESULTS / f"{dtype}_{name}_share50_b{batch}_t{threads}.json"


def measure(name: str, dtype: str, batch: int, threads: int, rounds: int) -> None:
    """Run one benchmark at half of the channels in a fresh process. Raises CalledProcessError if it fails."""
    path = os.path.relpath(result_path(name, dtype, batch, threads))
    options = {"--dtype": dtype, "--share": 0.5, "--batch": batch, "--threads": threads, "--rounds": rounds}
    arguments = [str(part) for pair in options.items() for part in pair]
    subprocess.run([sys.executable, "-m", "dynprune_rt.cli", "bench", name, *arguments, "--json", path], check=True)


def line(title: str, dtype: str, result: dict[str, Any]) -> str:
    """One row of the table; runtimes that did not run leave their cells empty."""
    medians = {row["name"]: row["median_ms"] for row in result["rows"]}
    peer = medians.get(f"openvino-{dtype}")
    cells = [f"{medians[c]:.2f}" if medians.get(c) else "" for c in ("openvino", f"openvino-{dtype}", "dense", "gated")]
    ratios = [f"{medians[c] / peer:.2f}" if peer else "" for c in ("dense", "gated")]
    return f"| {title} | {dtype} | " + " | ".join([*cells, *ratios]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure before printing")
    parser.add_argument("--only", metavar="LIST", default=",".join(NETWORKS), help="default: %(default)s")
    parser.add_argument("--dtypes", metavar="LIST", default=",".join(DTYPES), help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    args = parser.parse_args()
    names, dtypes = args.only.split(","), args.dtypes.split(",")
    unknown = [n for n in names if n not in NETWORKS] + [d for d in dtypes if d not in DTYPES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    RESULTS.mkdir(exist_ok=True)
    if args.run:
        for name in names:
            for dtype in dtypes:
                measure(name, dtype, args.batch, args.threads, args.rounds)
    print("| network | type | OpenVINO f32 | OpenVINO, same type | dynprune-rt, dense | dynprune-rt, half live "
          "| dense / OpenVINO | half live / OpenVINO |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        for dtype in dtypes:
            path = result_path(name, dtype, args.batch, args.threads)
            if path.exists():
                print(line(NETWORKS[name], dtype, json.loads(path.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
