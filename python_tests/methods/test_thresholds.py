import pytest
import torch

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.thresholds import (
    channel_mean_threshold,
    coefficient_of_variation,
    quantile_threshold,
    select_uneven,
    valley,
)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 1.0])
def test_quantile_is_reached_by_that_share(keep):
    scores = torch.rand(20, 7, generator=torch.Generator().manual_seed(0))
    limit = quantile_threshold(scores, keep)
    reached = int((scores >= limit).sum())
    assert reached == max(1, -(-round(keep * 140 * 1e6) // 10**6))


def test_channel_means_keep_ceil_of_the_channels():
    means = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7])
    assert float(channel_mean_threshold(means, 0.5)) == pytest.approx(0.5)
    assert float(channel_mean_threshold(means, 0.2)) == pytest.approx(0.9)


def test_coefficient_of_variation_and_selection():
    even, uneven = torch.full((3, 4), 2.0), torch.tensor([[1.0, 3.0, 1.0, 3.0]])
    assert coefficient_of_variation(even) == 0.0
    assert coefficient_of_variation(uneven) == pytest.approx(0.5)
    assert select_uneven({"even": even, "uneven": uneven, "middle": uneven + 2}, 0.67) == ["uneven", "middle"]


def test_valley_lies_between_two_groups():
    values = torch.cat([torch.linspace(0.05, 0.2, 30), torch.linspace(0.8, 1.0, 40)])
    assert 0.2 < valley(values) < 0.8
    assert valley(torch.full((5,), 0.3)) == pytest.approx(0.3)


def test_bad_shares():
    for function in (quantile_threshold, channel_mean_threshold):
        with pytest.raises(TrainingError, match="keep=0"):
            function(torch.rand(4), 0.0)
    with pytest.raises(TrainingError, match="share=2"):
        select_uneven({"a": torch.rand(2, 3)}, 2)
