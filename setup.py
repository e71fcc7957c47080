"""Builds the C++ runtime with CMake from inside setuptools; everything else is in pyproject.toml.

Environment: DYNPRUNE_CUDA=AUTO|ON|OFF (AUTO builds the CUDA kernels where nvcc works),
DYNPRUNE_CUDA_ARCHS="80;90a-real", MAX_JOBS = compilers at a time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeExtension(Extension):
    """An extension whose sources are listed in CMakeLists.txt."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Configures and builds with the cmake on PATH or, failing that, the one from PyPI."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit("dynprune-rt needs CMake 3.20 or newer to build: pip install cmake")
        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDYNPRUNE_OUTPUT_DIR={output}",
        ]  # fmt: skip
        # Always passed, so that a value cached by an earlier build does not survive.
        for option, default in (("DYNPRUNE_CUDA", "AUTO"), ("DYNPRUNE_CUDA_ARCHS", "")):
            configure.append(f"-D{option}={os.environ.get(option, default)}")
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call(configure)
        subprocess.check_call([cmake, "--build", str(build), "--target", "python_modules", "-j", jobs])

    def copy_extensions_to_source(self) -> None:
        """For editable installs: setuptools knows of _C only; the rest of what CMake made goes along."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "dynprune_rt"
        package = ROOT / "dynprune_rt"
        for stale in package.glob("_cu.*.so"):
            stale.unlink()
        for file in (built / "_build_info.py", *built.glob("_cu.*.so")):
            shutil.copy2(file, package / file.name)


setup(ext_modules=[CMakeExtension("dynprune_rt._C")], cmdclass={"build_ext": CMakeBuild})
