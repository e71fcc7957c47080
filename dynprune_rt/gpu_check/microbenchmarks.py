"""What a GPU reaches, for the roofline and for the model behind the modes: rates, launches, single layers."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F

from dynprune_rt.backends.cuda.conv_timer import conv_call
from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import ConvMode
from dynprune_rt.backends.cuda.modes import ConvProblem
from dynprune_rt.gpu_check.roofline import Roofline
from dynprune_rt.gpu_check.timing import graphed, median_ms

#: Layers of ResNet-50: channels, outputs, size of the map, kernel.
LAYERS: Final = tuple(
    layer
    for width, size in ((64, 56), (128, 28), (256, 14), (512, 7))
    for layer in ((4 * width, width, size, 1), (width, width, size, 3), (width, 4 * width, size, 1))
)
SHARES: Final = (0.25, 0.5, 0.75, 1.0)
_BATCHES: Final = (1, 64)


def rates(device: torch.device) -> Roofline:
    """fp16 products of large matrices, and copies of memory."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.float16)
    macs = 8192**3 / (median_ms(lambda: a @ a) * 1e-3)
    block = torch.empty(2**28, device=device, dtype=torch.float32)
    other = torch.empty_like(block)
    moved = 2 * block.numel() * 4 / (median_ms(lambda: other.copy_(block)) * 1e-3)
    return Roofline(macs, moved)


def launch_gap(kernels: Kernels, count: int = 200) -> float:
    """Microseconds per kernel in a graph of kernels that have next to nothing to do."""
    mask = torch.ones((1, 32), dtype=torch.bool, device=kernels.device)
    records = kernels.channel_set(mask).records

    def chain() -> None:
        for _ in range(count):
            kernels.live_lists(mask, records)

    return median_ms(graphed(chain)) * 1e3 / count


def layer_times(kernels: Kernels, layer: tuple[int, int, int, int], batch: int) -> list[dict[str, Any]]:
    """Milliseconds of one layer in every mode at every live share, beside cuDNN's dense one."""
    channels, outputs, size, kernel = layer
    pad = kernel // 2
    x = torch.randn(batch, channels, size, size, device=kernels.device, dtype=torch.float16)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, kernel, kernel, device=kernels.device, dtype=torch.float16)
    weight = weight.to(memory_format=torch.channels_last)
    where = {"channels": channels, "outputs": outputs, "size": size, "kernel": kernel, "batch": batch}
    rows = [{**where, "mode": "cudnn", "live": 1.0, "ms": median_ms(graphed(lambda: F.conv2d(x, weight, padding=pad)))}]
    geometry = (kernel, kernel, 1, 1, pad, pad, 1, 1)
    for packed in (False, True):
        for gated in (False, True):
            problem = ConvProblem(channels, outputs, (size, size), (size, size), geometry, packed, gated, False)
            for layout in problem.layouts():
                for share in SHARES if packed or gated else (1.0,):
                    call = graphed(conv_call(kernels, problem, ConvMode(layout), batch, share))
                    name = f"{ConvMode(layout)} {'packed' if packed else 'whole'} input"
                    rows.append({**where, "mode": name, "live": share, "ms": median_ms(call)})
    return rows


def all_layers(kernels: Kernels) -> list[dict[str, Any]]:
    return [row for batch in _BATCHES for layer in LAYERS for row in layer_times(kernels, layer, batch)]
