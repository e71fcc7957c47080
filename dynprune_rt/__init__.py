"""dynprune-rt: run convolutional networks with per-instance channel gates, skipping what is off.

program = dynprune_rt.convert(model, example)   # needs torch
program.save("model.dpr")
session = dynprune_rt.load("model.dpr")         # needs numpy only
y = session.run(x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynprune_rt.errors import (
    ArtifactError,
    ConversionError,
    DeviceError,
    DynpruneError,
    InputError,
    QuantizationError,
    UnsupportedOperatorError,
    VerificationError,
)

if TYPE_CHECKING:
    from dynprune_rt.conversion import convert
    from dynprune_rt.devices import CudaStatus, cuda_status
    from dynprune_rt.profile import Profile
    from dynprune_rt.program import Program
    from dynprune_rt.quantization import quantize
    from dynprune_rt.session import Session, available_isas, cpu_isa, load
    from dynprune_rt.torch_module import TorchModule

__version__ = "0.1.0"

#: Public names that are imported when first used, so that importing the package stays cheap and the
#: run time never needs torch.
_LAZY = {
    "convert": "dynprune_rt.conversion",
    "CudaStatus": "dynprune_rt.devices",
    "cuda_status": "dynprune_rt.devices",
    "Profile": "dynprune_rt.profile",
    "Program": "dynprune_rt.program",
    "Session": "dynprune_rt.session",
    "TorchModule": "dynprune_rt.torch_module",
    "available_isas": "dynprune_rt.session",
    "cpu_isa": "dynprune_rt.session",
    "load": "dynprune_rt.session",
    "quantize": "dynprune_rt.quantization",
}

__all__ = [
    "ArtifactError",
    "ConversionError",
    "CudaStatus",
    "DeviceError",
    "DynpruneError",
    "InputError",
    "Profile",
    "Program",
    "QuantizationError",
    "Session",
    "TorchModule",
    "UnsupportedOperatorError",
    "VerificationError",
    "available_isas",
    "convert",
    "cpu_isa",
    "cuda_status",
    "load",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value  # also where a submodule of the same name would otherwise take its place
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
