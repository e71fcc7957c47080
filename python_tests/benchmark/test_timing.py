"""Percentiles, interleaving, slots, pinning."""

import os
import time

import pytest

from dynprune_rt.benchmark.timing import Samples, measure, percentile, pinned


def test_percentile_interpolates():
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0], 99) == 1.0
    assert percentile(range(101), 99) == 99


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_spread_is_half_the_quartile_distance():
    assert Samples(calls=[2.0], rounds=[1.0, 2.0, 3.0]).spread == 0.25


def test_every_runner_runs_in_every_round_in_rotating_order():
    log = []
    runners = {name: lambda i, name=name: log.append((name, i)) for name in "abc"}
    slots = []
    samples = measure(runners, 3, inputs=2, slot_ms=0.0, warmup_ms=0.0, progress=lambda: slots.append(len(log)))
    assert len(slots) == 9
    warmup = 3 * (3 + 2)
    order = [log[at - 1][0] for at in slots]
    assert order == list("abc" + "bca" + "cab")
    per_slot = log[warmup : slots[0]]
    assert per_slot == [("a", 1), ("a", 0), ("a", 1)]  # one untimed call, then a cycle over the inputs
    assert all(len(found.calls) == 6 and len(found.rounds) == 3 for found in samples.values())


def test_calls_are_timed_one_by_one():
    samples = measure({"sleep": lambda i: time.sleep(0.002)}, 2, inputs=1, slot_ms=5.0, warmup_ms=0.0)
    assert samples["sleep"].median >= 2.0
    assert samples["sleep"].p99 >= samples["sleep"].median


def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
    with pinned(None):
        assert os.sched_getaffinity(0) == before
