"""Sessions: arguments, batches, threads, concurrency, instruction sets, and the cost of importing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import dynprune_rt as dp
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph
from dynprune_rt.ir.types import BATCH, TensorType

RNG = np.random.default_rng(5)


def gated_program() -> dp.Program:
    """x [N,3,12,12] -> gated conv -> conv -> mean, and the index of the largest."""
    b = Builder(Graph())
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 3, 12, 12)))
    pooled = b.op("spatial_reduce", x, kind="mean")
    gate = b.op("relu", b.op("linear", pooled, b.constant("g", RNG.standard_normal((16, 3)).astype(np.float32))))
    w1 = b.constant("w1", RNG.standard_normal((16, 3, 3, 3)).astype(np.float32))
    h = b.op("conv2d", x, w1, None, gate, padding=(1, 1, 1, 1), inner=(0.0, np.inf), name="conv1")
    h.live = b.op("ne", gate, b.constant("zero", np.float32(0)))
    w2 = b.constant("w2", RNG.standard_normal((5, 16, 3, 3)).astype(np.float32))
    y = b.op("spatial_reduce", b.op("conv2d", h, w2, padding=(1, 1, 1, 1), name="conv2"), kind="mean")
    b.graph.outputs = [y, b.op("argmax", y, dim=1, keepdim=False)]
    b.graph.sort()
    return dp.Program(b.graph)


@pytest.fixture(scope="module")
def program() -> dp.Program:
    return gated_program()


@pytest.fixture(scope="module")
def session(program: dp.Program) -> dp.Session:
    return dp.load(program, threads=1)


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, 12, 12)).astype(np.float32)


def test_output_kinds_follow_the_input(session):
    y, best = session.run(images(2))
    assert isinstance(y, np.ndarray) and y.dtype == np.float32 and y.shape == (2, 5)
    assert best.dtype == np.int64
    np.testing.assert_array_equal(best, y.argmax(1))
    yt, bt = session.run(torch.from_numpy(images(2)))
    assert isinstance(yt, torch.Tensor) and bt.dtype == torch.int64
    np.testing.assert_array_equal(yt.numpy(), y)


def test_empty_batch_gives_empty_outputs(session):
    y, best = session.run(images(0))
    assert y.shape == (0, 5) and best.shape == (0,)


def test_strided_input_is_read_correctly(session):
    x = images(4)
    want = session.run(x)[0]
    view = np.repeat(x, 2, axis=3)[:, :, :, ::2]
    assert not view.flags.c_contiguous
    np.testing.assert_array_equal(session.run(view)[0], want)
    channels_last = torch.from_numpy(x).to(memory_format=torch.channels_last)
    np.testing.assert_array_equal(session.run(channels_last)[0].numpy(), want)
    np.testing.assert_array_equal(session.run(x[::-1])[0], want[::-1])


def test_out_receives_the_result(session):
    x = images(3)
    want = session.run(x)
    out = (np.empty((3, 5), np.float32), np.empty(3, np.int64))
    got = session.run(x, out=out)
    assert got[0] is out[0]
    np.testing.assert_array_equal(out[0], want[0])
    np.testing.assert_array_equal(out[1], want[1])
    wide = np.empty((3, 10), np.float32)
    session.run(x, out=(wide[:, ::2], out[1]))
    np.testing.assert_array_equal(wide[:, ::2], want[0])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 12, 13), np.float32), r"shape \[1, 3, 12, 13\], expected float32 \[N, 3, 12, 12\]"),
        (np.zeros((3, 12, 12), np.float32), r"add the batch dimension"),
        (np.zeros((1, 3, 12, 12)), r"dtype float64"),
        (np.zeros((1, 3, 12, 12), np.uint8), r"dtype uint8"),
        (np.float32(1), r"must be a numpy array"),
        ([[1.0]], r"must be a numpy array"),
        ((np.zeros((1, 3, 12, 12), np.float32),) * 2, r"takes 1 input\(s\), got 2"),
        (torch.zeros(1, 3, 12, 12, dtype=torch.float16), r"dtype float16"),
        (torch.zeros(1, 3, 12, 12, device="meta"), r"device meta"),
    ],
)
def test_bad_inputs_are_named(session, x, message):
    with pytest.raises(dp.InputError, match=message):
        session.run(x)


def test_bad_out_is_named(session):
    x = images(2)
    good = np.empty(2, np.int64)
    read_only = np.empty((2, 5), np.float32)
    read_only.flags.writeable = False
    for out, message in [
        ((np.empty((2, 4), np.float32), good), r"float32\[2, 5\] array, got float32\[2, 4\]"),
        ((np.empty((2, 5)), good), r"got float64"),
        ((None, good), r"got NoneType"),
        (np.empty((2, 5), np.float32), r"2 output\(s\), out holds 1"),
        ((read_only, good), r"read-only"),
    ]:
        with pytest.raises(dp.InputError, match=message):
            session.run(x, out=out)


@pytest.mark.parametrize("threads", [-1, 100000, 1.5, "2", None, True])
def test_bad_thread_counts(program, threads):
    with pytest.raises(dp.InputError, match="threads"):
        dp.load(program, threads=threads)


def test_default_threads_are_the_cores_of_the_process(program):
    assert dp.load(program).threads == len(os.sched_getaffinity(0))


def test_unknown_device(program):
    with pytest.raises(dp.DeviceError, match="'tpu'"):
        dp.load(program, device="tpu")


def test_missing_file(tmp_path):
    with pytest.raises(dp.ArtifactError, match=r"none\.dpr"):
        dp.load(tmp_path / "none.dpr")


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_saved_program_gives_the_same_bits(program, session, tmp_path, threads):
    path = tmp_path / "model.dpr"
    program.save(path)
    again = dp.load(path, threads=threads)
    for skip in (True, False):
        np.testing.assert_array_equal(again.run(images(5), skip=skip)[0], session.run(images(5))[0])


def test_more_threads_than_images_and_cores(program, session):
    many = dp.load(program, threads=16)
    np.testing.assert_array_equal(many.run(images(3))[0], session.run(images(3))[0])


def test_concurrent_runs_keep_their_results_apart(program, session):
    shared = dp.load(program, threads=2)
    wrong: list[int] = []

    def worker(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((2, 3, 12, 12)).astype(np.float32)
        want = session_results[seed]
        for _ in range(100):
            if not np.array_equal(shared.run(x)[0], want):
                wrong.append(seed)

    session_results = {}
    for seed in range(6):
        x = np.random.default_rng(seed).standard_normal((2, 3, 12, 12)).astype(np.float32)
        session_results[seed] = session.run(x)[0]
    workers = [threading.Thread(target=worker, args=(seed,)) for seed in range(6)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_profile_counts_what_was_executed(session):
    x = images(3)
    profile = session.profile(x)
    rows = {row["name"]: row for row in profile.rows}
    live = session.live_channels(x)
    assert rows["conv1"]["total_out"] == 16 and rows["conv2"]["total_in"] == 16
    assert rows["conv1"]["live_out"] == rows["conv2"]["live_in"] == live["conv1"].mean()
    assert rows["conv1"]["macs"] == 3 * live["conv1"].sum() * 9 * 144
    assert rows["conv2"]["macs"] == 5 * live["conv1"].sum() * 9 * 144
    assert 0 < live["conv1"].sum() < 3 * 16, "the example has to have live and dead channels"
    assert profile.dense_macs == 3 * (16 * 3 * 9 * 144 + 5 * 16 * 9 * 144 + 16 * 3)
    assert session.profile(x, skip=False).macs == profile.dense_macs
    with pytest.raises(dp.InputError, match="at least one image"):
        session.profile(images(0))


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16"])
def test_every_usable_isa_agrees(program, session, tmp_path, isa):
    path = tmp_path / "model.dpr"
    program.save(path)
    np.save(tmp_path / "x.npy", images(3))
    code = (
        "import numpy as np, dynprune_rt as dp;"
        f"s = dp.load({str(path)!r}, threads=1); assert s.isa == {isa!r};"
        f"np.save({str(tmp_path / 'y.npy')!r}, s.run(np.load({str(tmp_path / 'x.npy')!r}))[0])"
    )
    result = run_python(code, DYNPRUNE_RT_ISA=isa)
    if isa not in dp.available_isas():
        assert "DeviceError" in result.stderr and "cannot run" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), session.run(images(3))[0], atol=1e-4)


def test_unknown_isa_is_refused():
    result = run_python("import dynprune_rt; dynprune_rt.cpu_isa()", DYNPRUNE_RT_ISA="sse9")
    assert "DeviceError" in result.stderr and "sse9" in result.stderr and "usable here" in result.stderr


def test_running_needs_neither_torch_nor_the_conversion_code(program, tmp_path):
    path = tmp_path / "model.dpr"
    program.save(path)
    code = f"""
import sys, numpy as np, dynprune_rt as dp
session = dp.load({str(path)!r})
x = np.zeros((1, 3, 12, 12), np.float32)
session.run(x)
print(session.profile(x))
ours = tuple(f"dynprune_rt.{{name}}" for name in ("frontend", "passes", "methods", "models"))
loaded = [m for m in sys.modules if m.split(".")[0] in ("torch", "safetensors", "onnx") or m.startswith(ours)]
assert not loaded, loaded
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
