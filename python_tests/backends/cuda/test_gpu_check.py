"""`gpu_check` rehearsed without a GPU: its checks on the emulator, its figures with made-up times."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dynprune_rt
from dynprune_rt.backends.cuda.native_kernels import NativeKernels
from dynprune_rt.backends.cuda.session import CudaSession
from dynprune_rt.backends.cuda.times_cache import TimesCache
from dynprune_rt.backends.cuda.tuning import Tuner
from dynprune_rt.devices import CudaStatus, cuda_status
from dynprune_rt.errors import DeviceError
from dynprune_rt.gpu_check import __main__ as script
from dynprune_rt.gpu_check import (
    baselines,
    figures,
    kernel_grid,
    measurement,
    microbenchmarks,
    networks,
    sanitizer,
    sections,
    timing,
)
from dynprune_rt.gpu_check.baselines import FusedConvolutions, FusedNetwork
from dynprune_rt.gpu_check.checks import Checks, NotRun
from dynprune_rt.gpu_check.roofline import Roofline, network_limit
from dynprune_rt.gpu_check.sanitizer import sanitize
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.models import create
from dynprune_rt.profile import Profile
from dynprune_rt.program import Program
from python_tests.backends.cuda.fake_cuda import FakeEvent
from python_tests.backends.cuda.networks import images, network, relative_error

CPU = torch.device("cpu")


def test_without_a_gpu_nothing_is_checked_and_nothing_passes(capsys: pytest.CaptureFixture[str]) -> None:
    if cuda_status().usable:
        pytest.skip("this machine has a GPU")
    assert script.main([]) == script.SKIPPED == 77
    assert capsys.readouterr().out == f"SKIPPED, nothing was checked: {cuda_status().reason}\n"


# ---- the runner -------------------------------------------------------------------------------


def test_outcomes(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    checks = Checks(10.0, lambda: now[0])

    def fails() -> dict[str, Any]:
        raise ValueError("wrong bits")

    def absent() -> dict[str, Any]:
        raise NotRun("no such tool")

    checks.run("a", lambda: {"error": 0.25})
    checks.run("b", fails)
    checks.run("c", absent)
    now[0] = 11.0
    checks.run("d", dict)
    assert [r["outcome"] for r in checks.results] == ["passed", "FAILED", "not run", "not run"]
    assert checks.summary() == "1 passed, 1 failed, 2 not run (unknown, not passed: c, d)"
    out = capsys.readouterr().out
    assert "FAILED   b: error ValueError: wrong bits" in out and "the limit of 10 s is reached" in out


def section_of(command: Sequence[str]) -> tuple[str, Path]:
    return command[command.index("--section") + 1], Path(command[command.index("--part") + 1])


def part(outcome: str, **facts: Any) -> str:
    return json.dumps({"checks": [{"check": "c", "outcome": outcome, "seconds": 1.0}], "figures": [], "facts": facts})


def test_a_section_that_hangs_or_crashes_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = figures.figure("resnet50", 0.5, 64, {"skip": 10.0, "cudnn": 12.5, "no skip": 13.0}, 1.39)
    now, given, seen = [0.0], {}, []
    path = tmp_path / "results.json"

    def run(command: Sequence[str], seconds: float) -> int | None:
        name, to = section_of(command)
        given[name] = seconds
        now[0] += seconds if name in ("networks", "resnet34-30%") else 50.0
        if name == "kernels":
            to.write_text(part("passed"))
        elif name == "networks":
            to.write_text(part("passed", half="done"))
            return None  # ended: what it had saved counts
        elif name == "sanitizer":
            return -11  # before it has written anything
        elif name == "resnet50-50%":
            to.write_text(json.dumps({"checks": [], "figures": [row], "facts": {}}))
        elif name == "resnet50-compile":
            to.write_text(part("FAILED", **{"torch.compile ms": {figures.compile_key("resnet50", 64): 20.0}}))
            return 1
        if path.exists():
            seen.append(len(json.loads(path.read_text())["checks"]))
        return 0

    args = argparse.Namespace(device="cuda:0", json=path, quick=False, only=None, limit=570.0)
    status = CudaStatus(True, True, "an emulator", "cuda")
    assert script.run_all(args, status, run, lambda: now[0]) == 1
    results = json.loads(path.read_text())
    assert results["gpu"] == "an emulator" and results["facts"]["half"] == "done"
    noted = {c["check"]: (c["outcome"], c["reason"]) for c in results["checks"] if "reason" in c}
    assert noted["networks"] == ("not run", "its process was ended after 120 s; what it found counts")
    assert noted["sanitizer"] == ("FAILED", "its process ended with status -11")
    assert noted["resnet34-compile"][0] == "not run" and "the limit of 570 s" in noted["resnet34-compile"][1]
    assert [r["over_compile"] for r in results["figures"]] == [2.0], "torch.compile's time joins the row"
    assert given["resnet50-compile"] < 150, "no section gets more time than is left"
    assert seen == [4, 4, 4, 4, 4], "results are written after every section"
    out = capsys.readouterr().out
    assert out.rstrip().splitlines()[-1].endswith("not passed: networks, resnet34-compile)")


def test_sections_by_name(tmp_path: Path) -> None:
    ran = []

    def run(command: Sequence[str], seconds: float) -> int:
        ran.append(section_of(command)[0])
        return 0

    status = CudaStatus(True, True, "an emulator", "cuda")
    args = argparse.Namespace(device="cuda:0", json=None, quick=True, only=None, limit=570.0)
    assert script.run_all(args, status, run) == 0 and ran == ["kernels", "networks", "sanitizer"]
    args.only = "layers,kernels"
    ran.clear()
    assert script.run_all(args, status, run) == 0 and ran == ["layers", "kernels"]
    args.only = "speed"
    with pytest.raises(SystemExit, match="no section 'speed'; there are kernels, networks"):
        script.run_all(args, status, run)
    assert sum(s.seconds for s in sections.SECTIONS if not s.timing) < 300


def test_a_process_is_ended_with_what_it_started() -> None:
    assert script.run_process([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3
    assert script.run_process(["sh", "-c", "sleep 60 & sleep 60"], 0.2) is None


@pytest.fixture
def on_the_emulator(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Sections open kernels and sessions on the emulator."""

    def load(program: Program, device: str, precision: str, tune_batch: int) -> CudaSession:
        kernels = NativeKernels(emulated, CPU, precision)
        if not tune_batch:
            return CudaSession(program, kernels)
        return CudaSession(program, kernels, Tuner(lambda problem, mode, batch: 1.0, TimesCache(None, ""), 2, False))

    monkeypatch.setattr(sections, "open_kernels", lambda device, precision: NativeKernels(emulated, CPU, precision))
    monkeypatch.setattr(sections, "load", load)
    monkeypatch.setattr(script, "cuda_status", lambda: CudaStatus(True, True, "an emulator", "cuda"))
    return emulated


@pytest.mark.parametrize("broken", [False, True])
def test_a_section_from_arguments_to_json(
    on_the_emulator: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: bool
) -> None:
    monkeypatch.setattr(kernel_grid, "CONVS", kernel_grid.CONVS[3:4])
    monkeypatch.setattr(kernel_grid, "DIRECT", [])
    if broken:
        monkeypatch.setitem(kernel_grid.TOLERANCE, "bf16", 0.0)
    path = tmp_path / "part.json"
    assert script.main(["--section", "kernels", "--device", "cpu", "--part", str(path)]) == int(broken)
    outcomes = {check["check"]: check["outcome"] for check in json.loads(path.read_text())["checks"]}
    assert outcomes["convolutions in bf16 against float64"] == ("FAILED" if broken else "passed")
    assert outcomes["convolutions in fp16 against float64"] == "passed" and len(outcomes) == 3
    assert script.main(["--section", "small", "--device", "cpu"]) == 0  # as compute-sanitizer starts it


# ---- times, with a stand-in for torch.cuda ----------------------------------------------------


@pytest.fixture
def fake_times(on_the_emulator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every time is 1.5 ms; networks and layers are small enough for the emulator; cuDNN is torch on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Event": FakeEvent, "Stream": lambda: stream, "current_stream": lambda: stream, "synchronize": lambda: None,
        "stream": lambda side: contextlib.nullcontext(), "graph": lambda graph: contextlib.nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "mem_get_info": lambda device: (2**28 + 16, 2**30),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for module, constants in (
        (timing, {"REPEATS": 1, "WARM_UP": 0}),
        (microbenchmarks, {"LAYERS": ((16, 24, 4, 3),), "LAYER_BATCHES": (1, 2), "DENSE_BATCHES": (2, 3), "MATRIX": 32,
                           "BLOCK": 64, "ORDER_LAYER": (16, 8, 4), "SHARES": (0.5, 1.0)}),
        (measurement, {"_SIZE": 8}),
        (figures, {"BATCHES": (1, 2)}),
    ):  # fmt: skip
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)

    def small_network(name: str, gate: str | None, size: int, share: float = 0.5) -> tuple[None, Program]:
        return None, network("cifar_resnet20", gate, 8)

    def relu(x: Any, weight: Any, bias: Any, *where: Any) -> Any:
        return torch.conv2d(x, weight, bias, *where).relu()

    def add_relu(x: Any, weight: Any, z: Any, alpha: float, bias: Any, *where: Any) -> Any:
        return (torch.conv2d(x, weight, bias, *where) + z).relu()

    monkeypatch.setattr(measurement, "converted", small_network)
    monkeypatch.setattr(networks, "converted", small_network)
    monkeypatch.setattr(
        measurement, "create", lambda name, gate: create("cifar_resnet20", gate, input_size=8, blocks=1)
    )
    monkeypatch.setattr(baselines, "cudnn", lambda: FusedConvolutions(relu, add_relu))
    monkeypatch.setattr(torch, "compile", lambda module, mode: module)


@pytest.mark.parametrize("name", ["rates", "resnet50-50%", "resnet34-compile", "layers"])
def test_every_timing_section_runs(fake_times: None, tmp_path: Path, name: str) -> None:
    work = sections.Work("cpu", tmp_path / "part.json", Checks(600.0))
    sections.section(name).run(work)
    assert [c for c in work.checks.results if c["outcome"] != "passed"] == []
    saved = json.loads((tmp_path / "part.json").read_text())
    if name == "rates":
        facts = saved["facts"]
        assert facts["TMAC per second"] == pytest.approx(32**3 / 1.5e-3 / 1e12)
        assert [row["ms"] / row["cudnn ms"] for row in facts["dense layers"]] == [1.0, 1.0]
        assert set(facts["ms by order of images"]) == {"falling", "mixed", "rising"}
    elif name == "resnet50-50%":
        assert [(row["network"], row["batch"]) for row in saved["figures"]] == [("resnet50", 1), ("resnet50", 2)]
        assert all(row["over_cudnn"] == 1.0 and row["limit"] > 1.0 for row in saved["figures"])
    elif name == "resnet34-compile":
        assert saved["facts"]["torch.compile ms"] == {"resnet34 x1": 1.5, "resnet34 x2": 1.5}
    else:
        modes = {row["mode"] for row in saved["facts"]["layers"]}
        assert "cudnn" in modes and len(modes) == 6, "every layout, of packed and of whole inputs"


def test_the_sections_of_networks_and_of_the_sanitizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sections, "out_of_memory", lambda open_session: {"message": "full"})
    monkeypatch.setattr(networks, "check_network", lambda work, name, *given: asked.append(name))
    monkeypatch.setattr(sanitizer, "sanitize", lambda tool, device: {"errors": 0})
    work = sections.Work("cuda:0", tmp_path / "part.json", Checks(60.0))
    for name in ("networks", "sanitizer"):
        sections.section(name).run(work)
    assert asked == [name for name, _, _ in networks.NETWORKS]
    assert [c["outcome"] for c in json.loads((tmp_path / "part.json").read_text())["checks"]] == ["passed"] * 4


def test_the_check_of_memory(fake_times: None, small: tuple[torch.nn.Module, Program]) -> None:
    class Full:
        """A session with room for one image."""

        device, room = CPU, 1

        def run(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > self.room:
                raise DeviceError("too little free memory: use a smaller batch")
            return x.sum((1, 2, 3))

    gpu = Full()
    assert "smaller batch" in sections.out_of_memory(lambda program, precision, batch: gpu)["message"]
    gpu.room = 5000
    with pytest.raises(NotRun, match="the batch fitted"):
        sections.out_of_memory(lambda program, precision, batch: gpu)


# ---- networks ---------------------------------------------------------------------------------


class Opener:
    """Opens sessions on the emulator."""

    def __init__(self, emulated: ModuleType) -> None:
        self._emulated = emulated

    def __call__(self, program: Program, precision: str, tune_batch: int) -> CudaSession:
        return CudaSession(program, NativeKernels(self._emulated, CPU, precision))


@pytest.fixture(scope="module")
def small() -> tuple[torch.nn.Module, Program]:
    model = create("cifar_resnet20", "laudnet", input_size=8, blocks=1)
    return model, dynprune_rt.convert(model, torch.rand(2, 3, 8, 8))


def test_checks_of_a_network_pass_on_the_emulator(emulated: ModuleType, small: tuple[torch.nn.Module, Program]) -> None:
    model, program = small
    opened = Opener(emulated)
    facts = networks.parity(model, program, opened, [images(2, 8)], "tf32")
    assert facts["with other gates"] == 0 and 0 < facts["relative error"] < 1e-2
    networks.invariance(program, opened, images(2, 8))
    assert networks.replay(program, opened, [images(1, 8), images(1, 8, 1)])["replays"] == 6


class Wrong:
    """A session whose results are off, or depend on the batch, or on the call."""

    def __init__(self, program: Program, add: Callable[[np.ndarray, int], Any]) -> None:
        self._cpu, self._add, self._calls = dynprune_rt.load(program), add, 0
        self.device, self.live_channels = CPU, self._cpu.live_channels

    def run(self, x: Any) -> Any:
        self._calls += 1
        return self._cpu.run(x) + self._add(x, self._calls)


@pytest.mark.parametrize(
    ("check", "add", "message"),
    [
        ("parity", lambda x, call: 10.0, "relative error"),
        ("invariance", lambda x, call: np.float32(len(x)), "gives other bits alone"),
        ("replay", lambda x, call: float(call), "a replayed graph gives other bits"),
    ],
)
def test_checks_of_a_network_notice(small: tuple[torch.nn.Module, Program], check: str, add: Any, message: str) -> None:
    model, program = small
    x = images(2, 8)

    def opened(program: Program, precision: str, tune_batch: int) -> Wrong:
        return Wrong(program, add)

    with pytest.raises(AssertionError, match=message):
        if check == "parity":
            networks.parity(model, program, opened, [x], "fp16")
        elif check == "invariance":
            networks.invariance(program, opened, x)
        else:
            networks.replay(program, opened, [x])


# ---- compute-sanitizer ------------------------------------------------------------------------


def done(code: int, text: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda command, **options: subprocess.CompletedProcess(command, code, text, "")


def test_the_sanitizer() -> None:
    with pytest.raises(NotRun, match="no compute-sanitizer on PATH"):
        sanitize("memcheck", "cuda:0", which=lambda name: None)

    def run(finished: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
        return sanitize("memcheck", "cuda:0", which=lambda name: name, run=finished)

    assert run(done(0, "========= ERROR SUMMARY: 0 errors")) == {"errors": 0}
    with pytest.raises(AssertionError, match="Invalid __global__ read"):
        run(done(9, "========= Invalid __global__ read of size 4"))
    with pytest.raises(NotRun, match="without a summary"):
        run(done(0, "all checks passed"))

    def slow(command: list[str], timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, timeout)

    with pytest.raises(NotRun, match="stopped after"):
        run(slow)


# ---- figures ----------------------------------------------------------------------------------


def test_figures_with_made_up_times() -> None:
    def fails() -> float:
        raise torch.OutOfMemoryError("no memory")

    timers = {"skip": lambda: 10.0, "no skip": lambda: 13.0, "cudnn": lambda: 12.5}
    row, failures = figures.measure("resnet50", 64, 0.5, timers, lambda: 1.39)
    assert not failures and row["over_cudnn"] == 1.25 and row["target"] == 1.2 and row["met"] and row["dense_met"]
    slow, failures = figures.measure("resnet34", 1, 0.5, {**timers, "skip": fails}, fails)
    assert slow["met"] is None and slow["limit"] is None and set(failures) == {"skip", "limit"}
    missed = figures.figure("resnet34", 0.3, 64, {"skip": 10.0, "cudnn": 17.0, "no skip": 19.0}, 1.9)
    assert missed["met"] is False and missed["dense_met"] is False
    text = figures.table([row, slow, missed]).splitlines()
    assert len(text) == 5 and text[2].split()[-4:] == ["1.39", "1.20", "yes", "1.04"] and "NO" in text[4]
    json.dumps([row, slow, missed], allow_nan=False)
    assert {key[2] for key in figures.TARGETS} <= set(figures.BATCHES)


def test_the_roofline_of_one_layer() -> None:
    builder = Builder(fold=False)
    x = builder.graph.add_input("x", TensorType("f32", (BATCH, 8, 4, 4)))
    weight = builder.constant("weight", np.ones((16, 8, 1, 1), np.float32))
    none = float("inf")
    y = builder.op("conv2d", x, weight, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
                   inner=(-none, none), outer=(-none, none), pools=())  # fmt: skip
    builder.graph.outputs.append(y)
    name = builder.graph.nodes[0].name
    rows = [{"name": name, "live_in": 4, "total_in": 8, "live_out": 8, "total_out": 16}]
    profile = Profile(rows, 1, 1, "", True)
    by_products = network_limit(builder.graph, profile, Roofline(1e6, 1e15), batch=3)
    assert by_products["dense"] == pytest.approx(3 * 8 * 16 * 16 / 1e6 * 1e3)
    assert by_products["gain"] == pytest.approx(4)
    by_memory = network_limit(builder.graph, profile, Roofline(1e15, 1e6), batch=1)
    elements = 8 * 16 + 16 * 16
    assert by_memory["gain"] == pytest.approx((elements + 128) / (elements / 2 + 128))


def test_the_fused_baseline_is_the_network() -> None:
    """In fp32, with torch's separate operators in place of cuDNN's fused ones."""
    calls = {"relu": 0, "add_relu": 0}

    def relu(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
        calls["relu"] += 1
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    def add_relu(x: Any, weight: Any, z: Any, alpha: float, bias: Any, *where: Any) -> Any:
        calls["add_relu"] += 1
        return (torch.conv2d(x, weight, bias, *where) + alpha * z).relu()

    program = network("resnet50", None, 64)  # of 32 pixels one would be left at the end
    x = images(2, 64)
    fused = FusedNetwork(program.graph, CPU, torch.float32, FusedConvolutions(relu, add_relu))
    assert relative_error(fused(torch.from_numpy(x)).numpy(), dynprune_rt.load(program).run(x)) < 1e-4
    assert calls["add_relu"] == 4 and calls["relu"] == 9, "every convolution but the four shortcuts' is fused"
