"""Every gate pattern: mixed masks, exact counts, agreement with its formula written out in numpy."""

import numpy as np
import pytest
import torch

from dynprune_rt import models
from dynprune_rt.models import gates
from dynprune_rt.models.calibration import calibrate
from dynprune_rt.models.gates import ChannelGate, ImageGate

MODEL = "cifar_resnet20"
FIXED_COUNT = ["fbs", "kth", "kth_sort", "kth_topk", "instance_norm_topk", "random"]


def observed_masks(model, images):
    """Masks [N, C] of every gate, in order of execution."""
    masks = []

    def record(gate, output):
        masks.append(output.reshape(output.shape[0], -1))
        return output

    for gate in (m for m in model.modules() if isinstance(m, ImageGate)):
        if isinstance(gate, ChannelGate):
            compute = gate.mask
            gate.mask = lambda source, gate=gate, compute=compute: record(gate, compute(source))
        else:
            gate.register_forward_hook(lambda module, inputs, output: record(module, output))
    with torch.no_grad():
        model(images)
    return masks


@pytest.mark.parametrize("gate", [g for g in models.GATES if g not in ("se", "fbs_before_norm")])
def test_masks_are_mixed_and_differ_between_images(gate):
    masks = observed_masks(models.create(MODEL, gate, seed=3), models.synthetic_images(6, 32, seed=9))
    assert masks
    live = torch.cat([(m != 0).float().flatten() for m in masks]).mean()
    assert 0.2 < live < 0.8
    varying = torch.cat([((m != 0) != (m[:1] != 0)).any(0) for m in masks]).float().mean()
    assert varying > 0.2


@pytest.mark.parametrize("gate", FIXED_COUNT)
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_fixed_count_gates_keep_exactly_k_channels(gate, share):
    model = models.create(MODEL, gate, share=share)
    for mask in observed_masks(model, models.synthetic_images(4, 32, seed=1)):
        keep = -(-round(share * 100) * mask.shape[1] // 100)
        assert (mask != 0).sum(1).tolist() == [keep] * 4


def test_squeeze_excite_is_never_zero():
    masks = observed_masks(models.create(MODEL, "se"), models.synthetic_images(4, 32))
    assert all((m > 0).all() for m in masks)


def test_the_three_forms_of_the_kth_gate_agree():
    images = models.synthetic_images(4, 32, seed=2)
    outputs = [models.create(MODEL, g, seed=5)(images) for g in ("kth", "kth_sort", "kth_topk")]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_manidp_mask_follows_the_published_formula():
    torch.manual_seed(0)
    gate = gates.ManiDPGate(6, 5, share=0.5, clamp_max=1.2)
    gate.threshold.fill_(0.4)
    source = torch.rand(3, 6, 4, 4)
    pooled = source.mean((2, 3)).numpy()
    hidden = np.maximum(pooled @ gate.fc1.weight.detach().numpy().T, 0)
    z = hidden @ gate.fc2.weight.detach().numpy().T + gate.fc2.bias.detach().numpy()
    saliency = np.minimum(np.maximum(z, 0), 1.2)
    expected = np.where(saliency >= 0.4, saliency, 0)
    assert 0 < (expected != 0).mean() < 1
    np.testing.assert_allclose(gate.mask(source).detach().numpy()[:, :, 0, 0], expected, rtol=1e-5, atol=1e-6)


def test_fbs_replaces_the_scale_and_masks_the_shift():
    torch.manual_seed(1)
    gate, conv, norm = gates.FBSGate(4, 6, share=0.5), torch.nn.Conv2d(4, 6, 3), torch.nn.BatchNorm2d(6).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.bias.data.normal_()
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        pi = gate.mask(x)
        assert (pi != 0).sum(1).flatten().tolist() == [3, 3]
        plain = (conv(x) - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        expected = torch.relu(pi * plain + norm.bias[:, None, None] * (pi != 0))
        torch.testing.assert_close(gate(x, conv, norm, torch.relu, None), expected)


def test_a_masked_laudnet_channel_becomes_the_norms_constant():
    torch.manual_seed(2)
    gate, conv, norm = gates.LAUDNetGate(4, 6, share=0.5), torch.nn.Conv2d(4, 6, 3), torch.nn.BatchNorm2d(6).eval()
    norm.running_mean.normal_()
    x = models.synthetic_images(16, 5, channels=4)
    gate.calibrating = True
    with torch.no_grad():
        gate.mask(x)
        gate.calibrating = False
        y, mask = gate(x, conv, norm, torch.relu, None), gate.mask(x)[:, :, 0, 0]
    constant = torch.relu(-norm.running_mean / (1 + norm.eps) ** 0.5)
    n, c = torch.where(mask == 0)
    assert len(n) > 0
    assert torch.allclose(y[n, c], constant[c][:, None, None].expand(-1, 3, 3), atol=1e-6)


def test_laudnet_groups_are_neighbouring_channels():
    model = models.create(MODEL, "laudnet", gate_options={"granularity": 4})
    for mask in observed_masks(model, models.synthetic_images(4, 32)):
        assert torch.equal(mask, mask[:, ::4].repeat_interleave(4, dim=1))


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_instance_norm_compares_with_the_images_own_norms(rule):
    gate = gates.InstanceNormGate(5, 5, share=0.5, rule=rule, alpha=0.6)
    x = torch.randn(3, 5, 4, 4) * torch.rand(3, 5, 1, 1)
    norms = np.linalg.norm(x.numpy().reshape(3, 5, -1), axis=2)
    reference = norms.max(1, keepdims=True) if rule == "max" else norms.mean(1, keepdims=True)
    np.testing.assert_array_equal(gate.mask(x).numpy()[:, :, 0, 0] != 0, norms >= 0.6 * reference)


def test_calibration_leaves_given_thresholds_alone():
    model = models.create(MODEL, "instance_norm", gate_options={"alpha": 0.25})
    calibrate(model, models.synthetic_images(4, 32), statistics=False)
    alphas = {float(m.alpha) for m in model.modules() if isinstance(m, gates.InstanceNormGate)}
    assert alphas == {0.25}


def test_branch_gate_opens_whole_branches():
    masks = observed_masks(models.create(MODEL, "aig"), models.synthetic_images(8, 32))
    assert len(masks) == 9
    assert {float(v) for m in masks for v in m.flatten()} == {0.0, 1.0}
