"""Gates decide as stated, and their gradients are right."""

import math

import pytest
import torch

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.autograd import _ChannelScale, _GlobalMean, channel_scale, global_mean
from dynprune_rt.methods.gates import ChannelMask, NormGate, SoftMaskGate
from dynprune_rt.methods.saliency_gates import FBSGate, ManiDPGate


def maps(channels=6, seed=0):
    return torch.randn(5, channels, 4, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.51, 1.0])
def test_winner_take_all(keep):
    gate = FBSGate(6, 8).eval()
    gate.keep = keep
    x = maps()
    mask = gate(x).detach()
    count = max(1, math.ceil(keep * 8))
    for n in range(5):
        saliency = torch.relu(gate.fc.weight @ x[n].mean((1, 2)) + gate.fc.bias).tolist()
        limit = sorted(saliency, reverse=True)[count - 1]
        expected = [s if s >= limit else 0.0 for s in saliency]
        assert mask[n].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_ties_at_the_limit_are_kept():
    gate = ManiDPGate(6, 4).eval()
    with torch.no_grad():
        gate.fc2.weight.zero_()
        gate.fc2.bias.copy_(torch.tensor([0.5, 1.0, 1.5, 9.0]))
        gate.threshold.fill_(1.0)
    assert gate(maps())[0].tolist() == [0.0, 1.0, 1.5, 4.0]


def test_threshold_follows_the_quantile_over_images_and_channels_in_training_only():
    gate = FBSGate(6, 8, "threshold")
    gate.keep = 0.4
    x = maps()
    gate(x)
    scores = gate.saliency.detach().flatten().sort(descending=True).values
    assert float(gate.threshold) == float(scores[math.ceil(0.4 * 40) - 1])
    before = gate.threshold.clone()
    gate.eval()
    mask = gate(8 * maps(seed=9))
    assert torch.equal(gate.threshold, before)
    counts = (mask != 0).sum(1)
    assert counts.min() < counts.max()


@pytest.mark.parametrize("rule", NormGate.RULES)
def test_norm_rules(rule):
    gate = NormGate(6, rule).eval()
    gate.level.fill_(2.5 if rule == "quantile" else 0.9)
    gate.keep = 0.5
    x = maps()
    mask = gate(x)
    for n in range(5):
        norms = [math.sqrt(float(x[n, c].double().square().sum())) for c in range(6)]
        limit = {
            "mean": 0.9 * sum(norms) / 6,
            "max": 0.9 * max(norms),
            "quantile": 2.5,
            "topk": sorted(norms, reverse=True)[2],
        }[rule]
        assert mask[n].tolist() == [float(v >= limit * (1 - 1e-6)) for v in norms]


def test_soft_masks_average_one():
    gate = SoftMaskGate(6, 8)
    torch.nn.init.normal_(gate.fc2.weight)
    mask = gate(maps())
    assert float(mask.min()) > 0
    torch.testing.assert_close(mask.mean(1), torch.ones(5))


def test_gates_decide_in_single_precision_under_autocast():
    gate = FBSGate(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gate(maps().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_pooling_and_scaling(layout):
    x = maps().double().contiguous(memory_format=layout).requires_grad_(True)
    scale = torch.rand(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_GlobalMean.apply, (x,))
    assert torch.autograd.gradcheck(_ChannelScale.apply, (x, scale))
    torch.testing.assert_close(global_mean(x), x.mean((2, 3)))
    torch.testing.assert_close(channel_scale(x, scale), x * scale[:, :, None, None])


def test_a_mask_multiplies_alike_in_training_and_evaluation_and_keeps_what_losses_need():
    x, mask = maps().requires_grad_(True), torch.rand(5, 6)
    for keeps in ("", "pooled", "feature"):
        module = ChannelMask(keeps)
        trained = module(x, mask)
        torch.testing.assert_close(module.eval()(x, mask), trained)
    pooling = ChannelMask("pooled")
    pooling(x, mask)
    torch.testing.assert_close(pooling.pooled, x.mean((2, 3)))


def test_unknown_rules():
    with pytest.raises(TrainingError, match="rule='best'"):
        FBSGate(3, 4, "best")
    with pytest.raises(TrainingError, match="rule='best'"):
        NormGate(4, "best")
