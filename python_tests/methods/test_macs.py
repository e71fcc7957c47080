"""MACs left by masks, against counting one by one."""

import pytest
import torch

from dynprune_rt.methods.graph import LayerCost
from dynprune_rt.methods.macs import activity, macs_at_widths, macs_of_masks

LAYERS = [
    LayerCost("a", 24, 3, 4, None, "a"),
    LayerCost("dw", 8, 4, 4, "a", "a"),
    LayerCost("b", 40, 4, 2, "a", "b"),
    LayerCost("c", 10, 2, 5, "b", None),
]


def count(layer, live):
    """Live input-output pairs, each worth the same share of the layer's MACs."""
    outputs = live[layer.output_site] if layer.output_site else [True] * layer.outputs
    if layer.module == "dw":
        return layer.macs * sum(outputs) / len(outputs)
    inputs = live[layer.input_site] if layer.input_site else [True] * layer.inputs
    pairs = sum(bool(i) and bool(o) for i in inputs for o in outputs)
    return layer.macs * pairs / (len(inputs) * len(outputs))


def masks(images=7):
    generator = torch.Generator().manual_seed(3)
    return {
        "a": torch.rand(images, 4, generator=generator) < 0.6,
        "b": torch.rand(images, 2, generator=generator) < 0.6,
    }


def test_per_image_count():
    live = masks()
    expected = [sum(count(layer, {s: m[n].tolist() for s, m in live.items()}) for layer in LAYERS) for n in range(7)]
    assert macs_of_masks(LAYERS, live).tolist() == pytest.approx(expected)


def test_widths_and_rates():
    assert macs_at_widths(LAYERS, {}) == 82
    assert macs_at_widths(LAYERS, {"a": 2}) == 12 + 4 + 20 + 10
    assert macs_at_widths(LAYERS, {"a": 2, "b": 1}) == 12 + 4 + 10 + 5
    assert macs_at_widths(LAYERS, {"b": 1}, {"b": 0.5}) == 10


def test_activity_parts_static_from_dynamic():
    a = torch.zeros(200, 4, dtype=torch.bool)
    a[:, 0] = True
    a[:100, 1] = True
    found = activity(LAYERS, {"a": a, "b": torch.ones(200, 2, dtype=torch.bool)}, gate_macs=1)
    assert found.macs_left == pytest.approx((0.375 * 72 + 10 + 1) / 82)
    assert found.static_cut == pytest.approx(1 - (36 + 10) / 82)
    assert found.static_share == pytest.approx(found.static_cut / (1 - found.macs_left))
    assert (found.never, found.always, found.varying) == pytest.approx((2 / 6, 3 / 6, 1 / 6))


def test_masks_on_a_network_made_smaller_first():
    a = torch.zeros(200, 4, dtype=torch.bool)
    a[:, 0] = True
    a[:100, 1] = True
    alone = activity(LAYERS, {"a": a, "b": torch.ones(200, 2, dtype=torch.bool)})
    found = alone.within(0.5)
    assert found.macs_left == pytest.approx(alone.macs_left / 2)
    assert found.static_cut == pytest.approx(1 - 0.5 * 46 / 82)
    assert found.static_share == pytest.approx(found.static_cut / (1 - found.macs_left))
    assert found.varying == alone.varying


def test_rarely_live_channels_count_as_never_live():
    a = torch.ones(1000, 4, dtype=torch.bool)
    a[9:, 3] = False
    found = activity(LAYERS, {"a": a, "b": torch.ones(1000, 2, dtype=torch.bool)})
    assert found.never == pytest.approx(1 / 6)
    assert found.static_share > 0.97


def test_input_sites_alone():
    layers = [LayerCost("b", 40, 4, 2, "x", None)]
    found = activity(layers, {"x": torch.tensor([[True, True, False, False]])})
    assert found.macs_left == 0.5
    assert found.static_share == 1.0
