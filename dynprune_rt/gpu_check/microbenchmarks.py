"""What a GPU reaches, for the roofline and for the model behind the modes: rates, launches, single layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
import torch.nn.functional as F

from dynprune_rt.backends.cuda.conv_timer import conv_call
from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.maps import DENSE, ConvMode
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
LAYER_BATCHES: Final = (1, 64)
#: Batches at which a kernel of products can be held to cuDNN's: the layers fill the GPU.
DENSE_BATCHES: Final = (64, 256)
#: Sizes of what rates are measured with: rows of a matrix, floats of a block of memory.
MATRIX = 8192
BLOCK = 2**28
#: Channels, outputs and size of the layer that shows what the order of images is worth.
ORDER_LAYER = (512, 128, 28)


def rates(device: torch.device) -> Roofline:
    """fp16 products of large matrices, and copies of memory."""
    a = torch.randn(MATRIX, MATRIX, device=device, dtype=torch.float16)
    macs = MATRIX**3 / (median_ms(lambda: a @ a) * 1e-3)
    block = torch.empty(BLOCK, device=device, dtype=torch.float32)
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
    where = {"channels": channels, "outputs": outputs, "size": size, "kernel": kernel, "batch": batch}
    dense = _dense_problem(channels, outputs, size, kernel)
    rows = [{**where, "mode": "cudnn", "live": 1.0, "ms": _cudnn_ms(kernels, channels, outputs, size, kernel, batch)}]
    for packed in (False, True):
        for gated in (False, True):
            problem = replace(dense, packed=packed, gated=gated)
            for layout in problem.layouts():
                for share in SHARES if packed or gated else (1.0,):
                    call = graphed(conv_call(kernels, problem, ConvMode(layout), batch, share))
                    name = f"{ConvMode(layout)} {'packed' if packed else 'whole'} input"
                    rows.append({**where, "mode": name, "live": share, "ms": median_ms(call)})
    return rows


def dense_layers(kernels: Kernels) -> list[dict[str, Any]]:
    """Dense layers on the kernels' mma.sync beside cuDNN's: how much of a gap faster tensor-core instructions leave."""
    rows = []
    for batch in DENSE_BATCHES:
        for channels, outputs, size, kernel in LAYERS:
            cudnn = _cudnn_ms(kernels, channels, outputs, size, kernel, batch)
            problem = _dense_problem(channels, outputs, size, kernel)
            ms = median_ms(graphed(conv_call(kernels, problem, ConvMode(DENSE), batch, 1.0)))
            rate = batch * size * size * channels * outputs * kernel**2 / (ms * 1e9)
            where = {"channels": channels, "outputs": outputs, "size": size, "kernel": kernel, "batch": batch}
            rows.append({**where, "cudnn ms": cudnn, "ms": ms, "TMAC per second": rate})
    return rows


def dense_summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Over all layers of a batch, how many times cuDNN's time the kernel takes; and for the worst layer."""
    result = {}
    for batch in DENSE_BATCHES:
        chosen = [row for row in rows if row["batch"] == batch]
        result[f"of cuDNN's time at batch {batch}"] = sum(r["ms"] for r in chosen) / sum(r["cudnn ms"] for r in chosen)
        result[f"worst layer at batch {batch}"] = max(r["ms"] / r["cudnn ms"] for r in chosen)
    return result


def image_order(kernels: Kernels) -> dict[str, float]:
    """Milliseconds of a layer whose images have from 10 to 90 % of their inputs live, by the order of the images.

    Tiles are worked on in that order, so that "falling" is what sorting images by work could gain over "mixed".
    """
    problem = replace(_dense_problem(*ORDER_LAYER, kernel=1), packed=True)
    rising = torch.linspace(0.1, 0.9, LAYER_BATCHES[-1])[:, None]
    mixed = rising[torch.randperm(len(rising), generator=torch.Generator().manual_seed(0))]
    orders = {"falling": rising.flip(0), "mixed": mixed, "rising": rising}
    mode = ConvMode(problem.layouts()[0])
    return {
        name: median_ms(graphed(conv_call(kernels, problem, mode, len(shares), shares)))
        for name, shares in orders.items()
    }


def _dense_problem(channels: int, outputs: int, size: int, kernel: int) -> ConvProblem:
    geometry = (kernel, kernel, 1, 1, kernel // 2, kernel // 2, 1, 1)
    return ConvProblem(channels, outputs, (size, size), (size, size), geometry, False, False, False)


def _cudnn_ms(kernels: Kernels, channels: int, outputs: int, size: int, kernel: int, batch: int) -> float:
    """Of the dense layer, in channels_last."""
    x = torch.randn(batch, channels, size, size, device=kernels.device, dtype=torch.float16)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, kernel, kernel, device=kernels.device, dtype=torch.float16)
    weight = weight.to(memory_format=torch.channels_last)
    return median_ms(graphed(lambda: F.conv2d(x, weight, padding=kernel // 2)))
