"""Whole networks through the CUDA session, its kernels on the emulator, against the CPU session."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dynprune_rt
from dynprune_rt import torch_module
from dynprune_rt.backends.cuda import session as cuda_session
from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.native_kernels import NativeKernels
from dynprune_rt.backends.cuda.session import CudaSession
from dynprune_rt.backends.cuda.times_cache import CACHE_VARIABLE
from dynprune_rt.errors import DeviceError, InputError
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.program import Program
from python_tests.backends.cuda.fake_cuda import FakeCuda, FakeEvent
from python_tests.backends.cuda.networks import images, network, relative_error

CPU = torch.device("cpu")

#: Rounding of activations along a network of about ten layers.
TOLERANCE = {"fp16": 4e-3, "bf16": 4e-2}


def session(program: Program, emulated: ModuleType, precision: str = "fp16") -> CudaSession:
    return CudaSession(program, NativeKernels(emulated, CPU, precision))


@pytest.mark.parametrize("gate", ["laudnet", None])
def test_network_against_the_cpu(emulated: ModuleType, gate: str | None) -> None:
    program = network("cifar_resnet20", gate, 12)
    x = images(2, 12)
    on_cpu = dynprune_rt.load(program)
    expected, live = on_cpu.run(x), on_cpu.live_channels(x)
    gpu = session(program, emulated)
    counted = gpu.live_channels(x)
    # No gate of this network is so near its threshold for these images that the rounding of fp16 could decide it.
    assert counted.keys() == live.keys()
    assert all(np.array_equal(counted[layer], live[layer]) for layer in live)
    assert relative_error(gpu.run(x), expected) < TOLERANCE["fp16"]


def test_triton_kernels_give_the_same_network(
    emulated: ModuleType, interpreted: Callable[[str], Kernels], program: Program
) -> None:
    x = images(2, 8)
    in_triton, in_cuda = CudaSession(program, interpreted("fp16")), session(program, emulated)
    live, expected = in_triton.live_channels(x), in_cuda.live_channels(x)
    assert all(np.array_equal(live[layer], expected[layer]) for layer in expected)
    assert relative_error(in_triton.run(x), in_cuda.run(x)) < TOLERANCE["fp16"]


@pytest.fixture(scope="module")
def program() -> Program:
    return network("cifar_resnet20", "laudnet", 8)


@pytest.fixture(scope="module")
def gpu(program: Program, emulated: ModuleType) -> CudaSession:
    return session(program, emulated)


def test_bf16(emulated: ModuleType) -> None:
    program = network("cifar_resnet20", None, 8)  # in bf16 many a gate would fall on the other side
    x = images(2, 8)
    expected = dynprune_rt.load(program).run(x)
    assert relative_error(session(program, emulated, "bf16").run(x), expected) < TOLERANCE["bf16"]


def test_skip_false_agrees(gpu: CudaSession) -> None:
    x = images(2, 8)
    assert relative_error(gpu.run(x, skip=False), gpu.run(x)) < TOLERANCE["fp16"]


def test_an_image_does_not_depend_on_its_batch(gpu: CudaSession) -> None:
    x = images(3, 8)
    together = gpu.run(x)
    for i in range(3):
        np.testing.assert_array_equal(gpu.run(x[i : i + 1]), together[i : i + 1])


def test_what_convolutions_reduce_for_gates_changes_no_bit(
    program: Program, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, x, made = session(program, emulated), images(2, 8), []
    find = gpu._kernels.group_results

    def counted(*given: Any) -> Any:
        made.append(find(*given))
        return made[-1]

    monkeypatch.setattr(gpu._kernels, "group_results", counted)
    fused = gpu.run(x)
    assert any(made), "no convolution of this network reduces its output"
    monkeypatch.setattr(gpu._kernels, "fused_reductions", 0)
    made.clear()
    np.testing.assert_array_equal(gpu.run(x), fused)
    assert not any(made)


def test_kinds_of_arrays(gpu: CudaSession) -> None:
    x = images(2, 8)
    expected = gpu.run(x)
    assert isinstance(expected, np.ndarray)
    result = gpu.run(torch.from_numpy(x))
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), expected)
    out = np.empty_like(expected)
    assert gpu.run(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    reversed_view = np.ascontiguousarray(x[:, :, :, ::-1])[:, :, :, ::-1]
    np.testing.assert_array_equal(gpu.run(reversed_view), expected)


def test_an_empty_batch(gpu: CudaSession) -> None:
    assert gpu.run(images(0, 8)).shape == (0, 10)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(1, 9), r"shape \[1, 3, 9, 9\]"),
        (images(1, 8)[0], "add the batch dimension"),
        (images(1, 8).astype(np.float64), "dtype torch.float64"),
        ([[1.0]], "got list"),
        ((images(1, 8), images(1, 8)), r"takes 1 input\(s\), got 2"),
        (torch.zeros(1, 3, 8, 8, device="meta"), "device meta"),
    ],
)
def test_inputs_that_do_not_fit(gpu: CudaSession, x: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gpu.run([x] if isinstance(x, list) else x)


def test_outputs_that_do_not_fit(gpu: CudaSession) -> None:
    x = images(1, 8)
    with pytest.raises(InputError, match=r"out must be float32\[1, 10\]"):
        gpu.run(x, out=np.empty((1, 11), np.float32))
    frozen = np.empty((1, 10), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        gpu.run(x, out=frozen)


def test_threads_take_turns(gpu: CudaSession) -> None:
    batches = [images(1, 8, seed) for seed in range(3)]
    expected = [gpu.run(x) for x in batches]
    results: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: gpu.run(batches[i])})) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, array in enumerate(expected):
        np.testing.assert_array_equal(results[i], array)


def test_profile(program: Program, gpu: CudaSession) -> None:
    x = images(2, 8)
    facts = {row["name"]: row for row in dynprune_rt.load(program).profile(x).rows if row["dense_macs"]}
    live = gpu.live_channels(x)
    profile = gpu.profile(x)
    rows = {row["name"]: row for row in profile.rows if row["dense_macs"]}
    assert rows.keys() == facts.keys()
    for name, row in rows.items():
        assert row["dense_macs"] == facts[name]["dense_macs"] >= row["macs"] > 0 and row["ms"] >= 0
        if row["kernel"].startswith("conv"):
            assert (row["total_in"], row["total_out"]) == (facts[name]["total_in"], facts[name]["total_out"])
            assert row["live_out"] == pytest.approx(live[name].mean())
    # For one image and a dense input, the executed share of a convolution is that of its outputs.
    one = [row for row in gpu.profile(x[:1]).rows if row["kernel"] == "conv_gemm_by_output"]
    assert one and all(row["macs"] * row["total_out"] == row["dense_macs"] * row["live_out"] for row in one)
    dense = gpu.profile(x, skip=False)
    assert dense.macs == dense.dense_macs > profile.macs


def test_out_of_memory_is_explained(program: Program, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = session(program, emulated)
    x = images(1, 8)
    expected = gpu.run(x)
    with monkeypatch.context() as patch:

        def full(*shape: int) -> None:
            raise torch.OutOfMemoryError("no memory")

        patch.setattr(gpu._kernels, "new_vector", full)
        with pytest.raises(DeviceError, match="too little free memory for a batch of 1: use a smaller batch"):
            gpu.run(x)
    np.testing.assert_array_equal(gpu.run(x), expected)


def test_out_of_memory_while_loading(program: Program, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(cuda_session, "DeviceConstants", full)
        with pytest.raises(DeviceError, match="CTA emulator has too little free memory for loading the program"):
            session(program, emulated)
    session(program, emulated)


def test_a_stream_that_is_being_captured(
    program: Program, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, x = session(program, emulated), images(1, 8)
    on_device = torch.from_numpy(x)
    expected = gpu.run(on_device)
    released: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "_capturing", lambda: True)
        patch.setattr(gpu, "release_graphs", lambda: released.append(1))
        assert torch.equal(gpu.run(on_device), expected), "tensors on the GPU join the caller's graph"
        with pytest.raises(InputError, match=r"is being captured.*must be tensors on cpu"):
            gpu.run(x)
        with pytest.raises(InputError, match="is being captured"):
            gpu.run(on_device, out=np.empty((1, 10), np.float32))
        for call in (gpu.profile, gpu.live_channels):
            with pytest.raises(InputError, match="waits for the GPU, which is impossible on a stream"):
                call(on_device)

        def full(*shape: int) -> None:
            raise torch.OutOfMemoryError("no memory")

        patch.setattr(gpu._kernels, "new_vector", full)
        with pytest.raises(DeviceError, match="too little free memory"):
            gpu.run(on_device)
    assert not released, "graphs cannot be given up, nor the device waited for, inside of a capture"
    assert torch.equal(gpu.run(on_device), expected)


def test_inputs_on_two_devices(emulated: ModuleType) -> None:
    builder = Builder(fold=False)
    x, y = (builder.graph.add_input(name, TensorType("f32", (BATCH, 3))) for name in "xy")
    builder.graph.outputs.append(builder.op("add", x, y))
    gpu = session(Program(builder.graph), emulated)
    gpu.device = torch.device("meta")  # where one of the inputs may be
    with pytest.raises(InputError, match=r"inputs are on different devices: \['cpu', 'meta'\]"):
        gpu.run((torch.zeros(1, 3), torch.zeros(1, 3, device="meta")))


def test_an_old_gpu_is_refused(program: Program, emulated: ModuleType) -> None:
    old = SimpleNamespace(device_facts=lambda index: ("Tesla T4", 7, 5, 40), VERSION=1)
    with pytest.raises(DeviceError, match=r"Tesla T4 has compute capability 7\.5; 8\.0 or newer"):
        session(program, old)  # type: ignore[arg-type]


def test_as_a_torch_module(program: Program, gpu: CudaSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_module, "_SESSIONS", {})
    monkeypatch.setattr(torch_module, "load", lambda *given: gpu)
    x = torch.from_numpy(images(2, 8))
    torch.testing.assert_close(torch_module.TorchModule(program, device="cuda")(x), gpu.run(x), rtol=0, atol=0)


def test_what_only_a_gpu_executes(program: Program, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening, capturing, replaying and profiling, with stand-ins for torch.cuda and kernels on the emulator."""
    fake = FakeCuda()
    cuda = torch.cuda
    for name, value in {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "device": lambda index: contextlib.nullcontext(), "synchronize": lambda device=None: None,
        "empty_cache": lambda: None, "Event": FakeEvent, "is_current_stream_capturing": lambda: fake.capturing,
        "current_stream": lambda device=None: fake.current_stream(), "Stream": fake.Stream, "stream": fake.stream,
        "CUDAGraph": fake.CUDAGraph, "graph": fake.graph,
    }.items():  # fmt: skip
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setattr(cuda_session, "open_kernels", lambda device, precision: NativeKernels(emulated, CPU, precision))
    monkeypatch.setattr(cuda_session, "ConvTimer", lambda kernels: lambda problem, mode, batch: 1.0)
    monkeypatch.setenv(CACHE_VARIABLE, "off")
    x = torch.from_numpy(images(1, 8))
    expected = session(program, emulated).run(x)
    gpu = cuda_session.open_session(program, "cuda:0", "fp16", 2)
    gpu.device = torch.device("cuda", 0)
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *to, **how: t if to == (gpu.device,) else move(t, *to, **how))
    assert relative_error(gpu.run(x).numpy(), expected.numpy()) < TOLERANCE["fp16"]
    assert len(gpu._graphs) == 1
    assert all(row["ms"] == 1.5 for row in gpu.profile(x).rows)
    gpu.release_graphs()
    assert len(gpu._graphs) == 0
    fake.capturing = True
    with pytest.raises(InputError, match="is being captured"):
        gpu.run(x)
