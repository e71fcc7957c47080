"""The table: networks that skip against networks in torch, beside the roofline's limit and the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dynprune_rt.profile import format_table

#: (network, live share, batch): least speed-up over torch's fused cuDNN graph that the project aims at on an H200.
TARGETS: Final = {
    ("resnet50", 0.5, 1): 1.05,
    ("resnet50", 0.5, 64): 1.2,
    ("resnet50", 0.5, 256): 1.2,
    ("resnet34", 0.5, 1): 1.05,
    ("resnet34", 0.5, 64): 1.27,
    ("resnet34", 0.5, 256): 1.27,
    ("resnet50", 0.3, 64): 1.4,
    ("resnet34", 0.3, 64): 1.8,
}
#: Dense mode with gates may take so much longer than the dense baseline.
DENSE_MARGIN: Final = 1.05
BATCHES: Final = (1, 64, 256)
SHARES: Final = (0.5, 0.3)
NETWORKS: Final = ("resnet50", "resnet34")

#: Milliseconds: of a network's rows by name ("skip", "no skip", "cudnn", "compile"; None = not measured).
Times = dict[str, float | None]


def figure(network: str, share: float, batch: int, times: Times, limit: float | None) -> dict[str, Any]:
    """One row: times, ratios to the baselines, the roofline's limit, and whether the targets are met."""
    skip, dense, baseline, compiled = (times.get(k) for k in ("skip", "no skip", "cudnn", "compile"))
    row: dict[str, Any] = {"network": network, "live": share, "batch": batch, "ms": dict(times), "limit": limit}
    row["over_cudnn"] = baseline / skip if baseline and skip else None
    row["over_compile"] = compiled / skip if compiled and skip else None
    row["dense_over_cudnn"] = dense / baseline if baseline and dense else None
    row["target"] = TARGETS.get((network, share, batch))
    row["met"] = None if row["target"] is None or row["over_cudnn"] is None else row["over_cudnn"] >= row["target"]
    row["dense_met"] = None if row["dense_over_cudnn"] is None else row["dense_over_cudnn"] <= DENSE_MARGIN
    return row


def compile_key(network: str, batch: int) -> str:
    return f"{network} x{batch}"


def with_compiled(rows: Sequence[dict[str, Any]], times: Mapping[str, float]) -> list[dict[str, Any]]:
    """The rows with torch.compile's milliseconds, by `compile_key`, where they are known."""
    result = []
    for row in rows:
        ms = times.get(compile_key(row["network"], row["batch"]))
        known = row["ms"] if ms is None else {**row["ms"], "compile": ms}
        result.append(figure(row["network"], row["live"], row["batch"], known, row["limit"]))
    return result


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people. What was not measured is a dash."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    header = ["network", "live", "batch", "skip ms", "no skip ms", "cuDNN ms", "compile ms", "speed-up", "limit"]
    header += ["target", "met", "dense/cuDNN"]
    cells = [
        [
            row["network"],
            f"{row['live']:.0%}",
            str(row["batch"]),
            *(number(row["ms"].get(k), ".3f") for k in ("skip", "no skip", "cudnn", "compile")),
            number(row["over_cudnn"], ".2f"),
            number(row["limit"], ".2f"),
            number(row["target"], ".2f"),
            {None: "-", True: "yes", False: "NO"}[row["met"]],
            number(row["dense_over_cudnn"], ".2f"),
        ]
        for row in rows
    ]
    return format_table(header, cells)


def measure(
    network: str, batch: int, share: float, timers: dict[str, Callable[[], float]], limit: Callable[[], float]
) -> tuple[dict[str, Any], dict[str, str]]:
    """One row from what can be timed, and why the rest cannot: one failing timer leaves the others."""
    times: Times = {}
    failures: dict[str, str] = {}
    for name, timer in timers.items():
        try:
            times[name] = timer()
        except Exception as error:  # out of memory, a compiler that gives up
            times[name], failures[name] = None, f"{type(error).__name__}: {error}"
    try:
        bound: float | None = limit()
    except Exception as error:
        bound, failures["limit"] = None, f"{type(error).__name__}: {error}"
    return figure(network, share, batch, times, bound), failures
