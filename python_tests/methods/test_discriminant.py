"""Discriminant information against its definition."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from dynprune_rt.errors import DataError, TrainingError
from dynprune_rt.methods.discriminant import discriminant_information, discriminant_scores, score_sites
from python_tests.methods.networks import Residual, settle


def features(seed=0, batch=12, channels=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(batch) % 3
    x = torch.randn(batch, channels, 2, 3, generator=generator, dtype=torch.float64)
    x[:, 1] += labels[:, None, None]
    return x, labels


def defined(x, labels, rho):
    """tr[(X'X + rho I)^-1 X'Y Y'X], the primal form."""
    x = x.reshape(len(x), -1).numpy()
    y = np.eye(3)[labels.numpy()]
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.trace(np.linalg.inv(x.T @ x + rho * np.eye(x.shape[1])) @ x.T @ y @ y.T @ x))


@pytest.mark.parametrize("rho", [0.1, 3.0])
def test_equals_the_primal_definition(rho):
    x, labels = features()
    assert discriminant_information(x, labels, 3, rho) == pytest.approx(defined(x, labels, rho), rel=1e-9)


def test_is_the_gain_of_ridge_regression():
    x, labels = features()
    flat = x.flatten(1)
    flat = flat - flat.mean(0)
    y = torch.nn.functional.one_hot(labels, 3).double()
    y = y - y.mean(0)
    weights = torch.linalg.solve(flat.T @ flat + 0.1 * torch.eye(flat.shape[1], dtype=flat.dtype), flat.T @ y)
    loss = (flat @ weights - y).square().sum() + 0.1 * weights.square().sum()
    assert discriminant_information(x, labels, 3, 0.1) == pytest.approx(float(y.square().sum() - loss), rel=1e-9)


def test_never_falls_when_channels_are_added():
    for seed in range(20):
        x, labels = features(seed)
        values = [discriminant_information(x[:, :c], labels, 3) for c in range(1, 6)]
        assert all(b >= a - 1e-9 for a, b in pairwise(values))


def test_scores_are_the_derivative_of_the_criterion():
    x, labels = features()
    scale = torch.ones(5, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.one_hot(labels, 3).double()
    y = y - y.mean(0)
    masked = (x * scale[:, None, None]).flatten(1)
    masked = masked - masked.mean(0)
    j = torch.trace(y @ y.T @ torch.linalg.inv(masked @ masked.T + 0.1 * torch.eye(12, dtype=x.dtype)))
    (expected,) = torch.autograd.grad(j, scale)
    torch.testing.assert_close(discriminant_scores(x, labels, 3, 0.1), expected.abs(), rtol=1e-8, atol=1e-10)


def test_scores_do_not_depend_on_how_channels_are_chunked(monkeypatch):
    x, labels = features()
    whole = discriminant_scores(x, labels, 3)
    monkeypatch.setattr("dynprune_rt.methods.discriminant._CHUNK", 1)
    torch.testing.assert_close(discriminant_scores(x, labels, 3), whole, rtol=1e-10, atol=0)


def test_score_sites_sums_batches_and_leaves_the_model_alone():
    model = settle(Residual()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = [(torch.randn(12, 3, 12, 12), torch.arange(12) % 4) for _ in range(2)]
    both = score_sites(model, ["block1.conv1"], batches, 4)
    single = [score_sites(model, ["block1.conv1"], [batch], 4)["block1.conv1"] for batch in batches]
    torch.testing.assert_close(both["block1.conv1"], single[0] + single[1])
    assert model.training
    assert not model.block1.conv1._forward_hooks
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_bad_input():
    x, labels = features()
    with pytest.raises(TrainingError, match="rho"):
        discriminant_scores(x, labels, 3, 0.0)
    with pytest.raises(DataError, match=r"0\.\.1"):
        discriminant_scores(x, labels, 2)
    with pytest.raises(TrainingError, match="finite"):
        discriminant_scores(x * float("nan"), labels, 3)
    with pytest.raises(DataError, match="no batches"):
        score_sites(Residual(), ["block1.conv1"], [], 4)
