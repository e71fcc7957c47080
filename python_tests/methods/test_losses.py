"""Loss terms against slow float64 references, and their gradients."""

import math

import numpy as np
import pytest
import torch

from dynprune_rt.methods import losses
from dynprune_rt.methods.autograd import channel_norms

R = np.random.default_rng(0)


def draw(*shape):
    return torch.from_numpy(R.standard_normal(shape))


def test_distillation_is_the_tempered_divergence():
    student, teacher, t = draw(5, 7), draw(5, 7), 3.0
    total = 0.0
    for s, g in zip(student.numpy(), teacher.numpy(), strict=True):
        p = np.exp(g / t) / np.exp(g / t).sum()
        q = np.exp(s / t) / np.exp(s / t).sum()
        total += float((p * (np.log(p) - np.log(q))).sum()) * t * t
    assert float(losses.distillation(student, teacher, t)) == pytest.approx(total / 5, rel=1e-12)
    assert float(losses.distillation(teacher, teacher, t)) == pytest.approx(0.0, abs=1e-12)


def test_channel_norms_and_feature_decay():
    x = draw(3, 4, 5, 6)
    norms = np.zeros((3, 4))
    for n in range(3):
        for c in range(4):
            norms[n, c] = math.sqrt(sum(float(v) ** 2 for v in x[n, c].flatten()))
    np.testing.assert_allclose(channel_norms(x).numpy(), norms, rtol=1e-12)
    assert float(losses.feature_decay([x])) == pytest.approx(norms.sum(1).mean() / (4 * math.sqrt(30)), rel=1e-12)
    expected = (norms.sum(1) / (2 * np.sqrt((norms**2).sum(1)))).mean()
    assert float(losses.normalised_feature_decay([x])) == pytest.approx(expected, rel=1e-12)


def test_feature_decay_shrinks_a_map_by_a_constant_amount_and_leaves_zero_alone():
    x = torch.zeros(1, 2, 3, 3)
    x[0, 0] = 2.0
    x.requires_grad_(True)
    channel_norms(x).sum().backward()
    np.testing.assert_allclose(x.grad[0, 0].numpy(), 1 / 3, rtol=1e-6)
    assert float(x.grad[0, 1].abs().max()) == 0.0


def test_normalised_decay_does_not_reward_shrinking():
    x = draw(2, 4, 5, 5)
    a = losses.normalised_feature_decay([x])
    assert float(losses.normalised_feature_decay([0.01 * x])) == pytest.approx(float(a), rel=1e-5)
    loud = torch.cat([x[:, :1], 0.01 * x[:, 1:]], dim=1)
    assert float(losses.normalised_feature_decay([loud])) < float(a)


def test_complexity_weights_spare_hard_images_and_pass_no_gradient():
    ce = torch.tensor([0.0, 0.25, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    weights = losses.complexity_weights(ce, 0.5)
    np.testing.assert_allclose(weights.numpy(), [1.0, 0.5, 0.0, 0.0])
    assert not weights.requires_grad
    np.testing.assert_allclose(losses.complexity_weights(ce, 0.5, gamma=2.0).numpy(), [1.0, 0.25, 0.0, 0.0])
    assert losses.complexity_weights(ce, 0.0).abs().sum() == 0


def test_saliency_lasso():
    layers, weights = [draw(3, 4).abs(), draw(3, 2).abs()], torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    expected = sum(
        sum(float(w) * float(np.mean(row)) for w, row in zip(weights, s.numpy(), strict=True)) / 3 for s in layers
    )
    assert float(losses.saliency_lasso(layers, weights)) == pytest.approx(expected, rel=1e-12)


def test_manifold_similarity():
    a, b = draw(4, 3), draw(4, 5)

    def cosine(u, v):
        return float(u @ v) / (np.linalg.norm(u) * np.linalg.norm(v))

    total = 0.0
    for i in range(4):
        for j in range(4):
            total += (cosine(a[i].numpy(), a[j].numpy()) - cosine(b[i].numpy(), b[j].numpy())) ** 2
    assert float(losses.manifold_similarity(a, b)) == pytest.approx(total / 16, rel=1e-12)
    assert float(losses.manifold_similarity(a, 3 * a)) == pytest.approx(0.0, abs=1e-12)


def test_polarisation_prefers_two_groups_and_ignores_a_common_factor():
    even, parted = torch.full((6,), 0.5), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert float(losses.polarisation(parted)) == pytest.approx(-1.0)
    assert float(losses.polarisation(even)) == pytest.approx(0.0)
    assert float(losses.polarisation(0.01 * parted)) == pytest.approx(-1.0)


def test_instance_weights_grow_with_the_loss_and_average_one():
    weights = losses.instance_weights(torch.tensor([0.1, 0.2, 0.4]))
    np.testing.assert_allclose(weights.numpy(), [3 / 7, 6 / 7, 12 / 7], rtol=1e-6)


def twice(x):
    """Two layers' maps out of one tensor."""
    return [x, x[:, :2, :3] * 0.5]


GRADIENTS = {
    "distillation": lambda x: losses.distillation(x.mean((2, 3)), torch.ones(2, 3, dtype=x.dtype)),
    "norms": lambda x: channel_norms(x),
    "feature decay": lambda x: losses.feature_decay(twice(x)),
    "normalised decay": lambda x: losses.normalised_feature_decay(twice(x)),
    "lasso": lambda x: losses.saliency_lasso([x.mean((2, 3)).abs()], torch.tensor([0.3, 0.7], dtype=x.dtype)),
    "manifold": lambda x: losses.manifold_similarity(x.mean((2, 3)), x.square().mean(3).flatten(1)),
    "polarisation": lambda x: losses.polarisation(x.square().mean((0, 2, 3))),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    assert torch.autograd.gradcheck(GRADIENTS[name], (draw(2, 3, 4, 4).requires_grad_(True),))


def test_low_precision_maps_are_summed_in_single():
    """The result is rounded to bfloat16 once; its 1,024 terms are not summed in it."""
    x = draw(2, 3, 32, 32).bfloat16()
    torch.testing.assert_close(channel_norms(x), channel_norms(x.float()), rtol=2**-8, atol=0)
    assert losses.manifold_similarity(x[:, :, 0, 0], x[:, :, 1, 1]).dtype == torch.float32
