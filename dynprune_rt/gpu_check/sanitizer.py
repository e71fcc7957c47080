"""The kernel grid under NVIDIA's compute-sanitizer, in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from dynprune_rt.gpu_check.checks import NotRun

TOOLS: Final = ("memcheck", "racecheck", "synccheck")
#: For each tool.
SECONDS: Final = 30


def sanitize(
    tool: str,
    device: str,
    which: Callable[[str], str | None] = shutil.which,
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
) -> dict[str, Any]:
    """Small shapes of the grid under one tool. Raises NotRun where there is no compute-sanitizer."""
    sanitizer = which("compute-sanitizer")
    if sanitizer is None:
        raise NotRun("no compute-sanitizer on PATH (it comes with the CUDA toolkit)")
    grid = [sys.executable, "-m", "dynprune_rt.gpu_check", "--section", "small", "--device", device]
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *grid]
    try:
        done = run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise NotRun(f"stopped after {SECONDS} s") from None
    except OSError as error:
        raise NotRun(f"compute-sanitizer does not start: {error}") from None
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise AssertionError("\n".join(lines[-15:]) or f"exit status {done.returncode}")
    if "ERROR SUMMARY: 0 errors" not in done.stdout and "RACECHECK SUMMARY: 0 hazards" not in done.stdout:
        raise NotRun("compute-sanitizer ended without a summary")
    return {"errors": 0}
