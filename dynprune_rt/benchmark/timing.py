"""Interleaved measuring: every contender runs in every round, in rotating order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

#: One inference on input number i; the caller chooses i below the number of prepared inputs.
Runner = Callable[[int], Any]


@dataclass
class Samples:
    """Latencies of one contender in milliseconds, one per call; ``rounds`` holds each round's median."""

    calls: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return percentile(self.calls, 50)

    @property
    def p99(self) -> float:
        return percentile(self.calls, 99)

    @property
    def spread(self) -> float:
        """Half the distance between the round medians' quartiles, relative to the median: noise between rounds."""
        return (percentile(self.rounds, 75) - percentile(self.rounds, 25)) / 2 / self.median


def percentile(values: Collection[float], percent: float) -> float:
    """Linear interpolation between the two nearest of the sorted values. Raises ValueError for none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no samples")
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def measure(
    runners: Mapping[str, Runner],
    rounds: int,
    inputs: int,
    slot_ms: float = 20.0,
    warmup_ms: float = 100.0,
    settle_ms: float = 0.0,
    progress: Callable[[], None] | None = None,
) -> dict[str, Samples]:
    """Time the runners in ``rounds`` rounds; in each, every runner gets a slot of about ``slot_ms``.

    A slot cycles through the inputs, after one untimed call that brings the runner's own data back
    into the caches. ``settle_ms`` pauses before a slot, so that the previous runner's spinning threads sleep.
    ``progress`` is called after every slot.
    """
    samples = {name: Samples() for name in runners}
    calls = {name: _calls_per_slot(run, inputs, slot_ms, warmup_ms) for name, run in runners.items()}
    order = list(runners)
    for number in range(rounds):
        first = number % len(order)
        for name in order[first:] + order[:first]:
            if settle_ms:
                time.sleep(settle_ms / 1e3)
            run = runners[name]
            run(inputs - 1)
            slot = []
            for i in range(calls[name]):
                start = time.perf_counter_ns()
                run(i % inputs)
                slot.append((time.perf_counter_ns() - start) / 1e6)
            samples[name].calls += slot
            samples[name].rounds.append(percentile(slot, 50))
            if progress is not None:
                progress()
    return samples


def _calls_per_slot(run: Runner, inputs: int, slot_ms: float, warmup_ms: float) -> int:
    """Warm up; then as many calls as fill the slot, in whole cycles over the inputs, at least one cycle."""
    start = time.perf_counter()
    done = 0
    while done < 3 or (time.perf_counter() - start) * 1e3 < warmup_ms:
        run(done % inputs)
        done += 1
    start = time.perf_counter()
    for i in range(inputs):
        run(i)
    cycle_ms = (time.perf_counter() - start) * 1e3
    return inputs * max(1, min(200, round(slot_ms / max(cycle_ms, 1e-6))))


@contextmanager
def pinned(cores: Collection[int] | None) -> Iterator[None]:
    """Run the body, and threads started in it, on these logical cores only; None leaves the affinity alone."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
