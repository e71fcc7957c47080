"""Bugs planted in the real kernel sources, one at a time: the emulator tests must notice each of them."""

from __future__ import annotations

import os
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
    full: bool = False


GEMM, TILES = "conv_gemm.cuh", "gemm_tiles.cuh"
BUGS = [
    Bug("no barrier before a stage is read", GEMM, "wait_copies<kStages - 2>();\n        __syncthreads();",
        "wait_copies<kStages - 2>();"),
    Bug("no barrier between tiles", GEMM, "__syncthreads();  // all threads are done with the stages, and", "//"),
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
    Bug("rows past the map not cut off", TILES, "pixel[r] = row >= rows ? -1 : ", "pixel[r] = "),
    Bug("reads past the weights", GEMM, "weight_by_output(s, b_source[i], w.tap(s.kernel_w), w.chunk * kUnit)",
        "weight_by_output(s, b_source[i] + 1, w.tap(s.kernel_w), w.chunk * kUnit)"),
    Bug("padding reads the map", GEMM, "const bool inside = bytes > 0 &&",
        "const bool inside = bytes > 0 || bytes > 0 &&"),
    Bug("outputs that are not computed are stored", TILES, " || computed.position()[output] == kAbsent ?", " ?"),
    Bug("segments added up out of order", TILES, "for (int segment = 1; segment < p.segments; ++segment) {",
        "for (int segment = p.segments - 1; segment > 0; --segment) {"),
    Bug("segments that leave steps out", GEMM, "segment_begin(segment + 1, p.segments, steps) - begin;",
        "segment_begin(segment + 1, p.segments, steps) - begin - (segment > 0);"),
    Bug("dense tiles read the first image only", GEMM, "row_of<T>(p.x, row < rows ? of_image : 0, 0)",
        "row_of<T>(p.x, image, 0)"),
    Bug("fp32 words at the wrong place", GEMM, "words[swizzle16(row + 4, column >> 2) * 4 + (column & 3)]",
        "words[swizzle16(row + 4, column >> 2) * 4 + (column & 1)]"),
    Bug("fp32 not rounded to tf32", GEMM, "a[i][e] = operand<T>(a[i][e]);", "{}"),
    Bug("tiles of another image", "index_math.h", "if (first[middle] <= tile) {", "if (first[middle] < tile) {"),
    Bug("list not padded with the zero row", "live_lists.cuh", "i < pitch; i += 32) index[i]",
        "i < count; i += 32) index[i]",
        "map_kernels_test"),
    Bug("partial sums read before the barrier", "pooling.cuh", "partial[warp * 32 + lane] = total;\n  __syncthreads();",
        "partial[warp * 32 + lane] = total;", "map_kernels_test"),
    Bug("a tile reduced before all of it is kept", TILES, "  __syncthreads();\n  reduce_tile<L>", "  reduce_tile<L>"),
    Bug("a tile kept over stages that are being read", TILES,
        "  __syncthreads();  // all threads are done with what lay there\n", "", full=True),
    Bug("reduces what was not rounded yet", TILES, "+ e] = to_float(result[e]);", "+ e] = v;", full=True),
    Bug("rows past the map are reduced", TILES, "left = gemm_rows<L>(p) - first_row;", "left = kGroupPixels;"),
    Bug("groups of another image", TILES, "(static_cast<size_t>(i) * p.batch + image) * group_count",
        "(static_cast<size_t>(i) * p.batch + at.image) * group_count"),
    Bug("every group added to the first", TILES, "? first_row - image * pixels : first_row) / kGroupPixels;",
        "? first_row - image * pixels : first_row) / kTile;", full=True),
    Bug("a reduction's pixels in another order", TILES, "[&](int row) { return kept[(part + row) * kKeptPitch",
        "[&](int row) { return kept[(part + (row < left - 1 ? row ^ 1 : row)) * kKeptPitch", full=True),
    Bug("group results of channels that were not computed", "pooling.cuh",
        "set_view(p.computed, image, p.x.channels).position()[channel] != kAbsent)", "true)"),
    Bug("tails of groups reduced", "spatial_reduction.cuh", "if (first + i < left) chain", "chain",
        "map_kernels_test", full=True),
    Bug("equal elements in any order", "vectors.cuh", "if (a_nan || a == b) return i < j;",
        "if (a_nan || a == b) return i > j;", "map_kernels_test"),
]  # fmt: skip


def outcome(compiler: str, csrc: Path, test: str, optimise: str = "-O0") -> int:
    """Exit status of an emulator test built from these sources; above 0 or below (a signal) it has noticed."""
    binary = csrc / test
    source = csrc / "tests" / "cuda" / f"{test}.cc"
    subprocess.run([compiler, *FLAGS, optimise, f"-I{csrc}", str(source), "-o", str(binary)], check=True)
    environment = {**os.environ, "DYNPRUNE_FAIL_FAST": "1"}
    return subprocess.run([binary], capture_output=True, timeout=300, env=environment).returncode


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc" / "cuda", csrc / "cuda")
    shutil.copytree(ROOT / "csrc" / "tests" / "cuda", csrc / "tests" / "cuda")
    return csrc


@pytest.mark.parametrize("test", ["conv_gemm_test", "map_kernels_test"])
def test_kernels_as_they_are(compiler: str, sources: Path, test: str) -> None:
    assert outcome(compiler, sources, test, "-O1") == 0


_PARAMETERS = [pytest.param(bug, marks=[pytest.mark.full] if bug.full else [], id=bug.name) for bug in BUGS]


@pytest.mark.parametrize("bug", _PARAMETERS)
def test_planted_bug_is_noticed(compiler: str, sources: Path, bug: Bug) -> None:
    file = sources / "cuda" / bug.file
    text = file.read_text()
    assert text.count(bug.right) == 1, "the place of this bug has moved"
    file.write_text(text.replace(bug.right, bug.wrong))
    assert outcome(compiler, sources, bug.test) != 0
