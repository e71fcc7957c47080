"""Facts about the machine and the software that a figure depends on."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import dynprune_rt

#: Distributions whose versions are recorded where installed.
DISTRIBUTIONS = ("numpy", "torch", "onnxruntime", "openvino", "onnx", "triton", "pybind11")


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> list[int]:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def distinct_cores() -> list[int]:
    """The usable logical cores, one of every physical core first, then their hyper-thread siblings."""
    first: list[int] = []
    siblings: list[int] = []
    seen = set()
    for core in usable_cores():
        key = str(core)
        with suppress(OSError):
            key = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()
        (siblings if key in seen else first).append(core)
        seen.add(key)
    return first + siblings


def versions() -> dict[str, str]:
    """Versions of the installed distributions that matter for speed."""
    found = {"dynprune-rt": dynprune_rt.__version__}
    for name in DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine_facts() -> dict[str, Any]:
    """CPU, cores, memory, operating system, Python and package versions; JSON-like."""
    memory = 0
    with suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "logical_cores": os.cpu_count() or 0,
        "usable_cores": usable_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "versions": versions(),
    }
