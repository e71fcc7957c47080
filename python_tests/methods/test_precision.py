"""Bits per output channel."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.precision import allocate_bits, apply_precision, quantise
from python_tests.methods.networks import Residual

WEIGHTS = {
    "a": torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1)),
    "b": torch.randn(5, 6, 1, 1, generator=torch.Generator().manual_seed(2)),
}
SCORES = {"a": torch.tensor([1.0, 2, 4, 8, 16, 32]), "b": torch.tensor([9.0, 7, 5, 3, 1])}


def test_quantised_values_lie_on_each_channels_grid():
    bits = torch.tensor([2, 3, 4, 6, 8, 8])
    q = quantise(WEIGHTS["a"], bits)
    for channel in range(6):
        top = 2 ** (int(bits[channel]) - 1) - 1
        w = WEIGHTS["a"][channel].double().numpy()
        scale = np.abs(w).max() / top
        np.testing.assert_allclose(q[channel].numpy(), np.clip(np.round(w / scale), -top, top) * scale, atol=1e-5)
    assert quantise(torch.zeros(2, 3), torch.tensor([2, 8])).abs().sum() == 0


@pytest.mark.parametrize("mean_bits", [2.0, 3.7, 5.0, 8.0])
def test_budget_is_kept_and_nearly_used(mean_bits):
    found = allocate_bits(WEIGHTS, SCORES, mean_bits)
    spent = sum(int(bits.sum()) * WEIGHTS[name][0].numel() for name, bits in found.bits.items())
    total = sum(w.numel() for w in WEIGHTS.values())
    assert spent <= mean_bits * total
    assert spent > mean_bits * total - 2 * WEIGHTS["a"][0].numel()
    assert found.size == (spent + 32 * 11 + 7) // 8
    assert found.size_fp32 == 4 * total


def test_more_information_never_gets_fewer_bits_among_equal_weights():
    weights = {"a": WEIGHTS["a"][:1].expand(6, 4, 3, 3)}
    bits = allocate_bits(weights, {"a": SCORES["a"]}, 4.0).bits["a"].tolist()
    assert bits == sorted(bits)
    assert bits[0] < bits[-1]


def test_error_falls_with_the_budget():
    def error(mean_bits):
        bits = allocate_bits(WEIGHTS, SCORES, mean_bits).bits
        return sum(float((quantise(w, bits[n]) - w).square().sum()) for n, w in WEIGHTS.items())

    errors = [error(b) for b in (2.0, 3.0, 4.0, 6.0, 8.0)]
    assert all(b < a for a, b in pairwise(errors))


def test_applied_to_a_model():
    model = Residual()
    weights = {"block1.conv1": model.block1.conv1.weight.detach().clone()}
    found = allocate_bits(weights, {"block1.conv1": torch.ones(8)}, 4.0)
    apply_precision(model, found)
    expected = quantise(weights["block1.conv1"], found.bits["block1.conv1"])
    assert torch.equal(model.block1.conv1.weight, expected)


def test_bad_input():
    with pytest.raises(TrainingError, match="below the smallest"):
        allocate_bits(WEIGHTS, SCORES, 1.0)
    with pytest.raises(TrainingError, match="no DI score"):
        allocate_bits(WEIGHTS, {"a": SCORES["a"]}, 4.0)
    with pytest.raises(TrainingError, match="widths"):
        allocate_bits(WEIGHTS, SCORES, 4.0, widths=(1, 4))
