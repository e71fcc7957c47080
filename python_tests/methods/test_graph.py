"""Which convolutions can be gated or removed."""

import pytest
import torch
from torch import nn

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.graph import Consumer, require_inner, trace
from python_tests.methods.networks import Chain, Residual, small_zoo

X = torch.zeros(1, 3, 12, 12)


def test_sites_of_residual_blocks():
    traced = trace(Residual(), X)
    assert [(s.conv, s.inner) for s in traced.sites] == [
        ("block1.conv1", True), ("block1.conv2", False), ("block2.conv1", True), ("block2.conv2", False),
    ]  # fmt: skip
    site = traced.sites[0]
    assert (site.norm, site.channels, site.consumers) == ("block1.bn1", 8, (Consumer("block1.conv2"),))


def test_a_projection_on_the_shortcut_is_no_site():
    names = {s.conv for s in trace(Residual(), X).sites}
    assert "block2.shortcut.0" not in names
    bottleneck = {s.conv for s in trace(small_zoo("resnet50", width=0.125), torch.zeros(1, 3, 64, 64)).sites}
    assert not any("shortcut" in name for name in bottleneck)
    assert len(bottleneck) == 3 * 16


def test_channels_pass_through_depthwise_layers_and_flatten():
    sites = {s.conv: s for s in trace(Chain(), X).sites}
    assert sites["b"].followers == ("norm_b", "depthwise", "norm_d")
    assert sites["b"].consumers == (Consumer("c"),)
    assert sites["c"].consumers == (Consumer("fc", 4),)
    assert "a" not in sites


@pytest.mark.parametrize(("name", "inner", "residual"), [("cifar_resnet20", 9, 9), ("vgg16_bn", 12, 0)])
def test_sites_of_the_zoo(name, inner, residual):
    traced = trace(small_zoo(name), torch.zeros(1, 3, 32, 32))
    assert len(traced.inner_sites()) == inner
    assert len(traced.sites) - inner == residual


def test_macs_are_those_of_the_layers():
    assert trace(small_zoo("cifar_resnet20"), torch.zeros(1, 3, 32, 32)).macs == 40_551_040
    expected = 3 * 6 * 9 * 144 + 6 * 10 * 9 * 144 + 10 * 9 * 144 + 10 * 12 * 144 + 48 * 4
    assert trace(Chain(), X).macs == expected


def test_the_users_model_stays_as_it_is():
    model = Residual().train()
    traced = trace(model, X)
    with torch.no_grad():
        traced.module.head.weight.zero_()
    assert model.training
    assert model.head.weight.abs().sum() > 0


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def test_clear_errors():
    with pytest.raises(TrainingError, match="cannot trace Branching"):
        trace(Branching(), X)
    with pytest.raises(TrainingError, match="nothing to gate"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), X)
    traced = trace(Residual(), X)
    traced.sites = [s for s in traced.sites if not s.inner]
    with pytest.raises(TrainingError, match="no channel can be removed"):
        require_inner(traced)
