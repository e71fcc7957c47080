"""Checks what nvcc makes of the kernels, without a GPU: warnings, registers, spills, and the machine code.

Usage: python csrc/tests/cuda/check_compiled.py [--archs 80,90a,120]
Needs nvcc on PATH. The machine code is read with cuobjdump where there is one (on PATH, or in Triton's wheel).
Exit status 0: everything that ran passed; 1: something failed; 2: nothing ran, as there is no nvcc.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ROOT / "csrc" / "cuda" / "kernels.cu"
BUDGET: dict[str, int] = json.loads((ROOT / "csrc" / "cuda" / "register_budget.json").read_text())
ARCHITECTURE_BUDGET: dict[str, dict[str, int]] = {"sm_120": {"conv_gemm_kernel": 168}}

#: Instructions that the tensor-core convolution must hold at least so often per instance: products, 16-byte
#: asynchronous copies, matrix loads. Of fp32 (tf32 products), rows of outputs are read as words.
REQUIRED = {r"\bHMMA\.16816": 16, r"\bLDGSTS\.E\.BYPASS\.128": 4, r"\bLDSM\.16\.M": 6}
REQUIRED_TF32 = {r"\bHMMA\.1688\.F32\.TF32": 16, r"\bLDGSTS\.E\.BYPASS\.128": 4, r"\bLDSM\.16\.M": 4}
#: Integer divisions show as reciprocals; more than these would stand inside the loop over K.
MOST_RECIPROCALS = 16


def compile_for(arch: str, folder: Path) -> tuple[Path, str]:
    """One cubin, and what ptxas says about it. Raises CalledProcessError where it does not compile."""
    cubin = folder / f"kernels_{arch}.cubin"
    command = [
        "nvcc", "-O3", "-std=c++17", "-fmad=false", f"-I{ROOT / 'csrc'}", "-Xptxas", "-v", "-Werror", "all-warnings",
        f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin", "-o", str(cubin), str(KERNELS),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"sm_{arch} does not compile:\n{done.stdout}{done.stderr}")
    return cubin, done.stderr + done.stdout


def kernel_name(mangled: str) -> str:
    """conv_gemm_kernel for _ZN8dynprune4cuda16conv_gemm_kernelI6__half...; the symbol itself if it is none of ours."""
    return next((name for name in sorted(BUDGET, key=len, reverse=True) if name in mangled), mangled)


def check_resources(arch: str, log: str) -> list[str]:
    """Spills, stack frames, registers above the budget, kernels without a budget."""
    problems, seen = [], set()
    pattern = (
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r"\s+ptxas info\s+: Used (\d+) registers"
    )
    for mangled, *numbers in re.findall(pattern, log):
        stack, stores, loads, registers = map(int, numbers)
        name = kernel_name(mangled)
        seen.add(name)
        if stack or stores or loads:
            problems.append(f"sm_{arch} {mangled}: {stack} bytes of stack, {stores}+{loads} bytes spilled")
        if name not in BUDGET:
            problems.append(f"sm_{arch} {mangled}: no register budget")
        elif registers > (most := ARCHITECTURE_BUDGET.get(f"sm_{arch}", {}).get(name, BUDGET[name])):
            problems.append(f"sm_{arch} {mangled}: {registers} registers, budget {most}")
    problems += [f"sm_{arch}: {name} was not compiled" for name in BUDGET if name not in seen]
    return problems


def find_cuobjdump() -> str | None:
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    bundled = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else None


def check_machine_code(arch: str, cubin: Path, cuobjdump: str) -> list[str]:
    done = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True)
    functions = re.split(r"\n\s*Function : ", done.stdout)[1:]
    problems = [] if functions else [f"sm_{arch}: no machine code"]
    for text in functions:
        mangled = text.split()[0]
        for local in (r"\bLDL\b", r"\bSTL\b"):
            if re.search(local, text):
                problems.append(f"sm_{arch} {mangled}: local memory")
        name = kernel_name(mangled)
        if not name.startswith("conv_gemm_kernel"):
            continue
        required = REQUIRED_TF32 if name == "conv_gemm_kernelIf" else REQUIRED
        for instruction, least in required.items():
            if (count := len(re.findall(instruction, text))) < least:
                problems.append(f"sm_{arch} {mangled}: {count} x {instruction}, at least {least} expected")
        if (count := len(re.findall(r"\bMUFU\.RCP\b", text))) > MOST_RECIPROCALS:
            problems.append(f"sm_{arch} {mangled}: {count} integer divisions")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default="80,90a,120")
    archs = parser.parse_args().archs.split(",")
    if shutil.which("nvcc") is None:
        print("NOT RUN: no nvcc on PATH; registers, spills and machine code are unchecked")
        return 2
    cuobjdump = find_cuobjdump()

    def problems_of(arch: str, folder: Path) -> list[str]:
        try:
            cubin, log = compile_for(arch, folder)
        except RuntimeError as error:
            return [str(error)]
        found = check_resources(arch, log)
        if cuobjdump is not None:
            found += check_machine_code(arch, cubin, cuobjdump)
        print(f"sm_{arch}: checked")
        return found

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [p for found in pool.map(lambda arch: problems_of(arch, Path(folder)), archs) for p in found]
    if cuobjdump is None:
        print("NOT RUN: no cuobjdump (the CUDA toolkit and Triton's wheel have one); machine code is unchecked")
    print("\n".join(problems) or "passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
