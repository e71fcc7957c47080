"""GPU kernels without a GPU: the CUDA sources on the CTA emulator, and Triton's in its interpreter."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dynprune_rt.backends.cuda.kernels import Kernels

ROOT = Path(__file__).resolve().parents[3]
FLAGS = ["-std=c++17", "-O2", "-w", "-U_FORTIFY_SOURCE", "-ffp-contract=off"]


@pytest.fixture(scope="session")
def compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler to build the emulated kernels with")
    return found


@pytest.fixture(scope="session")
def interpreted() -> Callable[[str], Kernels]:
    """The Triton kernels in Triton's interpreter (python_tests/conftest.py asks for it), for a precision."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from dynprune_rt.backends.triton_kernels.kernels import TritonKernels

    return lambda precision: TritonKernels(torch.device("cpu"), precision)


@pytest.fixture(scope="session")
def emulated(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The kernel sources that nvcc compiles, built for the CPU."""
    import pybind11

    target = tmp_path_factory.mktemp("emulated") / f"_cu_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [pybind11.get_include(), sysconfig.get_path("include"), str(ROOT / "csrc")]
    subprocess.run(
        [
            compiler, *FLAGS, "-fPIC", "-shared", "-fvisibility=hidden", "-DDYNPRUNE_CUDA_MODULE=_cu_emulated",
            *(f"-I{path}" for path in includes), str(ROOT / "csrc/bindings/cuda_module.cc"),
            "-x", "c++", str(ROOT / "csrc/cuda/kernels.cu"), "-o", str(target),
        ],
        check=True,
    )  # fmt: skip
    spec = importlib.util.spec_from_file_location("_cu_emulated", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_cu_emulated"] = module
    spec.loader.exec_module(module)
    return module
