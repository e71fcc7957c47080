"""What this installation can do on a GPU, and why not."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class CudaStatus:
    """``built``: the CUDA module is part of this installation; ``usable``: it can run here; ``reason``: in words."""

    built: bool
    usable: bool
    reason: str


def cuda_status() -> CudaStatus:
    """Report on the CUDA module without importing it."""
    if importlib.util.find_spec("dynprune_rt._cu") is None:
        return CudaStatus(False, False, "this build has CPU kernels only")
    return CudaStatus(True, False, "the CUDA module is present, but this version has no session for it")
