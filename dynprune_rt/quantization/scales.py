"""From statistics to scales: value = scale * integer, the zero exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynprune_rt.errors import QuantizationError
from dynprune_rt.quantization.observation import HISTOGRAM_BINS, Statistics

#: Largest integer of each type; s8 leaves -128 unused, so that negation stays inside.
LEVELS = {"u8": 255, "s8": 127}

METHODS = ("minmax", "percentile", "mse")

#: Fractions of the peak that searches for the least squared error try.
_FRACTIONS = np.linspace(0.3, 1.0, 71)


def map_scale(statistics: Sequence[Statistics], dtype: str, method: str, percentile: float) -> float:
    """One scale for maps that share it. Maps that are zero throughout get scale 1."""
    peak = max(_clipped_peak(s, dtype, method, percentile) for s in statistics)
    scale = peak / LEVELS[dtype] if peak > 0 else 1.0
    if not np.finfo(np.float32).tiny * 1e6 < scale < np.finfo(np.float32).max / 1e6:
        raise QuantizationError(f"a map reaches {peak:g}, which leaves no room for scales in float32")
    return float(np.float32(scale))


def _clipped_peak(statistics: Statistics, dtype: str, method: str, percentile: float) -> float:
    """The largest magnitude that the integers shall reach."""
    peak = max(statistics.high, 0.0) if dtype == "u8" else statistics.peak
    if method == "minmax" or peak == 0:
        return peak
    assert statistics.histogram is not None
    counts = statistics.histogram.astype(np.float64)
    edges = (np.arange(HISTOGRAM_BINS) + 1) * (statistics.peak / HISTOGRAM_BINS)
    if method == "percentile":
        # Of the positive magnitudes: zeros of a rectifier or of gated channels say nothing about the range.
        counts[0] = 0
        total = counts.sum()
        if total == 0:
            return peak
        return float(min(peak, edges[np.searchsorted(np.cumsum(counts), total * percentile / 100)]))
    centres = edges - statistics.peak / HISTOGRAM_BINS / 2
    errors = []
    for fraction in _FRACTIONS:
        step = peak * fraction / LEVELS[dtype]
        rounded = np.minimum(np.rint(centres / step), LEVELS[dtype]) * step
        errors.append(float((counts * (rounded - centres) ** 2).sum()))
    return peak * float(_FRACTIONS[int(np.argmin(errors))])


def quantize_weights(weights: np.ndarray, layer: str, bits: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """s8 weights [K, ...] and a scale per output channel [K] (float64); a channel of zeros has scale 1.

    ``bits``: u8[K], the width that each channel's integers have to fit in; None: 8. Eight bits reach the largest
    weight; fewer clip where the squared error is least.

    Raises QuantizationError for weights that are not finite.
    """
    rows = weights.reshape(weights.shape[0], -1).astype(np.float64)
    if not np.isfinite(rows).all():
        channel = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise QuantizationError(f"layer {layer!r}: the weights of output channel {channel} are not finite")
    peaks = np.abs(rows).max(axis=1)
    scales = np.where(peaks > 0, peaks, LEVELS["s8"]) / LEVELS["s8"]
    integers = np.rint(rows / scales[:, None])
    for width in [] if bits is None else sorted(set(bits.tolist()) - {8}):
        chosen = np.flatnonzero((bits == width) & (peaks > 0))
        integers[chosen], scales[chosen] = _clipped(rows[chosen], peaks[chosen], 2 ** (width - 1) - 1)
    return integers.astype(np.int8).reshape(weights.shape), scales


def _clipped(rows: np.ndarray, peaks: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers in [-top, top] and scales of least squared error per row, among fractions of the peak."""
    best = np.full(len(rows), np.inf)
    integers, scales = np.zeros_like(rows), np.ones(len(rows))
    for fraction in _FRACTIONS:
        step = peaks * fraction / top
        levels = np.clip(np.rint(rows / step[:, None]), -top, top)
        error = np.square(levels * step[:, None] - rows).sum(axis=1)
        better = error < best
        best[better], integers[better], scales[better] = error[better], levels[better], step[better]
    return integers, scales
