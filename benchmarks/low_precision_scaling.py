"""Two threads against one, and batch 8 per image against batch 1, of int8 and bf16 networks; ratios of one process.

python benchmarks/low_precision_scaling.py --run --only resnet18 --dtypes int8
python benchmarks/low_precision_scaling.py                       print the table of the results that are there
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import dynprune_rt
from dynprune_rt import models
from dynprune_rt.benchmark.machine import machine_facts
from dynprune_rt.benchmark.timing import Runner, measure
from dynprune_rt.program import Program

RESULTS = Path(__file__).parent / "results" / "low_precision_scaling.json"
NETWORKS = ("resnet18", "resnet50")
DTYPES = ("int8", "bf16")
BATCH = 8


def measured(name: str, gate: str | None, dtype: str, rounds: int) -> dict[str, Any]:
    """Milliseconds per image of one and two threads, and of a batch on one thread."""
    images = np.ascontiguousarray(models.synthetic_images(BATCH, models.entry(name).input_size, seed=1).numpy())
    options = {} if gate is None else {"share": 0.5}
    program: Program = dynprune_rt.convert(models.create(name, gate, **options), images[:1], verify=False)
    narrow = dynprune_rt.quantize(program, [images[:2]] if dtype == "int8" else (), dtype)
    one, two = dynprune_rt.load(narrow, threads=1), dynprune_rt.load(narrow, threads=2)
    runners: dict[str, Runner] = {
        "one thread": lambda i: one.run(images[i : i + 1]),
        "two threads": lambda i: two.run(images[i : i + 1]),
        f"batch {BATCH}": lambda i: one.run(images),
    }
    samples = measure(runners, rounds, BATCH, settle_ms=1.0)
    times = {label: s.median for label, s in samples.items()}
    times[f"batch {BATCH}"] /= BATCH
    return {"network": name, "gated": gate is not None, "dtype": dtype, "ms_per_image": times}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | type | one thread, ms | two threads, ms | ratio | batch 8, ms per image | of batch 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        one, two, batch = row["ms_per_image"].values()
        name = f"{row['network']}, {'half live' if row['gated'] else 'dense'}"
        lines.append(
            f"| {name} | {row['dtype']} | {one:.2f} | {two:.2f} | {one / two:.2f} | {batch:.2f} | {batch / one:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure before printing")
    parser.add_argument("--only", metavar="LIST", default=",".join(NETWORKS), help="default: %(default)s")
    parser.add_argument("--dtypes", metavar="LIST", default=",".join(DTYPES), help="default: %(default)s")
    parser.add_argument("--gates", metavar="LIST", default="dense,random", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    args = parser.parse_args()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    if args.run:
        for name in args.only.split(","):
            for dtype in args.dtypes.split(","):
                for gate in (None if g == "dense" else g for g in args.gates.split(",")):
                    row = measured(name, gate, dtype, args.rounds)
                    key = ("network", "gated", "dtype")
                    rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
                    facts = {"command": "python benchmarks/low_precision_scaling.py --run", "machine": machine_facts()}
                    RESULTS.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    if not rows:
        parser.error("no results yet; use --run")
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
