"""Bugs planted in the real kernel sources, one at a time: the emulator tests must notice each of them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from python_tests.backends.cuda.conftest import FLAGS, ROOT


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    right: str
    wrong: str
    test: str = "conv_gemm_test"


GEMM = "conv_gemm.cuh"
BUGS = [
    Bug("no barrier before a stage is read", GEMM, "wait_copies<kStages - 2>();\n      __syncthreads();",
        "wait_copies<kStages - 2>();"),
    Bug("no barrier between tiles", GEMM, "__syncthreads();  // and with the stages", ""),
    Bug("waits for one group too few", GEMM, "wait_copies<kStages - 2>();", "wait_copies<kStages - 1>();"),
    Bug("wrong swizzle on one side", GEMM, "a_stages + stage * kStageUnits + swizzle4(a_row + i * 32, a_unit)",
        "a_stages + stage * kStageUnits + (a_row + i * 32) * 4 + a_unit"),
    Bug("lanes of ldmatrix swapped", GEMM,
        "swizzle8(half * 16 + (lane & 15), warp_column / kChunk + j * 2 + (lane >> 4))",
        "swizzle8(half * 16 + (lane >> 1), warp_column / kChunk + j * 2 + (lane & 1))"),
    Bug("tail of a compact row trusted", "index_math.h", "return left < 0 ? 0 : left < 16 ? left : 16;",
        "return left <= 0 ? 0 : 16;"),
    Bug("gathered weights stored one step late", GEMM, "store_gathered(ahead % kStages);",
        "store_gathered(step % kStages);"),
    Bug("rows past the map not cut off", GEMM, "if (pixel >= pixels) continue;", ""),
    Bug("reads past the weights", GEMM, "weight_by_output(s, b_source[i], w.tap(s.kernel_w), w.chunk * kChunk)",
        "weight_by_output(s, b_source[i] + 1, w.tap(s.kernel_w), w.chunk * kChunk)"),
    Bug("padding reads the map", GEMM, "const bool inside = bytes > 0 &&",
        "const bool inside = bytes > 0 || bytes > 0 &&"),
    Bug("outputs that are not computed are stored", GEMM, " || computed.position()[output] == kAbsent)", ")"),
    Bug("tiles of another image", "index_math.h", "if (first[middle] <= tile) {", "if (first[middle] < tile) {"),
    Bug("list not padded with the zero row", "live_lists.cuh", "i < pitch; i += 32) index[i]",
        "i < count; i += 32) index[i]",
        "map_kernels_test"),
    Bug("partial sums read before the barrier", "pooling.cuh", "partial[warp * 32 + lane] = total;\n  __syncthreads();",
        "partial[warp * 32 + lane] = total;", "map_kernels_test"),
    Bug("equal elements in any order", "vectors.cuh", "if (a_nan || a == b) return i < j;",
        "if (a_nan || a == b) return i > j;", "map_kernels_test"),
]  # fmt: skip


def outcome(compiler: str, csrc: Path, test: str) -> int:
    """Exit status of an emulator test built from these sources; above 0 or below (a signal) it has noticed."""
    binary = csrc / test
    source = csrc / "tests" / "cuda" / f"{test}.cc"
    subprocess.run([compiler, *FLAGS, f"-I{csrc}", str(source), "-o", str(binary)], check=True)
    return subprocess.run([binary], capture_output=True, timeout=300).returncode


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc" / "cuda", csrc / "cuda")
    shutil.copytree(ROOT / "csrc" / "tests" / "cuda", csrc / "tests" / "cuda")
    return csrc


@pytest.mark.parametrize("test", ["conv_gemm_test", "map_kernels_test", "index_math_test", "emulator_test"])
def test_kernels_as_they_are(compiler: str, sources: Path, test: str) -> None:
    assert outcome(compiler, sources, test) == 0


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_noticed(compiler: str, sources: Path, bug: Bug) -> None:
    file = sources / "cuda" / bug.file
    text = file.read_text()
    assert text.count(bug.right) == 1, "the place of this bug has moved"
    file.write_text(text.replace(bug.right, bug.wrong))
    assert outcome(compiler, sources, bug.test) != 0
