"""Scales from statistics, and quantized weights."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt.errors import QuantizationError
from dynprune_rt.quantization.observation import HISTOGRAM_BINS, Statistics
from dynprune_rt.quantization.scales import map_scale, quantize_weights


def statistics(values: np.ndarray) -> Statistics:
    peak = float(np.abs(values).max())
    bins = np.minimum((np.abs(values) * (HISTOGRAM_BINS / peak)).astype(int), HISTOGRAM_BINS - 1)
    return Statistics(float(values.min()), float(values.max()), np.bincount(bins, minlength=HISTOGRAM_BINS))


def test_minmax_reaches_the_largest_value_of_all_maps():
    maps = [Statistics(0, 3), Statistics(0, 5.1)]
    assert map_scale(maps, "u8", "minmax", 99.99) == pytest.approx(5.1 / 255)
    assert map_scale([Statistics(-4, 1)], "s8", "minmax", 99.99) == pytest.approx(4 / 127)


def test_maps_of_zeros_have_scale_one():
    assert map_scale([Statistics()], "u8", "minmax", 99.99) == 1.0
    empty = Statistics(0, 0, np.zeros(HISTOGRAM_BINS, np.int64))
    assert map_scale([empty], "s8", "mse", 99.99) == 1.0


def test_percentile_ignores_zeros_and_outliers():
    values = np.concatenate([np.zeros(90_000), np.linspace(0.01, 1, 10_000), [50.0]])
    scale = map_scale([statistics(values)], "u8", "percentile", 99.9)
    assert scale == pytest.approx(1 / 255, rel=0.05)


def test_mean_squared_error_clips_outliers_but_not_the_bulk():
    values = np.random.default_rng(0).normal(0, 1, 100_000)
    peak = np.abs(values).max()
    scale = map_scale([statistics(values)], "s8", "mse", 99.99)
    errors = [np.square(np.clip(np.rint(values / s), -127, 127) * s - values).mean() for s in (scale, peak / 127)]
    assert scale * 127 < peak and errors[0] <= errors[1]


@pytest.mark.parametrize("peak", [1e-40, 1e36])
def test_ranges_without_room_for_scales_are_refused(peak):
    with pytest.raises(QuantizationError, match="no room"):
        map_scale([Statistics(0, peak)], "u8", "minmax", 99.99)


def test_weights_have_one_scale_per_output_channel():
    weights = np.array([[1.0, -2.0], [0.0, 0.0], [0.5, 0.25]], np.float32).reshape(3, 2, 1, 1)
    integers, scales = quantize_weights(weights, "conv")
    assert integers.dtype == np.int8 and integers.shape == weights.shape
    np.testing.assert_array_equal(integers.reshape(3, 2), [[64, -127], [0, 0], [127, 64]])
    np.testing.assert_allclose(scales, [2 / 127, 1, 0.5 / 127])


def test_weights_that_are_not_finite_name_layer_and_channel():
    weights = np.ones((3, 1, 1, 1), np.float32)
    weights[2] = np.nan
    with pytest.raises(QuantizationError, match=r"'conv'.*channel 2"):
        quantize_weights(weights, "conv")
