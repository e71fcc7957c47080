"""Every layer shape, 0, 5, ... 100 % live: is skipping ever slower than not skipping, is the best kernel chosen?

cmake -S . -B build/bench -G Ninja -DDYNPRUNE_BUILD_PYTHON=OFF -DDYNPRUNE_BUILD_TESTS=ON
cmake --build build/bench --target conv_bench
python benchmarks/live_share_sweep.py --run build/bench/conv_bench     measure, keep the JSON, print the table
python benchmarks/live_share_sweep.py                                  print the table of the JSON that is there

The live channels are random, of the inputs, of the outputs, or of both. "cold": the weights come from memory, as
in a network whose weights exceed the caches. Times are of the kernels alone, one thread, best of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "live_share_sweep.json"
#: Below this share a layer takes microseconds: what matters there is that it is short, not which kernel it is.
SMALLEST_SHARE = 20


def measure(conv_bench: str, rounds: int, only: str) -> list[dict[str, Any]]:
    """Rows of the table; raises CalledProcessError if the benchmark fails."""
    rows = []
    for cold in (False, True):
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as file:
            command = [conv_bench, "--isa", "avx512", "--rounds", str(rounds), "--sweep", file.name]
            if only:
                command += ["--layer", only]
            subprocess.run([*command, *(["--cold"] if cold else [])], check=True, stdout=sys.stderr)
            rows += [row(json.loads(line)) for line in file]
    return rows


def row(sweep: dict[str, Any]) -> dict[str, Any]:
    """One layer and side: per share the chosen kernel, its microseconds, and those of the fastest kernel."""
    times = []
    for point in sweep["shares"]:
        kernels = {name: value["us"] for name, value in point.items() if isinstance(value, dict)}
        times.append([point["live"], point["chosen"], kernels[point["chosen"]], min(kernels.values())])
    return {**{key: sweep[key] for key in ("layer", "side", "cold")}, "live_chosen_us_best": times}


def worst(row: dict[str, Any]) -> tuple[float, float, float]:
    """The chosen kernel's time over that with all channels live, over that of five per cent more, over the best."""
    times = row["live_chosen_us_best"]
    dense = times[0][2]
    of_dense = max(us / dense for live, _, us, _ in times if live < 100)
    step = max(after[2] / before[2] for before, after in itertools.pairwise(times) if after[0] >= SMALLEST_SHARE)
    of_best = max(us / best for live, _, us, best in times if live >= SMALLEST_SHARE)
    return of_dense, step, of_best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", metavar="CONV_BENCH", help="the benchmark's binary: measure before printing")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", metavar="SUBSTRING", default="", help="of the layer's name; keeps no JSON")
    args = parser.parse_args()
    if args.run:
        rows = measure(args.run, args.rounds, args.only)
        if not args.only:
            RESULT.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n", encoding="utf-8")
    else:
        rows = json.loads(RESULT.read_text(encoding="utf-8"))
    print(f"From {SMALLEST_SHARE} % live on:")
    print("| layer | live side | weights | dense us | worst of dense | worst step down | worst of the best kernel |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        cells = " | ".join(f"{value:.2f}" for value in worst(r))
        dense = r["live_chosen_us_best"][0][2]
        print(f"| {r['layer']} | {r['side']} | {'cold' if r['cold'] else 'hot'} | {dense:.1f} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
