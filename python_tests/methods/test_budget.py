"""Greedy removal under a budget."""

import pytest
import torch

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.budget import greedy_removal
from dynprune_rt.methods.graph import LayerCost, trace
from dynprune_rt.methods.macs import macs_at_widths
from python_tests.methods.networks import small_zoo

LAYERS = [
    LayerCost("a", 1000, 3, 10, None, "a"),
    LayerCost("b", 1000, 10, 4, "a", "b"),
    LayerCost("c", 100, 4, 2, "b", None),
]
SCORES = {"a": torch.arange(10.0) + 1, "b": torch.tensor([4.0, 1.0, 3.0, 2.0])}


@pytest.mark.parametrize("target", [0.9, 0.5, 0.3])
def test_meets_the_target_with_the_last_removal(target):
    kept = greedy_removal(LAYERS, SCORES, target)
    widths = {name: len(index) for name, index in kept.items()}
    dense = macs_at_widths(LAYERS, {})
    assert macs_at_widths(LAYERS, widths) <= target * dense
    grown = [macs_at_widths(LAYERS, {**widths, name: width + 1}) for name, width in widths.items()]
    assert max(grown) > target * dense


def test_the_least_scores_go_and_indices_ascend():
    kept = greedy_removal(LAYERS, SCORES, 0.5)
    for name, index in kept.items():
        lost = sorted(set(range(len(SCORES[name]))) - set(index.tolist()))
        assert index.tolist() == sorted(index.tolist())
        assert not lost or SCORES[name][lost].max() < SCORES[name][index].min()


def test_each_step_takes_the_best_ratio():
    """One removal: channel 0 of "a" has share 1/55 for 100 + 100 MACs, channel 1 of "b" 1/10 for 250 + 25."""
    kept = greedy_removal(LAYERS, SCORES, 0.999)
    assert kept["a"].tolist() == list(range(1, 10))
    assert kept["b"].tolist() == [0, 1, 2, 3]


def test_rates_turn_macs_into_latency():
    slow_b = greedy_removal(LAYERS, SCORES, 0.6, rates={"a": 0.001, "b": 1.0, "c": 0.001})
    assert macs_at_widths(LAYERS, {n: len(i) for n, i in slow_b.items()}, {"b": 1.0}) <= 0.601 * 1000


def test_no_stage_of_a_resnet_is_emptied_when_layers_matter_alike():
    """Scores divided by their layer's mean would leave the first stage two channels here."""
    traced = trace(small_zoo("cifar_resnet20"), torch.zeros(1, 3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    scores = {s.conv: torch.rand(s.channels, generator=generator) for s in traced.inner_sites()}
    kept = greedy_removal(traced.layers, scores, 0.5)
    assert min(len(kept[s.conv]) / s.channels for s in traced.inner_sites()) > 0.2


def test_impossible_targets():
    with pytest.raises(TrainingError, match="still left"):
        greedy_removal(LAYERS, SCORES, 0.01, minimum=0.5)
    with pytest.raises(TrainingError, match=r"target=1\.5"):
        greedy_removal(LAYERS, SCORES, 1.5)
