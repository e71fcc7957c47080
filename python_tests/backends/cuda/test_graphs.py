"""Capturing and replaying, with a stand-in for torch.cuda that records what a graph would do."""

from __future__ import annotations

import pytest
import torch

from dynprune_rt.backends.cuda import session
from dynprune_rt.backends.cuda.graphs import MAX_GRAPHS, CapturedGraphs
from dynprune_rt.errors import DeviceError, InputError
from python_tests.backends.cuda.fake_cuda import FakeCuda


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


def test_one_graph_serves_changing_inputs(cuda: FakeCuda) -> None:
    graphs, prepared = CapturedGraphs(cuda), []
    results = []
    for value in (1.0, 5.0, 7.0):
        x = torch.full((2, 3), value)
        results += graphs.run(2, [x], cuda.captured, lambda: prepared.append(2))
    assert [float(r[0, 0]) for r in results] == [2.0, 10.0, 14.0], "a result changed with a later replay"
    assert len(graphs) == 1 and prepared == [2]
    assert len(cuda.waits) == 2, "a replay must wait for the one before it"


def test_the_longest_unused_graph_goes_first(cuda: FakeCuda) -> None:
    graphs, prepared = CapturedGraphs(cuda), []
    for batch in (*range(1, MAX_GRAPHS + 1), 1, MAX_GRAPHS + 1, 1, 2):
        graphs.run(batch, [torch.ones(batch)], cuda.captured, lambda batch=batch: prepared.append(batch))
    assert len(graphs) == MAX_GRAPHS
    assert prepared == [*range(1, MAX_GRAPHS + 2), 2], "1 was used again and stays; 2 is captured anew"
    graphs.release()
    assert len(graphs) == 0


def test_on_a_stream_that_is_being_captured_the_work_joins_the_callers_graph(cuda: FakeCuda) -> None:
    graphs = CapturedGraphs(cuda)
    cuda.capturing = True

    def must_not() -> None:
        raise AssertionError("nothing may be measured while a stream is captured")

    (result,) = graphs.run(1, [torch.ones(1)], cuda.captured, must_not)
    assert float(result) == 2.0 and len(graphs) == 0 and not cuda.waits


def test_a_failing_capture_leaves_nothing_behind(cuda: FakeCuda) -> None:
    graphs = CapturedGraphs(cuda)

    def out_of_memory(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        graphs.run(1, [torch.ones(1)], out_of_memory, lambda: None)
    assert len(graphs) == 0
    assert float(graphs.run(1, [torch.ones(1)], cuda.captured, lambda: None)[0]) == 2.0


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="precision 'fp8' is unknown; the GPU knows fp16, bf16, tf32"):
        session.open_session(None, "cuda", "fp8", 0)  # type: ignore[arg-type]
    monkeypatch.setattr(session.torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="sees no GPU; install a PyTorch that is built for CUDA"):
        session.open_session(None, "cuda", "fp16", 0)  # type: ignore[arg-type]
    monkeypatch.setattr(session.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(session.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="there is no device 'cuda:7'; this machine has 2: cuda:0 to cuda:1"):
        session.open_session(None, "cuda:7", "fp16", 0)  # type: ignore[arg-type]
