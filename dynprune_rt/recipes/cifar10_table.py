"""The table and the plot of finished CIFAR-10 runs: accuracy, MACs, latency; dynamic beside static.

    python -m dynprune_rt.recipes.cifar10_table results.json --runs runs --data DIR --markdown table.md --plot plot.svg

With --runs and --data, latency is measured at batch 1 on one thread, all networks of an architecture interleaved in one
process with our own dense network and with the dense network in every peer that is installed; it is written back into
the JSON file with the dense network's accuracy. Beside every gated network stands what static ones reach at its MACs
and at its latency, on the straight lines between the static networks of the file and the dense one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dynprune_rt.benchmark.timing import Runner
from dynprune_rt.errors import DynpruneError
from dynprune_rt.recipes.static_front import DYNAMIC, Rows, cost, static_accuracy, static_front
from dynprune_rt.recipes.tradeoff_plot import Panel, Point, draw
from dynprune_rt.session import Session

#: Errors in per cent on CIFAR-10 in ManiDP's own table: (baseline, pruned, per cent of the MACs removed, epochs).
PUBLISHED: dict[tuple[str, str], tuple[float, float, float, int]] = {
    ("cifar_resnet20", "manidp"): (7.78, 7.95, 54.2, 400),
    ("cifar_resnet56", "manidp"): (6.30, 6.36, 62.4, 400),
}


def markdown(rows: Rows) -> str:
    """One line per run, in the order of the file."""
    lines = [
        "| run | method | epochs | test accuracy (dense) | MACs left | static part of the cut | ms at batch 1 | "
        "static networks at equal MACs, latency | paper |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        activity = row["activity"]
        before = row["epochs_before"]
        epochs = f"{row['epochs']}" + (f" (after {before})" if before else "")
        latency = row.get("latency_ms", {})
        shown = ", ".join(f"{who} {ms:.3f}" for who, ms in latency.items()) or "not measured"
        dense = f" ({row['dense_accuracy']:.2%})" if "dense_accuracy" in row else ""
        rivals = [static_accuracy(rows, name, by) for by in ("macs", "latency")]
        paper = "none read"
        if (row["arch"], row["method"]) in PUBLISHED:
            baseline, error, cut, long = PUBLISHED[row["arch"], row["method"]]
            paper = f"{100 - baseline:.2f} to {100 - error:.2f} % at {100 - cut:.1f} % left, {long} epochs"
        cells = (
            name,
            row["method"],
            epochs,
            f"{row['test_accuracy']:.2%}{dense}",
            f"{activity['macs_left']:.1%}",
            f"{activity['static_share']:.0%}",
            shown,
            ", ".join("-" if rival is None else f"{rival:.2%}" for rival in rivals),
            paper,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def points(rows: Rows, by: str) -> list[Point]:
    """Rows as points of a plot; ``by``: see `cost`. Rows without that cost are left out."""
    found = []
    for name, row in rows.items():
        x = cost(row, by)
        if x is not None:
            found.append(Point(x, row["test_accuracy"], name, row["method"] in DYNAMIC))
    return found


def panel(rows: Rows, by: str, title: str) -> Panel:
    fronts = [static_front(rows, arch, by) for arch in sorted({row["arch"] for row in rows.values()})]
    return Panel(title, points(rows, by), fronts)


def measure_latency(
    rows: dict[str, dict[str, Any]], runs: Path, data: Path, rounds: int = 15, images: int = 16
) -> None:
    """Set "latency_ms" of every row whose model.dpr is under ``runs``: pruned, dense (ours), and each peer's dense.

    "dense_accuracy", through the runtime on the test images, comes with it.
    """
    import numpy as np
    import torch

    import dynprune_rt
    from dynprune_rt import methods, models
    from dynprune_rt.benchmark.case import export_onnx
    from dynprune_rt.benchmark.peers import PEERS, DenseNetwork
    from dynprune_rt.benchmark.timing import measure, pinned
    from dynprune_rt.recipes.cifar10_methods import RECIPES

    test = methods.load_cifar10(data).test
    inputs = [x.contiguous().numpy() for x, _ in methods.Batches(test.part(0, images), 1)]
    for arch in sorted({row["arch"] for row in rows.values()}):
        programs = {n: runs / n / "model.dpr" for n, r in rows.items() if r["arch"] == arch}
        programs = {name: path for name, path in programs.items() if path.is_file()}
        if not programs:
            continue
        weights = next(recipe.weights for recipe in RECIPES.values() if recipe.arch == arch)
        dense = models.create(arch, weights=data / weights)
        example = torch.from_numpy(inputs[0])
        pair = torch.from_numpy(np.concatenate(inputs[:2]))
        sessions = {name: dynprune_rt.load(path, threads=1) for name, path in programs.items()}
        sessions["dense"] = dynprune_rt.load(dynprune_rt.convert(dense, pair), threads=1)
        runners: dict[str, Runner] = {name: _runner(session, inputs) for name, session in sessions.items()}
        network = DenseNetwork(onnx=export_onnx(dense, example), module=dense)
        for name, peer in PEERS.items():
            if peer.missing(network) is None:
                runners[f"{name} dense"] = peer.prepare(network, inputs, 1)
        with pinned(None):
            samples = measure(runners, rounds, len(inputs))
        right = sum(
            int((sessions["dense"].run(x.contiguous().numpy()).argmax(1) == y.numpy()).sum())
            for x, y in methods.Batches(test, 250)
        )
        shared = {name: s.median for name, s in samples.items() if name not in programs}
        for name in programs:
            rows[name]["latency_ms"] = {"pruned": samples[name].median, **shared}
            rows[name]["dense_accuracy"] = right / len(test)


def _runner(session: Session, inputs: list[Any]) -> Runner:
    return lambda i: session.run(inputs[i])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file of cifar10_methods")
    parser.add_argument("--runs", type=Path, help="folder with the runs' model.dpr")
    parser.add_argument("--data", type=Path, help="folder with data and weights")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path, help="SVG file; accuracy over MACs, and over latency where measured")
    args = parser.parse_args()
    try:
        rows = json.loads(args.results.read_text())
        if args.runs is not None and args.data is not None:
            measure_latency(rows, args.runs, args.data)
            args.results.write_text(json.dumps(rows, indent=1) + "\n")
        table = markdown(rows)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {args.results}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except DynpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.markdown is not None:
        args.markdown.write_text(table)
    print(table, end="")
    if args.plot is not None:
        panels = [panel(rows, "macs", "MACs left (share of dense)")]
        if any("latency_ms" in row for row in rows.values()):
            panels.append(panel(rows, "latency", "latency at batch 1 (ms)"))
        args.plot.write_text(draw(panels))
    return 0


if __name__ == "__main__":
    sys.exit(main())
