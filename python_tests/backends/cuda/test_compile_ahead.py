"""The Triton kernels compile for GPUs that are not there; in a process of its own, without the interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from python_tests.backends.cuda.conftest import ROOT


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("arch", "precisions"), [("80", "bf16"), ("90", "fp16,tf32"), ("120", "bf16")])
def test_every_kernel_compiles(arch: str, precisions: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "dynprune_rt.backends.triton_kernels.compile_ahead"]
    command += ["--archs", arch, "--precisions", precisions]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"sm_{arch}") == len(precisions.split(","))
