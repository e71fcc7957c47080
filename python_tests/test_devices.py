"""What is said about CUDA, built or not, usable or not."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

import dynprune_rt
from dynprune_rt import devices
from dynprune_rt.cuda_driver import DriverFacts, driver_facts
from dynprune_rt.errors import DeviceError
from dynprune_rt.program import Program


def fake_module(**facts: Any) -> SimpleNamespace:
    probe = facts.get("probe", (1, "", 13000, 13000, False))
    gpu = facts.get("gpu", ("NVIDIA H200", 9, 0, 132))
    return SimpleNamespace(probe=lambda: probe, device_facts=lambda index: gpu)


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    status = dynprune_rt.cuda_status()
    assert not status.built and not status.usable
    assert "CPU kernels only" in status.reason


@pytest.mark.parametrize(
    ("facts", "usable", "reason"),
    [
        ({"probe": (0, "no device", 13000, 0, False)}, False, "no NVIDIA driver is installed"),
        ({"probe": (0, "driver too old", 13000, 12040, False)}, False, "the driver supports CUDA 12.4"),
        ({"gpu": ("Tesla T4", 7, 5, 40)}, False, "compute capability 7.5 is too old: 8.0"),
        ({}, True, "NVIDIA H200, compute capability 9.0, 1 device(s); kernels of the CUDA module"),
    ],
)
def test_built(monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], usable: bool, reason: str) -> None:
    monkeypatch.setattr(devices, "cuda_module", lambda: (fake_module(**facts), ""))
    status = dynprune_rt.cuda_status()
    assert status.built and status.usable == usable and reason in status.reason


def test_a_module_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: SimpleNamespace())

    def broken(name: str) -> None:
        raise ImportError("libstdc++ is too old")

    monkeypatch.setattr(devices.importlib, "import_module", broken)
    status = dynprune_rt.cuda_status()
    assert status.built and not status.usable and "libstdc++ is too old" in status.reason


@pytest.mark.parametrize(
    ("facts", "kernels", "reason"),
    [
        (DriverFacts(0, "no NVIDIA driver is installed"), "", "for Triton's kernels (Triton 3"),
        (DriverFacts(1, "", 12040, "Tesla T4", (7, 5)), "", "compute capability 7.5 is too old: 8.0"),
        (DriverFacts(2, "", 13000, "NVIDIA H200", (9, 0)), "triton", "9.0, 2 device(s); kernels of Triton 3"),
    ],
)
def test_triton_takes_the_place_of_the_module(
    monkeypatch: pytest.MonkeyPatch, facts: DriverFacts, kernels: str, reason: str
) -> None:
    monkeypatch.setattr(devices, "cuda_module", lambda: (None, "the CUDA module was not built"))
    monkeypatch.setattr(devices, "driver_facts", lambda: facts)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None if "_cu" in name else SimpleNamespace())
    monkeypatch.setattr(devices.importlib.metadata, "version", lambda name: "3.9.0")
    status = dynprune_rt.cuda_status()
    assert not status.built and status.usable == bool(kernels) and status.kernels == kernels
    assert reason in status.reason and "the CUDA module was not built" in status.reason


def test_the_driver_is_asked() -> None:
    assert driver_facts("libno-such-driver.so.1") == DriverFacts(0, "no NVIDIA driver is installed")
    libc = driver_facts("libc.so.6")  # a library that is no driver
    assert libc.devices == 0 and "not usable" in libc.reason


def test_load_says_why_not() -> None:
    status = dynprune_rt.cuda_status()
    if status.usable:
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError) as caught:
        dynprune_rt.load(Program(SimpleNamespace()), device="cuda")  # type: ignore[arg-type]
    assert status.reason in str(caught.value) and "device='cpu'" in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("dynprune_rt._cu") is None, reason="the CUDA module is not built")
def test_the_module_imports_without_a_driver() -> None:
    module, why = devices.cuda_module()
    assert module is not None, why
    count, reason, runtime, _, emulated = module.probe()
    assert runtime >= 12000 and not emulated and (count > 0) == (reason == "")
    if count == 0:
        with pytest.raises(RuntimeError, match="linear"):
            module.linear(0, 0, 0, 0, 0.0, 1.0, 1, 1, 1, 0)
