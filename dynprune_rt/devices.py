"""What this installation can do on a GPU, and why not."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

#: Oldest GPUs that the kernels are written for: asynchronous copies and bf16 tensor cores (Ampere).
OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class CudaStatus:
    """``built``: the CUDA module is part of this installation; ``usable``: it can run here; ``reason``: in words."""

    built: bool
    usable: bool
    reason: str


def cuda_status() -> CudaStatus:
    """Report on the CUDA module, the driver, the first GPU and torch. Never raises; does not import torch."""
    module, why = cuda_module()
    if module is None:
        return CudaStatus(importlib.util.find_spec("dynprune_rt._cu") is not None, False, why)
    devices, reason, runtime, driver, _ = module.probe()
    if devices < 1:
        installed = f"the driver supports CUDA {_version(driver)}" if driver else "no NVIDIA driver is installed"
        return CudaStatus(True, False, f"{reason} (built with CUDA {_version(runtime)}; {installed})")
    try:
        name, major, minor, _ = module.device_facts(0)
    except RuntimeError as error:
        return CudaStatus(True, False, str(error))
    gpu = f"{name}, compute capability {major}.{minor}"
    if (major, minor) < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        return CudaStatus(True, False, f"{gpu} is too old: {oldest} (Ampere) or newer is needed")
    if importlib.util.find_spec("torch") is None:
        return CudaStatus(True, False, f"{gpu}; PyTorch, which owns the GPU's memory, is not installed")
    return CudaStatus(True, True, f"{gpu}, {devices} device(s), CUDA {_version(runtime)}")


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
