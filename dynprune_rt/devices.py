"""What this installation can do on a GPU, and why not."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from dynprune_rt.cuda_driver import driver_facts

#: Oldest GPUs that the kernels are written for: asynchronous copies and bf16 tensor cores (Ampere).
OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class CudaStatus:
    """What a session on a GPU would run on, and why not.

    ``built``: the CUDA module is part of this installation. ``usable``: a session can be opened. ``kernels``: whose
    kernels it uses: "cuda", "triton" where there is no CUDA module, "" where it cannot be opened. ``reason``: in words.
    """

    built: bool
    usable: bool
    reason: str
    kernels: str = ""


def cuda_status() -> CudaStatus:
    """Report on the CUDA module, Triton, the driver, the first GPU and torch. Never raises; does not import torch."""
    module, why = cuda_module()
    built = module is not None or importlib.util.find_spec("dynprune_rt._cu") is not None
    if module is None:
        return _triton_status(built, why)
    devices, reason, runtime, driver, _ = module.probe()
    if devices < 1:
        installed = f"the driver supports CUDA {_version(driver)}" if driver else "no NVIDIA driver is installed"
        return CudaStatus(built, False, f"{reason} (built with CUDA {_version(runtime)}; {installed})")
    try:
        name, major, minor, _ = module.device_facts(0)
    except RuntimeError as error:
        return CudaStatus(built, False, str(error))
    if missing := _missing(name, (major, minor)):
        return CudaStatus(built, False, missing)
    gpu = f"{name}, compute capability {major}.{minor}, {devices} device(s)"
    return CudaStatus(built, True, f"{gpu}; kernels of the CUDA module, CUDA {_version(runtime)}", "cuda")


def _triton_status(built: bool, why: str) -> CudaStatus:
    """Where there is no CUDA module, for the reason ``why``."""
    if importlib.util.find_spec("triton") is None:
        return CudaStatus(built, False, f"{why}; Triton, whose kernels would take their place, is not installed")
    version = importlib.metadata.version("triton")
    facts = driver_facts()
    if facts.devices < 1:
        return CudaStatus(built, False, f"{why}; for Triton's kernels (Triton {version}): {facts.reason}")
    if missing := _missing(facts.name, facts.capability):
        return CudaStatus(built, False, f"{why}; for Triton's kernels (Triton {version}): {missing}")
    gpu = f"{facts.name}, compute capability {facts.capability[0]}.{facts.capability[1]}, {facts.devices} device(s)"
    return CudaStatus(built, True, f"{gpu}; kernels of Triton {version}, since {why}", "triton")


def _missing(name: str, capability: tuple[int, int]) -> str:
    """Why this GPU cannot be used; empty if it can."""
    gpu = f"{name}, compute capability {capability[0]}.{capability[1]}"
    if capability < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        return f"{gpu} is too old: {oldest} (Ampere) or newer is needed"
    if importlib.util.find_spec("torch") is None:
        return f"{gpu}; PyTorch, which owns the GPU's memory, is not installed"
    return ""


def cuda_module() -> tuple[ModuleType | None, str]:
    """The module of CUDA kernels; or None, and why there is none."""
    # Asking for the file first: a failing import of an absent module reads like a circular import.
    if importlib.util.find_spec("dynprune_rt._cu") is None:
        return None, f"this installation has CPU kernels only: {_why_not_built()}"
    try:
        return importlib.import_module("dynprune_rt._cu"), ""
    except ImportError as error:
        return None, f"the CUDA module does not load: {error}"


def _why_not_built() -> str:
    try:
        from dynprune_rt import _build_info
    except ImportError:
        return "it was built without a record of CUDA"
    return str(_build_info.CUDA_REASON) or "its CUDA module is missing"


def _version(number: int) -> str:
    """As people write it: 13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"
