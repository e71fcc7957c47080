"""The one benchmark driver: prepares the contenders, measures them together, reports."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynprune_rt.benchmark.case import Case
from dynprune_rt.benchmark.machine import distinct_cores, machine_facts, usable_cores
from dynprune_rt.benchmark.peers import PEERS, default_peers
from dynprune_rt.benchmark.report import Report, Row
from dynprune_rt.benchmark.timing import Runner, measure, pinned
from dynprune_rt.errors import DynpruneError
from dynprune_rt.profile import Profile
from dynprune_rt.program import Program
from dynprune_rt.session import Session

#: Outputs may differ from torch by this much of the largest output (fp32 in another order of summation).
TOLERANCE = 1e-4


@dataclass(frozen=True)
class BenchmarkOptions:
    """How to measure.

    ``cores``: logical cores to pin to; None picks ``threads`` different physical ones, () does not pin.
    """

    threads: int = 1
    rounds: int = 15
    slot_ms: float = 20.0
    peers: Sequence[str] = default_peers("f32")
    cores: Sequence[int] | None = None
    refcheck: bool = False


def run_benchmark(
    case: Case, options: BenchmarkOptions, progress: Callable[[int, int, str], None] | None = None
) -> Report:
    """Measure the case's own runs and peers in one process, interleaved.

    ``progress(done, total, what)`` is called as preparation and slots go by. A peer that is not installed or fails
    is reported as skipped with the reason. Raises DynpruneError for unknown peers or cores, and with
    ``refcheck`` if one of the engine's own outputs deviates from torch.
    """
    unknown = [name for name in options.peers if name not in PEERS]
    if unknown:
        raise DynpruneError(f"unknown peers {', '.join(unknown)}; known: {', '.join(PEERS)}")
    cores = distinct_cores()[: options.threads] if options.cores is None else list(options.cores)
    if not set(cores) <= set(usable_cores()):
        raise DynpruneError(f"cannot pin to cores {cores}; usable: {usable_cores()}")
    if cores and len(cores) < options.threads:
        raise DynpruneError(f"{options.threads} threads need as many cores; pinned to {cores}")
    notify = progress or (lambda done, total, what: None)
    machine = machine_facts()
    with pinned(cores or None):
        return _run(case, options, cores, machine, notify)


def _run(
    case: Case,
    options: BenchmarkOptions,
    cores: list[int],
    machine: dict[str, Any],
    notify: Callable[[int, int, str], None],
) -> Report:
    session = _load(case.program, options.threads)
    rows = [Row("gated", "this runtime, skipping"), Row("gated, skip=False", "this runtime, masked dense")]
    runners: dict[str, Runner] = {
        "gated": lambda i: session.run(case.inputs[i]),
        "gated, skip=False": lambda i: session.run(case.inputs[i], skip=False),
    }
    if case.dense is not None:
        dense = _load(case.dense, options.threads)
        rows.append(Row("dense", "this runtime, network without gates"))
        runners["dense"] = lambda i: dense.run(case.inputs[i])
    for number, name in enumerate(options.peers):
        notify(number, len(options.peers), f"preparing {name}")
        row, runner = _prepare_peer(name, case, options.threads)
        rows.append(row)
        if runner is not None:
            runners[name] = runner
    if options.refcheck:
        _check_outputs(case, rows, runners)

    total, done = options.rounds * len(runners), 0

    def slot_done() -> None:
        nonlocal done
        done += 1
        notify(done, total, "measuring")

    # Other runtimes' idle threads spin for a while; with one thread there are none.
    settle_ms = 30.0 if options.threads > 1 else 0.0
    samples = measure(
        runners, options.rounds, len(case.inputs), options.slot_ms, settle_ms=settle_ms, progress=slot_done
    )
    for row in rows:
        if row.name in samples:
            found = samples[row.name]
            row.median_ms, row.p99_ms, row.spread = found.median, found.p99, found.spread
            row.calls = len(found.calls)

    profiles = [session.profile(x) for x in case.inputs]
    images = sum(profile.batch for profile in profiles)
    dense_macs = case.dense.dense_macs if case.dense is not None else profiles[0].dense_macs / profiles[0].batch
    return Report(
        facts=case.facts,
        machine={**machine, "isa": profiles[0].isa},
        command=shlex.join(["dynprune", *sys.argv[1:]]),
        settings={"threads": options.threads, "cores": cores or "not pinned", "rounds": options.rounds},
        macs=sum(profile.macs for profile in profiles) / images,
        dense_macs=dense_macs,
        live_inputs=_live_share(profiles, "in"),
        live_outputs=_live_share(profiles, "out"),
        rows=rows,
        bit_identical=all(
            np.array_equal(_output(session.run(x)), _output(session.run(x, skip=False))) for x in case.inputs
        ),
    )


def _live_share(profiles: Sequence[Profile], side: str) -> float:
    """Live share of the layers' inputs or outputs, weighted by the layers' dense work."""
    layers = [layer for profile in profiles for layer in profile.layers]
    live = sum(layer["dense_macs"] * layer[f"live_{side}"] / layer[f"total_{side}"] for layer in layers)
    return float(live / max(1, sum(layer["dense_macs"] for layer in layers)))


def _load(program: Program, threads: int) -> Session:
    import dynprune_rt

    return dynprune_rt.load(program, device="cpu", threads=threads)


def _prepare_peer(name: str, case: Case, threads: int) -> tuple[Row, Runner | None]:
    peer = PEERS[name]
    row = Row(name, peer.settings)
    row.skipped = peer.missing(case.network) or ""
    if row.skipped:
        return row, None
    try:
        runner = peer.prepare(case.network, case.inputs, threads)
        runner(0)
    except Exception as error:  # whatever another runtime raises must not end the benchmark
        row.skipped = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'failed'}"
        return row, None
    return row, runner


def _check_outputs(case: Case, rows: list[Row], runners: dict[str, Runner]) -> None:
    """Fill in ``error``; an own output beyond the tolerance is an error of this package."""
    for row in rows:
        own = row.name.startswith("gated")
        reference = case.reference if own else case.dense_reference
        if reference is None or row.name not in runners:
            continue
        row.error = 0.0
        for i, expected in enumerate(reference):
            output = _output(runners[row.name](i))
            deviation = float(np.abs(output - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
            row.error = max(row.error, deviation)
        if case.dtype == "f32" and row.error > TOLERANCE and (own or row.name == "dense"):
            raise DynpruneError(
                f"{case.name}: {row.name} deviates from torch by {row.error:.1e} of the largest output "
                f"(allowed: {TOLERANCE:.0e}); a gate within rounding of its threshold may be the cause: try --seed"
            )


def _output(result: object) -> np.ndarray:
    """The first output of a run."""
    array = result[0] if isinstance(result, tuple | list) else result
    return np.asarray(array)
