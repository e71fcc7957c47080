"""Synthetic images whose per-channel means differ from image to image, as those of photographs do.

White noise has the same pooled features in every image, so that no gate that reads them ever
changes its mind; smooth fields with their own brightness and contrast do not have that flaw.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def synthetic_images(batch: int, size: int | tuple[int, int], seed: int = 0, channels: int = 3) -> Tensor:
    """Smooth random images f32[batch, channels, H, W], about zero mean and unit deviation over the batch.

    Image i depends on ``seed`` and i only, not on ``batch``.
    """
    height, width = (size, size) if isinstance(size, int) else size
    images = []
    for index in range(batch):
        generator = torch.Generator().manual_seed(seed * 100003 + index)
        image = torch.zeros(1, channels, height, width)
        for cells, amplitude in ((2, 0.7), (5, 0.5), (13, 0.4)):
            field = torch.randn(1, channels, cells, cells, generator=generator)
            image += amplitude * F.interpolate(field, size=(height, width), mode="bilinear", align_corners=False)
        image += 0.15 * torch.randn(1, channels, height, width, generator=generator)
        contrast = 0.5 + torch.rand(1, 1, 1, 1, generator=generator)
        tint = 0.6 * torch.randn(1, channels, 1, 1, generator=generator)
        images.append(contrast * image + tint)
    return torch.cat(images)
