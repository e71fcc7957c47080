"""What NVIDIA's driver says about this machine's GPUs, asked without torch and without the CUDA module."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

#: Attributes of a device, as cuda.h numbers them.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class DriverFacts:
    """``devices`` 0: none can be used, for ``reason``. The other facts are those of the first device."""

    devices: int
    reason: str
    version: int = 0
    name: str = ""
    capability: tuple[int, int] = (0, 0)


def driver_facts(library: str | None = None) -> DriverFacts:
    """Ask the driver. Never raises."""
    name = library or ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return DriverFacts(0, "no NVIDIA driver is installed")
    try:
        return _ask(cuda)
    except AttributeError as error:
        return DriverFacts(0, f"the NVIDIA driver is not usable: {error}")


def _ask(cuda: ctypes.CDLL) -> DriverFacts:
    if (error := cuda.cuInit(0)) != 0:
        return DriverFacts(0, f"the NVIDIA driver finds no usable GPU (error {error})")
    number = ctypes.c_int()

    def integer(call: str, *arguments: int) -> int:
        return int(number.value) if getattr(cuda, call)(ctypes.byref(number), *arguments) == 0 else 0

    version = integer("cuDriverGetVersion")
    count = integer("cuDeviceGetCount")
    if count == 0:
        return DriverFacts(0, "no CUDA device", version)
    device = integer("cuDeviceGet", 0)
    text = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(text, len(text), device)
    capability = (
        integer("cuDeviceGetAttribute", _MAJOR, device),
        integer("cuDeviceGetAttribute", _MINOR, device),
    )
    return DriverFacts(count, "", version, text.value.decode(errors="replace"), capability)
