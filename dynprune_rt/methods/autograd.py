"""Pooling and per-channel scaling whose gradients keep the channels_last layout.

The plain forms are exact but slow to train on the CPU: the gradient of ``x.mean((2, 3))`` is laid out differently from
the map's other gradients, so that every accumulation walks memory with a stride.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return _float(x.mean((2, 3)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        scaled = (grad / (ctx.shape[2] * ctx.shape[3])).to(ctx.dtype)
        if not ctx.channels_last:
            return scaled[:, :, None, None].expand(ctx.shape)
        # Written out: adding a tensor of stride 0 to a channels_last map takes ten times as long as both steps.
        n, c, h, w = ctx.shape
        return scaled[:, None, None, :].expand(n, h, w, c).contiguous().permute(0, 3, 1, 2)


class _ChannelScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale.to(x.dtype)[:, :, None, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, scale = ctx.saved_tensors
        grad_x = grad * scale.to(grad.dtype)[:, :, None, None] if ctx.needs_input_grad[0] else None
        grad_scale = (grad * x).sum((2, 3)).to(scale.dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_scale


def global_mean(x: Tensor) -> Tensor:
    """Mean over H and W: [N, C, H, W] -> [N, C], in float32 where x is bfloat16."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _GlobalMean.apply(x)
    return _float(x.mean((2, 3)))


def _float(pooled: Tensor) -> Tensor:
    """After the reduction, not before: a bfloat16 map is not to be copied whole (sums accumulate in float32)."""
    return pooled.float() if pooled.dtype == torch.bfloat16 else pooled


def channel_scale(x: Tensor, scale: Tensor) -> Tensor:
    """x [N, C, H, W] times scale [N, C]."""
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _ChannelScale.apply(x, scale)
    return x * scale.to(x.dtype)[:, :, None, None]
