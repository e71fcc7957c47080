"""convert(): from a torch model to a checked Program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dynprune_rt
from dynprune_rt import convert
from dynprune_rt.errors import ConversionError, InputError, VerificationError
from dynprune_rt.ir import interpreter


class GatedNet(nn.Module):
    """Two gated blocks (ManiDP form) with the outputs that such repositories return."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.register_buffer("threshold", torch.tensor([0.05]))
        for bn in (self.bn1, self.bn2):
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x: torch.Tensor, temperature: float = 1.0) -> Any:
        x = F.relu(self.stem(x))
        gate = F.relu(self.fc(x.mean((2, 3))))
        mask = torch.ones_like(gate)
        mask[gate.data < self.threshold] = 0
        gate = (gate * mask)[:, :, None, None]
        before = F.relu(self.bn1(self.conv1(x)))
        y = x + self.bn2(self.conv2(before * gate))
        return self.head(F.relu(y).mean((2, 3))) / temperature, {"mask": mask, "before": before.mean((2, 3))}


IMAGE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def program() -> dynprune_rt.Program:
    return convert(GatedNet(), IMAGE)


def test_the_program_reproduces_the_model(program: dynprune_rt.Program) -> None:
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = GatedNet()(x)[0].numpy()
    (actual,) = interpreter.run(program.graph, {program.graph.inputs[0].name: x.numpy()})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_report(program: dynprune_rt.Program) -> None:
    report = program.report
    assert report["outputs"] == ["[0]"]
    assert report["outputs_left_out"] == ["[1]['mask']", "[1]['before']"]
    assert report["max_error"] < 1e-5
    assert report["near_threshold"] == 0
    assert report["skips"]["outputs"] == 1
    assert report["skips"]["inputs"] == 1
    assert report["torch"] == torch.__version__
    assert report["verified_by"]


def test_the_program_can_be_saved(program: dynprune_rt.Program, tmp_path: Path) -> None:
    program.save(tmp_path / "model.dpr")
    loaded = dynprune_rt.Program.load(tmp_path / "model.dpr")
    assert loaded.report == program.report


def test_extra_outputs_and_what_they_cost() -> None:
    """The feature average is taken before the mask: with it, no output of the gated convolution can be skipped."""
    program = convert(GatedNet(), IMAGE, outputs=None)
    assert program.report["outputs"] == ["[0]", "[1]['mask']", "[1]['before']"]
    assert program.report["lost_skips"] == {
        "[1]['mask']": {"outputs": 0, "inputs": 0},
        "[1]['before']": {"outputs": 1, "inputs": 0},
    }
    assert program.report["skips"]["outputs"] == 0
    with torch.no_grad():
        logits, more = GatedNet()(IMAGE)
    actual = interpreter.run(program.graph, {program.graph.inputs[0].name: IMAGE.numpy()})
    for a, e in zip(actual, (logits, more["mask"], more["before"]), strict=True):
        np.testing.assert_allclose(a, e.numpy(), rtol=1e-5, atol=1e-5)


def test_arguments_and_numpy_examples() -> None:
    program = convert(GatedNet(), IMAGE[:1].numpy(), kwargs={"temperature": 2.0})
    with torch.no_grad():
        expected = GatedNet()(IMAGE, 2.0)[0].numpy()
    (actual,) = interpreter.run(program.graph, {program.graph.inputs[0].name: IMAGE.numpy()})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_model_stays_as_it_was() -> None:
    model = GatedNet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    convert(model, IMAGE)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    convert(GatedNet(), IMAGE)
    assert capfd.readouterr().out == ""


def test_without_verification() -> None:
    program = convert(GatedNet(), IMAGE, verify=False)
    assert "max_error" not in program.report


def test_wrong_arguments() -> None:
    with pytest.raises(ConversionError, match="training mode"):
        convert(GatedNet().train(), IMAGE)
    with pytest.raises(InputError, match="float64"):
        convert(GatedNet(), IMAGE.double())
    with pytest.raises(ConversionError, match="out of range"):
        convert(GatedNet(), IMAGE, outputs=3)
    with pytest.raises(ConversionError, match="model itself fails"):
        convert(GatedNet(), IMAGE, kwargs={"temprature": 1.0})
    with pytest.raises(ConversionError, match="model itself fails"):
        convert(GatedNet(), torch.zeros(1, 4, 8, 8))


def test_a_branch_on_the_batch_size_is_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[0] > 1 else x

    with pytest.raises(VerificationError, match="batch 1 only"):
        convert(Net().eval(), IMAGE)


def test_a_plain_checkpoint_with_static_zeros_loses_channels() -> None:
    """Channels that a static mask switches off for good are not in the program."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
            self.register_buffer("mask", torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(F.relu(self.first(x)) * self.mask.view(1, -1, 1, 1))

    program = convert(Net().eval(), IMAGE)
    assert [n.output.type.shape[1] for n in program.graph.nodes if n.op == "conv2d"] == [4, 4]


def test_importing_the_package_needs_no_torch() -> None:
    code = "import sys, dynprune_rt, dynprune_rt.session, dynprune_rt.program; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
