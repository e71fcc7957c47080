"""Compiles every Triton kernel for GPUs that are not there: python -m dynprune_rt.backends.triton_kernels.compile_ahead

Calls each operation on memory of the CPU with a launcher that compiles instead of starting, so that what is compiled is
what a session would launch. Prints one line per architecture; exit status 1 if something does not compile.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dynprune_rt.backends.cuda.maps import (
    BY_INPUT,
    BY_OUTPUT,
    DENSE,
    PRECISIONS,
    TWO_SIDED,
    ChannelSet,
    ConvMode,
    DeviceMap,
    Epilogue,
)
from dynprune_rt.backends.cuda.weights import by_input, by_output, grouped
from dynprune_rt.backends.triton_kernels.kernels import TritonKernels

ARCHITECTURES: Final = (80, 90, 120)
_TYPES: Final = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int16: "*i16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Compiler:
    """A launcher that compiles, each signature once. ``compiled``: facts about what came of each."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)
        self._seen: set[Any] = set()
        self.compiled: list[dict[str, Any]] = []

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Mapping[str, int]
    ) -> None:
        signature, constants, hints = {}, {}, {}
        for position, parameter in enumerate(kernel.params):
            value = arguments[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[(position,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = _TYPES[value.dtype]
                hints[(position,)] = [["tt.divisibility", 16]]  # torch's allocations are aligned
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        key = (kernel.__name__, tuple(signature.items()), tuple(constants.items()))
        if key in self._seen:
            return
        self._seen.add(key)
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=hints)
        built = triton.compile(source, target=self._target, options={**options, "enable_fp_fusion": False})
        ptx = built.asm["ptx"]
        self.compiled.append(
            {
                "kernel": kernel.__name__,
                "shared": built.metadata.shared,
                "tensor cores": bool(re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", ptx)),
                "bytes": len(built.asm["cubin"]),
            }
        )


def compile_all(architecture: int, precision: str) -> list[dict[str, Any]]:
    """Every kernel for one architecture and precision: in fp16 every layout, in the others the gathering one."""
    compiler = Compiler(architecture)
    kernels = TritonKernels(torch.device("cpu"), precision, compiler)
    mask = torch.ones((2, 32), dtype=torch.bool)
    some = kernels.channel_set(mask)
    planes, weight = torch.zeros(2, 32, 6, 6), torch.zeros(32, 32, 3, 3).numpy()
    infinite = (float("-inf"), float("inf"))
    x, packed = kernels.pack(planes), kernels.pack(planes, some)
    kernels.unpack(packed)
    vector = torch.zeros(2, 32)
    full = Epilogue(vector[0].contiguous(), vector, vector, packed, infinite, infinite)
    plain = Epilogue(None, None, None, None, infinite, infinite)
    geometry = (3, 3, 1, 1, 1, 1, 1, 1)
    cases: list[tuple[int, DeviceMap, ChannelSet | None, Epilogue]]
    cases = [(BY_INPUT, packed, some, full), (TWO_SIDED, packed, some, plain)]
    if precision == "fp16":
        cases += [(BY_OUTPUT, x, some, full), (DENSE, x, None, full)]
    for layout, given, computed, epilogue in cases:
        table = (by_output if layout == BY_OUTPUT else by_input)(weight, kernels.dtype)
        y = kernels.new_map(2, 32, (6, 6), some)
        made = kernels.group_results(y, ("mean",), ConvMode(layout), computed)
        kernels.conv_gemm(given, y, computed, table, ConvMode(layout), geometry, epilogue, made)
    if precision != "fp16":
        return compiler.compiled
    y = kernels.new_map(2, 32, (6, 6), some)
    kernels.conv_direct(packed, y, some, grouped(weight[:, :1]), 32, geometry, full)
    kernels.pass_through(y, some, full)
    for kind, window in (("max", (3, 3, 1, 1, 1, 1, 1, 1, 1, 1)), ("avg", ())):
        kernels.pool2d(packed, y, kind, window, False, 0)
    for kind in ("mean", "max_abs", "min", "l2"):
        kernels.spatial_reduce(packed, kind)
        kernels.spatial_reduce(packed, kind, kernels.group_results(packed, (kind,), ConvMode(TWO_SIDED), some))
    for kind in ("sum", "max", "prod"):
        kernels.reduce(vector, kind, (1,), False)
    kernels.linear(vector, torch.zeros(16, 32), vector[0, :16].contiguous(), infinite)
    for descending in (False, True):
        kernels.sort(vector, 1, 8, descending)
    return compiler.compiled


def main(arguments: list[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    args = parser.parse_args(arguments)
    archs = [int(arch) for arch in args.archs.split(",")]
    for arch, precision in itertools.product(archs, args.precisions.split(",")):
        try:
            built = compile_all(arch, precision)
        except Exception as error:
            print(f"sm_{arch} {precision}: FAILED: {type(error).__name__}: {error}")
            return 1
        products = [row for row in built if row["kernel"] == "conv_gemm_kernel"]
        if not all(row["tensor cores"] for row in products):
            print(f"sm_{arch} {precision}: FAILED: a convolution without tensor cores")
            return 1
        shared = max(row["shared"] for row in built)
        print(f"sm_{arch} {precision}: {len(built)} kernels, at most {shared} bytes of shared memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
