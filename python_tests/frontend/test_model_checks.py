"""Wrong models and wrong examples are named before anything is traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynprune_rt.errors import ConversionError, InputError
from dynprune_rt.frontend.model_checks import check_example, check_model


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


def spoiled(name: str, value: float) -> nn.Module:
    m = model()
    with torch.no_grad():
        m.get_parameter(name).flatten()[0] = value
    return m


def with_buffer(tensor: torch.Tensor) -> nn.Module:
    m = model()
    m.register_buffer("threshold", tensor)
    return m


def with_training_part() -> nn.Module:
    m = model()
    m[1].train()
    return m


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: "resnet18", "expected a torch.nn.Module, got str"),
        (lambda: model().train(), r"training mode \(the model itself, ...\): call model.eval"),
        (with_training_part, r"training mode \(1\)"),
        (lambda: model().half(), r"parameter 0.weight is torch.float16; .* model.float\(\)"),
        (lambda: model().double(), r"0.weight is torch.float64; .* model.float\(\)"),
        (lambda: model().to("meta"), "0.weight is on the meta device"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)).eval(), "not initialised"),
        (lambda: spoiled("0.weight", float("nan")), "parameter 0.weight holds 1 NaN or infinite"),
        (lambda: spoiled("1.bias", float("inf")), "parameter 1.bias holds 1"),
        (lambda: with_buffer(torch.tensor([float("nan")])), "buffer threshold holds 1"),
        (lambda: with_buffer(torch.zeros(2, dtype=torch.float64)), "buffer threshold is torch.float64"),
        (lambda: with_buffer(torch.zeros(2, dtype=torch.complex64)), "complex"),
        (lambda: with_buffer(torch.eye(2).to_sparse()), "sparse"),
        (lambda: nn.DataParallel(model()).eval(), "pass model.module"),
        (lambda: torch.compile(model()), "torch.compile"),
        (lambda: torch.jit.trace(model(), torch.zeros(1, 3, 5, 5)), "TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_models(wrong: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        check_model(wrong())


def test_right_models() -> None:
    check_model(model())
    check_model(with_buffer(torch.tensor([float("-inf")])))  # an open threshold, an attention mask
    check_model(with_buffer(torch.tensor(0.5, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1.0, 2.0], "got list; pass further arguments"),
        ((torch.zeros(1, 3), torch.zeros(1)), "got tuple"),
        (torch.zeros(1, 3, 8, 8).half(), r"float16.*float\(\)"),
        (np.zeros((1, 3, 8, 8)), r"float64"),
        (torch.zeros(3), r"\[3\]; expected a batch"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (torch.full((1, 3), float("nan")), "NaN"),
        (torch.zeros(1, 3, device="meta"), "meta"),
    ],
)
def test_wrong_examples(wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_example(wrong)


def test_right_examples() -> None:
    array = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    assert torch.equal(check_example(array), torch.from_numpy(array))
    channels_last = torch.zeros(1, 3, 2, 2, requires_grad=True).to(memory_format=torch.channels_last)
    assert check_example(channels_last).is_contiguous()
    assert not check_example(channels_last).requires_grad
