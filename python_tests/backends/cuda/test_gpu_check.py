"""`gpu_check` rehearsed without a GPU: its checks on the emulator, its figures with made-up times."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import dynprune_rt
from dynprune_rt.backends.cuda import session as cuda_session
from dynprune_rt.backends.cuda.native_kernels import NativeKernels
from dynprune_rt.backends.cuda.session import CudaSession
from dynprune_rt.devices import CudaStatus, cuda_status
from dynprune_rt.gpu_check import __main__ as script
from dynprune_rt.gpu_check import figures, kernel_grid, networks
from dynprune_rt.gpu_check.baselines import FusedConvolutions, FusedNetwork
from dynprune_rt.gpu_check.checks import Checks, NotRun
from dynprune_rt.gpu_check.roofline import Roofline, network_limit
from dynprune_rt.gpu_check.sanitizer import sanitize
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.models import create
from dynprune_rt.profile import Profile
from dynprune_rt.program import Program
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


@pytest.mark.parametrize("broken", [False, True])
def test_the_script_from_arguments_to_json(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: bool
) -> None:
    monkeypatch.setattr(cuda_session, "open_kernels", lambda device, precision: NativeKernels(emulated, CPU, precision))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(script, "cuda_status", lambda: CudaStatus(True, True, "an emulator", "cuda"))
    monkeypatch.setattr(kernel_grid, "CONVS", kernel_grid.CONVS[3:4])
    monkeypatch.setattr(kernel_grid, "DIRECT", [])
    if broken:
        monkeypatch.setattr(emulated, "pass_through", emulated.pass_through)
        monkeypatch.setitem(kernel_grid.TOLERANCE, "bf16", 0.0)
    path = tmp_path / "results.json"
    assert script.main(["--grid-only", "--device", "cpu", "--json", str(path)]) == int(broken)
    results = json.loads(path.read_text())
    assert results["gpu"] == "an emulator" and results["kernels"] == "cuda" and not results["figures"]
    outcomes = {check["check"]: check["outcome"] for check in results["checks"]}
    assert outcomes["convolutions in bf16 against float64"] == ("FAILED" if broken else "passed")
    assert outcomes["convolutions in fp16 against float64"] == "passed" and len(outcomes) == 3


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
