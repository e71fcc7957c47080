"""A network without its removed channels computes what it computed with them masked."""

import pytest
import torch

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.graph import trace
from dynprune_rt.methods.macs import macs_at_widths
from dynprune_rt.methods.removal import remove_channels
from python_tests.methods.networks import Chain, Residual, settle, small_zoo


def masked_reference(model, traced, keep, x):
    """The original model with the removed channels multiplied by 0 where they are consumed."""
    modules = dict(model.named_modules())
    handles = []
    for site in traced.sites:
        if site.conv not in keep:
            continue
        mask = torch.zeros(site.channels)
        mask[keep[site.conv]] = 1
        for consumer in site.consumers:
            columns = mask.repeat_interleave(consumer.block)
            handles.append(
                modules[consumer.module].register_forward_pre_hook(
                    lambda m, inputs, c=columns: (inputs[0] * c.reshape(1, -1, *[1] * (inputs[0].dim() - 2)),)
                )
            )
    with torch.no_grad():
        result = model(x)
    for handle in handles:
        handle.remove()
    return result


@pytest.mark.parametrize("name", ["residual", "chain", "cifar_resnet20", "vgg16_bn"])
def test_removed_equals_masked(name):
    size = 12 if name in ("residual", "chain") else 32
    model = {"residual": Residual, "chain": Chain}[name]() if size == 12 else small_zoo(name, seed=1)
    model = settle(model, size=size) if size == 12 else model.eval()
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(5))
    traced = trace(model, x[:1])
    generator = torch.Generator().manual_seed(2)
    keep = {}
    for site in traced.inner_sites():
        count = max(1, site.channels // 2)
        keep[site.conv] = torch.randperm(site.channels, generator=generator)[:count].sort().values
    expected = masked_reference(model, traced, keep, x)
    layers = traced.layers
    remove_channels(traced, keep)
    with torch.no_grad():
        result = traced.module.eval()(x)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    again = trace(traced.module, x[:1])
    assert again.macs == macs_at_widths(layers, {name: len(index) for name, index in keep.items()})


def test_bad_input():
    traced = trace(Residual(), torch.zeros(1, 3, 12, 12))
    with pytest.raises(TrainingError, match=r"block1\.conv2.*no removable"):
        remove_channels(traced, {"block1.conv2": torch.tensor([0])})
    with pytest.raises(TrainingError, match=r"0\.\.7"):
        remove_channels(traced, {"block1.conv1": torch.tensor([8])})
    with pytest.raises(TrainingError, match=r"0\.\.7"):
        remove_channels(traced, {"block1.conv1": torch.tensor([], dtype=torch.long)})
