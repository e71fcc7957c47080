"""Physical removal: a smaller dense network without the channels that a static method gave up.

Rows of the convolution, the entries of its batch norm, depthwise filters that carry the channels on, and the
input columns of every consumer go; the function computed is that of the masked network, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.graph import TracedModel


def remove_channels(traced: TracedModel, keep: Mapping[str, Tensor]) -> None:
    """Shrink ``traced.module`` in place to the channels in ``keep``: site name -> i64 indices, ascending.

    Shapes recorded in ``traced`` are those before the removal; trace again for new costs.
    Raises TrainingError for unknown or residual sites, and for an empty or invalid index list.
    """
    modules = dict(traced.module.named_modules())
    sites = {site.conv: site for site in traced.sites}
    for name, index in keep.items():
        site = sites.get(name)
        if site is None or not site.inner:
            raise TrainingError(
                f"{name!r} has no removable channels; removable: {[s.conv for s in traced.inner_sites()]}"
            )
        if index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= site.channels:
            raise TrainingError(f"{name}: kept channels must be some of 0..{site.channels - 1}, got {index.tolist()}")
        _take_rows(modules[name], index)
        for follower in site.followers:
            _take_rows(modules[follower], index)
        for consumer in site.consumers:
            _take_columns(modules[consumer.module], index, consumer.block)


def _take_rows(module: nn.Module, index: Tensor) -> None:
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1
        module.weight = _parameter(module.weight, module.weight.detach()[index])
        if module.bias is not None:
            module.bias = _parameter(module.bias, module.bias.detach()[index])
        module.out_channels = len(index)
        if depthwise:
            module.in_channels = module.groups = len(index)
        return
    assert isinstance(module, nn.BatchNorm2d), type(module)
    module.num_features = len(index)
    if module.weight is not None:
        module.weight = _parameter(module.weight, module.weight.detach()[index])
        module.bias = _parameter(module.bias, module.bias.detach()[index])
    for name in ("running_mean", "running_var"):
        buffer = getattr(module, name)
        if buffer is not None:
            setattr(module, name, buffer[index].clone())


def _take_columns(module: nn.Module, index: Tensor, block: int) -> None:
    if isinstance(module, nn.Conv2d):
        module.weight = _parameter(module.weight, module.weight.detach()[:, index])
        module.in_channels = len(index)
        return
    assert isinstance(module, nn.Linear), type(module)
    columns = (index[:, None] * block + torch.arange(block, device=index.device)).flatten()
    module.weight = _parameter(module.weight, module.weight.detach()[:, columns])
    module.in_features = len(columns)


def _parameter(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone(), requires_grad=old.requires_grad)
