"""A converted network as an operator of torch: eager, compiled, exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.testing

import dynprune_rt
from dynprune_rt import torch_module
from dynprune_rt.errors import DeviceError, InputError
from dynprune_rt.program import Program
from dynprune_rt.torch_module import TorchModule
from python_tests.backends.cuda.networks import images, network


@pytest.fixture(scope="module")
def program() -> Program:
    return network("cifar_resnet20", "laudnet", 8)


@pytest.fixture(autouse=True)
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch_module, "_SESSIONS", {})
    yield


class Classifier(torch.nn.Module):
    """The network with torch before and behind it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.inner((x - 0.5) * 2.0), dim=1)


def test_eager(program: Program) -> None:
    x = images(3, 8)
    module = TorchModule(program, threads=1)
    np.testing.assert_array_equal(module(torch.from_numpy(x)).numpy(), dynprune_rt.load(program).run(x))
    assert TorchModule(program, threads=1).session is module.session
    assert TorchModule(program, threads=2).session is not module.session
    assert module.name in repr(module)
    with pytest.raises(InputError, match="expected float32"):
        module(torch.zeros(1, 3, 9, 9))


def test_the_operator_keeps_torchs_rules(program: Program) -> None:
    module = TorchModule(program, threads=1)
    torch.library.opcheck(torch_module._run, ([torch.rand(2, 3, 8, 8)], module.name, True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_for_any_batch(program: Program, backend: str) -> None:
    network = TorchModule(program, threads=1)
    # Nothing around it that inductor would call a C++ compiler for: that takes a minute, and tests torch.
    model = Classifier(network) if backend == "aot_eager" else torch.nn.Sequential(network, torch.nn.Flatten(0))
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(model.eval(), backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (2, 3, 5):
            x = torch.from_numpy(images(batch, 8))
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1, "compiled anew for another batch"


def test_exported(program: Program, tmp_path: Path) -> None:
    module = TorchModule(program, threads=1)
    model = Classifier(module).eval()
    x = torch.from_numpy(images(2, 8))
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    for size in (2, 5):
        x = torch.from_numpy(images(size, 8))
        torch.testing.assert_close(again(x), model(x))
    torch_module.forget(module.name)  # as in another process
    with pytest.raises(DeviceError, match=r"make the TorchModule .* before running the graph"):
        again(x)
    TorchModule(program, threads=1)
    torch.testing.assert_close(again(x), model(x))


def test_outputs_share_no_memory_with_inputs() -> None:
    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, torch.relu(x)

    program = dynprune_rt.convert(Both().eval(), torch.rand(2, 3, 4, 4), outputs=None)
    x = torch.rand(2, 3, 4, 4) - 0.5
    same, rectified = TorchModule(program, threads=1)(x)
    assert same.data_ptr() != x.data_ptr()
    torch.testing.assert_close(same, x)
    torch.testing.assert_close(rectified, torch.relu(x))
