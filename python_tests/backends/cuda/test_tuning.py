"""What is chosen from measured times, with a made-up timer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from dynprune_rt.backends.cuda import conv_timer
from dynprune_rt.backends.cuda.conv_timer import conv_call
from dynprune_rt.backends.cuda.maps import BY_INPUT, BY_OUTPUT, DENSE, TWO_SIDED, ConvMode
from dynprune_rt.backends.cuda.modes import ConvProblem, conv_problem, is_gemm, packable
from dynprune_rt.backends.cuda.native_kernels import NativeKernels
from dynprune_rt.backends.cuda.session import CudaSession
from dynprune_rt.backends.cuda.times_cache import CACHE_VARIABLE, TimesCache, default_path
from dynprune_rt.backends.cuda.tuning import Tuner
from dynprune_rt.ir.graph import Graph
from python_tests.backends.cuda.fake_cuda import FakeEvent
from python_tests.backends.cuda.networks import images, network, relative_error

Cost = Callable[[ConvProblem, ConvMode, int], float]


def flops(problem: ConvProblem, mode: ConvMode, batch: int) -> float:
    """As if every channel that is skipped saved its time."""
    share = 1.0
    if problem.packed:
        share *= 0.5
    if problem.gated and mode.layout != DENSE:
        share *= 0.6 if mode.layout == BY_INPUT and problem.packed else 0.5
    return share * batch * problem.channels * problem.outputs


def launches(problem: ConvProblem, mode: ConvMode, batch: int) -> float:
    """As if gathering cost more than it saved, and segments helped a single image."""
    gathers = 1.0 + problem.packed + (mode.layout in (BY_OUTPUT, TWO_SIDED))
    return gathers * batch / (mode.segments if mode.spread and batch == 1 else 1)


class Counting:
    def __init__(self, cost: Cost) -> None:
        self.cost, self.calls = cost, 0

    def __call__(self, problem: ConvProblem, mode: ConvMode, batch: int) -> float:
        self.calls += 1
        return self.cost(problem, mode, batch)


def tuner(cost: Cost, cache: TimesCache | None = None, segments: bool = True) -> Tuner:
    return Tuner(cost, cache or TimesCache(None, ""), 8, segments)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return network("cifar_resnet20", "laudnet", 8).graph


def test_where_skipping_pays_everything_is_skipped(graph: Graph) -> None:
    choices = tuner(flops).choose(graph)
    assert choices.packed == packable(graph) and choices.packed and not choices.segments
    problems = [choices.problem(node) for node in graph.nodes if is_gemm(node)]
    assert {p.layouts()[0] for p in problems} == {DENSE, BY_OUTPUT, BY_INPUT}


def test_where_it_does_not_everything_is_dense(graph: Graph) -> None:
    chosen = tuner(launches)
    choices = chosen.choose(graph)
    assert not choices.packed
    nodes = [node for node in graph.nodes if is_gemm(node)]
    assert {choices.segments[node.name] for node in nodes} == {8}
    chosen.prepare(choices, nodes, 4)
    assert {choices.mode(node, 4) for node in nodes} == {ConvMode(DENSE, 8)}
    chosen.prepare(choices, nodes, 1)
    assert {choices.mode(node, 1) for node in nodes} == {ConvMode(DENSE, 8, spread=True)}
    # A batch that was never prepared: nothing is measured, and the bits are the same.
    assert {choices.mode(node, 2) for node in nodes} == {ConvMode(DENSE, 8)}
    assert not tuner(launches, segments=False).choose(graph).segments


def test_maps_of_one_mask_are_stored_alike(graph: Graph) -> None:
    """Half of the layers gain by skipping, and no map is packed on one side only."""

    def by_size(problem: ConvProblem, mode: ConvMode, batch: int) -> float:
        return (flops if problem.in_size[0] == 8 else launches)(problem, mode, batch) * 1e-3

    packed = tuner(by_size).choose(graph).packed
    assert packed and packed < packable(graph)
    masks = {value.live for value in packed}
    assert all((value.live in masks) == (value in packed) for value in packable(graph))


def test_noise_does_not_decide(graph: Graph) -> None:
    problem = next(p for n in graph.nodes if is_gemm(n) and (p := conv_problem(n, frozenset(), True)).gated is False)
    gated = ConvProblem(**{**vars(problem), "gated": True})
    choices = tuner(lambda p, mode, batch: 1.0 if mode.layout == BY_OUTPUT else 0.99).choose(graph)
    assert choices.measured(gated, 1, 8) is None and gated.layouts()[0] == BY_OUTPUT
    assert choices.packed == packable(graph)


def test_times_are_measured_once_and_kept(graph: Graph, tmp_path: Path) -> None:
    path, first = tmp_path / "deep" / "times.json", Counting(flops)
    nodes = [node for node in graph.nodes if is_gemm(node)]
    one = tuner(first, TimesCache(path, "H200"))
    one.prepare(one.choose(graph), nodes, 8)
    assert first.calls > 0
    again = Counting(flops)
    two = tuner(again, TimesCache(path, "H200"))
    two.prepare(two.choose(graph), nodes, 8)
    assert again.calls == 0
    other = tuner(again, TimesCache(path, "A100"))
    other.prepare(other.choose(graph), nodes, 8)
    assert again.calls == first.calls, "times of another GPU were used"
    assert set(json.loads(path.read_text())["times"]) == {"H200", "A100"}
    assert [p.name for p in path.parent.iterdir()] == [path.name], "temporary files are left"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"format": 1}',
        '{"format": 2, "times": {}}',
        '{"format": 1, "times": {"g": {"k": "fast"}}}',
        '{"format": 1, "times": {"g": {"k": -1}}}',
        '{"format": 1, "times": {"g": {"k": NaN}}}',
        '{"format": 1, "times": {"g": 3}}',
        "[" * 100000,
    ],
)
def test_a_damaged_cache_is_ignored(tmp_path: Path, content: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    with pytest.warns(RuntimeWarning, match="are ignored, and measured anew"):
        cache = TimesCache(path, "g")
    assert cache.get("k") is None
    cache.put("k", 2.0)
    cache.save()
    assert TimesCache(path, "g").get("k") == 2.0


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TimesCache(tmp_path / "file" / "times.json", "g")
    cache.put("k", 1.0)
    with pytest.warns(RuntimeWarning, match=f"{CACHE_VARIABLE} names another folder"):
        cache.save()
    assert cache.get("k") == 1.0


def test_sessions_that_save_at_once_never_leave_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    caches = [TimesCache(path, f"gpu {i}") for i in range(8)]

    def save(index: int) -> None:
        caches[index].put("k", 1.0 + index)
        caches[index].save()

    threads = [threading.Thread(target=save, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.loads(path.read_text())
    save(0)
    assert TimesCache(path, "gpu 0").get("k") == 1.0


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert default_path() == tmp_path / "gpu_times.json"
    monkeypatch.setenv(CACHE_VARIABLE, "off")
    assert default_path() is None
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "dynprune-rt" / "gpu_times.json"


@pytest.mark.parametrize(
    ("packed", "gated", "layout"), [(True, True, TWO_SIDED), (True, False, BY_INPUT), (False, True, BY_OUTPUT)]
)
def test_what_is_timed_runs(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, packed: bool, gated: bool, layout: int
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(conv_timer, "_REPEATS", 1)
    problem = ConvProblem(16, 24, (4, 4), (4, 4), (3, 3, 1, 1, 1, 1, 1, 1), packed, gated, residual=True, reduced=True)
    kernels = NativeKernels(emulated, torch.device("cpu"), "fp16")
    assert layout == problem.layouts()[0]
    for mode in (ConvMode(layout), ConvMode(layout, 2, spread=True)):
        conv_call(kernels, problem, mode, 2, 0.5)()
    assert conv_timer.ConvTimer(kernels)(problem, ConvMode(layout), 1) == 1.5 / 4, "of four launches"


def test_a_session_gives_the_same_bits_in_every_batch(emulated: ModuleType) -> None:
    """With layers stored packed and dense, segments, and modes that differ from batch to batch."""

    def fickle(problem: ConvProblem, mode: ConvMode, batch: int) -> float:
        cost = (flops if problem.in_size[0] == 8 else launches)(problem, mode, batch)
        return cost * (1.0 if (mode.layout + mode.spread + batch) % 2 else 0.5)

    program = network("cifar_resnet20", "laudnet", 8)
    kernels = NativeKernels(emulated, torch.device("cpu"), "fp16")
    gpu = CudaSession(program, kernels, tuner(fickle))
    plain = CudaSession(program, kernels)
    x = images(2, 8)
    together = gpu.run(x)
    assert relative_error(together, plain.run(x)) < 4e-3
    np.testing.assert_array_equal(np.concatenate([gpu.run(x[:1]), gpu.run(x[1:])]), together)
    names = {batch: {row["kernel"] for row in gpu.profile(x[:batch]).rows} for batch in (1, 2)}
    assert names[1] != names[2], "the modes were meant to differ"
    assert relative_error(gpu.run(x, skip=False), together) < 4e-3
