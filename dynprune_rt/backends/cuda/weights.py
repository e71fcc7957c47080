"""Convolution weights in the layouts of the kernels (csrc/cuda/index_math.h)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynprune_rt.backends.cuda.maps import CHUNK, round_up

Tensor = Any


def _elements(rows: np.ndarray, dtype: torch.dtype) -> Tensor:
    """In the type of the kernels' weights; fp32 is rounded to the nearest tf32, as the products read no more bits."""
    if dtype == torch.float32:
        raw = rows.view(np.uint32)
        rows = ((raw + 0xFFF + (raw >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)
    return torch.from_numpy(rows).to(dtype)


def by_input(weight: np.ndarray, dtype: torch.dtype) -> Tensor:
    """[K, C, R, S] -> [R*S, C + 1, K up to 8]: rows of outputs, row C zero."""
    outputs, channels, height, width = weight.shape
    rows = np.zeros((height * width, channels + 1, round_up(outputs, CHUNK)), np.float32)
    rows[:, :channels, :outputs] = weight.transpose(2, 3, 1, 0).reshape(height * width, channels, outputs)
    return _elements(rows, dtype)


def by_output(weight: np.ndarray, dtype: torch.dtype) -> Tensor:
    """[K, C, R, S] -> [K, R*S, C up to 8]: rows of inputs."""
    outputs, channels, height, width = weight.shape
    rows = np.zeros((outputs, height * width, round_up(channels, CHUNK)), np.float32)
    rows[:, :, :channels] = weight.transpose(0, 2, 3, 1).reshape(outputs, height * width, channels)
    return _elements(rows, dtype)


def grouped(weight: np.ndarray) -> Tensor:
    """[K, C / groups, R, S] -> fp32 [R*S, C / groups, K]."""
    outputs, channels, height, width = weight.shape
    rows = weight.transpose(2, 3, 1, 0).reshape(height * width, channels, outputs)
    return torch.from_numpy(np.ascontiguousarray(rows, np.float32))
