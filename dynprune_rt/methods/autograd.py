"""Pooling, norms and per-channel scaling whose gradients keep the channels_last layout.

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


class _ChannelNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norms = _norms(x, eps)
        ctx.save_for_backward(x, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, norms = ctx.saved_tensors
        return x * (grad / norms).to(x.dtype)[:, :, None, None], None


def channel_norms(x: Tensor, eps: float = 1e-12) -> Tensor:
    """||x_c||_2 over H and W: [N, C, H, W] -> [N, C], in float32 where x is bfloat16.

    The root is guarded by ``eps``, so the gradient at a zero map is 0.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        norms: Tensor = _ChannelNorms.apply(x, eps)
        return norms
    return _norms(x, eps)


def _norms(x: Tensor, eps: float) -> Tensor:
    return (_float(x.square().sum((2, 3))) + eps).sqrt()


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
