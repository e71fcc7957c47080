"""Terms and rules against static gates: definitions in float64, gradients, and that masks do come to differ."""

import math

import numpy as np
import pytest
import torch

import dynprune_rt
from dynprune_rt import methods
from dynprune_rt.errors import TrainingError
from dynprune_rt.methods import Batches, Settings, train
from dynprune_rt.methods.saliency_gates import FBSGate, ManiDPGate
from dynprune_rt.methods.variety import batch_shaping, live_balance, shaping_prior, soft_decisions
from python_tests.methods.networks import Residual, coloured, settle


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_soft_decisions():
    scores, limit = draw(5, 3), draw(5, 1, seed=1)
    deviation = math.sqrt(float(((scores - scores.mean()) ** 2).mean()))
    found = soft_decisions(scores, limit, 0.5)
    for n in range(5):
        for c in range(3):
            margin = float(scores[n, c] - limit[n, 0]) / (0.5 * deviation)
            assert float(found[n, c]) == pytest.approx(1 / (1 + math.exp(-margin)), rel=1e-12)


def test_live_balance():
    decisions = draw(6, 4)
    wanted = 0.0
    for c in range(4):
        frequency = sum(float(decisions[n, c]) for n in range(6)) / 6
        wanted += max(abs(frequency - 0.3) - 0.1, 0.0) ** 2 / 4
    assert float(live_balance(decisions, 0.3, 0.1)) == pytest.approx(wanted, rel=1e-12)
    static = torch.tensor([[1.0, 0.0]] * 4)
    taking_turns = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2)
    assert float(live_balance(taking_turns, 0.5)) == 0.0 < float(live_balance(static, 0.5))


def test_batch_shaping():
    decisions, (a, b) = draw(7, 3), (0.4, 0.6)
    wanted = 0.0
    for c in range(3):
        column = sorted(float(v) for v in decisions[:, c])
        wanted += sum((i / 8 - (1 - (1 - x**a) ** b)) ** 2 for i, x in enumerate(column, 1)) / 3
    assert float(batch_shaping(decisions, a, b)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.6, 0.9])
def test_the_prior_has_the_keep_rate_as_its_mean(keep):
    a, b = shaping_prior(keep)
    assert 0 < min(a, b) <= max(a, b) == 0.6
    # E[x] is the integral of 1 - F(x); the quantile function is elementary, so draw evenly spaced quantiles.
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    assert ((1 - (1 - u) ** (1 / b)) ** (1 / a)).mean() == pytest.approx(keep, abs=2e-3)


@pytest.mark.parametrize("term", [lambda d: live_balance(d, 0.3), lambda d: batch_shaping(d, 0.4, 0.6)])
def test_gradients(term):
    limit, scale = draw(5, 1, seed=2), 0.2

    def whole(scores):
        return term(torch.sigmoid((scores - limit) / scale))

    assert torch.autograd.gradcheck(whole, (draw(5, 4).requires_grad_(True),))


@pytest.mark.parametrize("rule", ["topk", "threshold"])
@pytest.mark.parametrize("build", [FBSGate, ManiDPGate])
def test_a_centred_gate_compares_what_is_above_the_channels_usual(build, rule):
    gate = build(6, 8, rule, centre=0.75)
    gate.keep = 0.5
    x = torch.randn(40, 6, 4, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gate.fc2.weight.mul_(0.1) if build is ManiDPGate else gate.fc.weight.mul_(0.1)
        gate(x)
        saliency = gate.saliency
        torch.testing.assert_close(gate.usual, saliency.mean(0))
        gate.threshold.fill_(0.24)
        mask = gate.eval()(x)
    scores = saliency - 0.75 * gate.usual
    limit = scores.sort(descending=True).values[:, 3:4] if rule == "topk" else torch.tensor(0.24)
    torch.testing.assert_close(mask, torch.where(scores >= limit, saliency, torch.zeros(())))
    live = (mask > 0).double().mean(0)
    assert ((live > 0.02) & (live < 0.98)).double().mean() > 0.8


def loud_channels(model):
    """Half of the channels much louder than the others: gates started from it are static."""
    with torch.no_grad():
        for block in (model.block1, model.block2):
            for norm in (block.bn1, block.bn2):
                norm.weight[::2] *= 4
                norm.bias[::2] += 4
    return model


OPTIONS = {"published": {}, "centre": {"centre": 1.0}, "balance": {"balance": 20.0}, "shaping": {"shaping": 2.0}}


def varying(name, option):
    """Share of channels whose mask differs between images, after a short run from a network with loud channels."""
    torch.manual_seed(0)
    model = loud_channels(settle(Residual()))
    loader = Batches(coloured(64), 16, augment=True, shift=1)
    method = methods.create(name, 0.6, end=0.1, **OPTIONS[option])
    settings = Settings(epochs=6, learning_rate=0.05, precision="fp32", warmup_steps=1)
    result = train(model, loader, method, settings=settings, calibration=list(Batches(coloured(64, seed=2), 32)))
    images = [x for x, _ in Batches(coloured(64, seed=4), 32)]
    return methods.measure_activity(model, result.model, result.method, images), result


@pytest.mark.parametrize("name", ["fbs", "manidp"])
def test_each_option_makes_masks_differ_more_at_the_cost_asked_for(name):
    published, _ = varying(name, "published")
    for option in ("centre", "balance", "shaping"):
        found, _ = varying(name, option)
        assert found.varying > published.varying + 0.2, option
        assert found.static_share < 0.6 * published.static_share, option
        assert found.macs_left == pytest.approx(0.6, abs=0.1), option


def test_a_centred_gate_converts():
    _, result = varying("fbs", "centre")
    images = next(iter(Batches(coloured(32, seed=4), 32)))[0].contiguous()
    session = dynprune_rt.load(dynprune_rt.convert(result.model, images[:2]), threads=1)
    with torch.no_grad():
        wanted = result.model(images)
    torch.testing.assert_close(torch.from_numpy(session.run(images.numpy())), wanted, rtol=1e-4, atol=1e-4)
    assert session.profile(images.numpy()).macs < 0.7 * session.program.dense_macs * len(images)


def test_bad_options():
    with pytest.raises(TrainingError, match=r"centre=2"):
        FBSGate(3, 4, centre=2.0)
    with pytest.raises(TrainingError, match="cannot be negative"):
        methods.create("fbs", 0.5, balance=-1.0)
    with pytest.raises(TrainingError, match="thresholds='quantile'"):
        methods.create("manidp", 0.5, centre=0.5, thresholds="channel_means")
