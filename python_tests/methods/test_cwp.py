"""CWP: constant masks fold exactly, and the cut follows the importance."""

import pytest
import torch
from torch import nn

from dynprune_rt import methods
from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.attach import attach_gates
from dynprune_rt.methods.cwp import above_valley, fold_importance
from dynprune_rt.methods.gates import TrainableGate
from dynprune_rt.methods.graph import trace
from python_tests.methods.networks import Chain, Residual, settle


class Constant(TrainableGate):
    def __init__(self, mask):
        super().__init__(len(mask))
        self.register_buffer("mask", mask)

    def forward(self, x):
        return self.mask.expand(len(x), -1)


@pytest.mark.parametrize("build", [Residual, Chain])
def test_folded_weights_compute_what_masks_did(build):
    """Through a depthwise layer and a flatten with four columns per channel as well."""
    model = settle(build())
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    masked, folded = trace(model, x[:1]), trace(model, x[:1])
    generator = torch.Generator().manual_seed(2)
    masks = {s.conv: 0.2 + torch.rand(s.channels, generator=generator) for s in masked.inner_sites()}
    attach_gates(masked, masked.inner_sites(), lambda site, inputs: Constant(masks[site.conv]))
    fold_importance(folded, masks)
    with torch.no_grad():
        expected, result = masked.module.eval()(x), folded.module.eval()(x)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert (expected - model(x)).abs().max() > 1e-3


class Saturating(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.pool, self.relu6 = nn.ReLU(), nn.AvgPool2d(2), nn.ReLU6()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.relu6(self.pool(self.relu(self.conv(self.stem(x))))).mean((2, 3)))


def test_a_factor_that_cannot_move_is_an_error():
    traced = trace(Saturating(), torch.zeros(1, 3, 12, 12))
    with pytest.raises(TrainingError, match="ReLU6"):
        fold_importance(traced, {s.conv: torch.ones(s.channels) for s in traced.inner_sites()})


def test_the_valley_cut_keeps_the_upper_group_and_a_minimum():
    importance = torch.tensor([0.1, 1.0, 0.15, 1.1, 0.95, 0.12])
    assert above_valley(importance, 0.1).tolist() == [1, 3, 4]
    assert len(above_valley(importance, 0.9)) == 5


def test_settings_are_checked():
    for options, message in (
        ({"cut": "best"}, "cut='best'"),
        ({"mask_part": 1.0}, r"mask_part=1\.0"),
        ({"target": 0.0}, r"target=0\.0"),
    ):
        with pytest.raises(TrainingError, match=message):
            methods.CWP(**options)
