"""What has no counterpart is refused in one message: every place, the operator, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynprune_rt.errors import ConversionError, UnsupportedOperatorError
from dynprune_rt.frontend.capture import capture
from dynprune_rt.frontend.translate import translate
from python_tests.frontend.equivalence import Model

IMAGE = torch.randn(2, 4, 6, 6)

REFUSED: dict[str, tuple[Any, str]] = {
    "mean over the batch": (lambda m, x: x - x.mean(), "reduces over the batch|no batch dimension"),
    "mean over dimension 0": (lambda m, x: x - x.mean(0, keepdim=True), "along the batch"),
    "softmax over the batch": (lambda m, x: x.softmax(0), "along the batch"),
    "batch moved": (lambda m, x: x.transpose(0, 1) * 2, "moves the batch"),
    "batch merged": (lambda m, x: x.view(-1, 6, 6).relu(), "merges the batch"),
    "batch sliced": (lambda m, x: x[1:], "fixes the batch size"),
    "batch size as a number": (lambda m, x: x / x.shape[0], "batch size as a number|batch size"),
    "batch statistics": (lambda m, x: F.batch_norm(x, None, None, training=True), "statistics of the batch"),
    "damaged statistics": (lambda m, x: F.batch_norm(x, torch.zeros(4), -torch.ones(4)), "checkpoint is damaged"),
    "transposed convolution": (lambda m, x: F.conv_transpose2d(x, torch.ones(4, 2, 2, 2)), "transposed"),
    "three dimensions": (
        lambda m, x: F.conv3d(x[:, :, None], torch.ones(2, 4, 1, 1, 1)),
        "one or two dimensions|three-dimensional",
    ),
    "computed weight": (lambda m, x: F.linear(x, x.mean((0, 1))), "computed from the image|along the batch"),
    "half precision": (lambda m, x: (x.half() * 2).float(), "torch.float16"),
    "double precision": (lambda m, x: (x.double() * 2).float(), "torch.float64"),
    "bicubic": (lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic"), "nearest or bilinear|index"),
    "bool index": (lambda m, x: x[:, m.keep], "nonzero"),
    "number of elements": (lambda m, x: x[x > 0].sum() * x, "depends on values"),
    "integer power": (lambda m, x: (x > 0).long() ** 3, "cast to float"),
    "special function": (lambda m, x: torch.special.i0(x), "no counterpart"),
    "constant index gather": (lambda m, x: x.gather(1, m.where.expand(x.shape[0], -1, -1, -1)), "index_select"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    function, message = REFUSED[name]
    members = {"keep": torch.tensor([True, False, True, True]), "where": torch.zeros(1, 2, 6, 6, dtype=torch.long)}
    with pytest.raises(ConversionError, match=message):
        translate(capture(Model(function, **members), IMAGE))


class Faults(nn.Module):
    """Three unsupported operators on the way to the output, one after the other, and one that nothing needs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.block = Block()
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        y = self.block(x)
        z = torch.special.i1(y)
        return z + torch.sinh(y) * 0, torch.special.i0e(x)


class Block(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(x)


def test_all_places_are_listed_at_once() -> None:
    with pytest.raises(UnsupportedOperatorError) as error:
        translate(capture(Faults(), IMAGE))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("3 operations")
    assert any("(block): aten.i0.default" in line or "(block): aten.special_i0.default" in line for line in lines)
    assert any("aten.special_i1" in line and "test_unsupported.py:" in line for line in lines)
    assert not any("i0e" in line for line in lines)
    assert "outputs=" in lines[-1]
