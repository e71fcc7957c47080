"""What a finished model does: MACs left, static share, and where its masks vary."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from dynprune_rt.methods.base import Method
from dynprune_rt.methods.graph import trace
from dynprune_rt.methods.macs import Activity, activity, static_activity


def measure_activity(original: nn.Module, finished: nn.Module, method: Method, images: Iterable[Tensor]) -> Activity:
    """MACs left by ``finished``, relative to the dense ``original``, on batches f32 [B, C, H, W]; gates counted.

    Beside the cut stands its static part: what deleting the channels that are live in under 1 % of these images would
    give without any gate.
    """
    batches = list(images)
    dense = trace(original, batches[0][:1])
    live = method.live_masks(finished, batches)
    if not live:
        return static_activity(dense.macs, trace(finished, batches[0][:1]).macs)
    return activity(method.cost_layers(dense), live, method.gate_macs(finished))
