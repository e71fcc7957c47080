"""Convolution weights in the layouts of the kernels (csrc/cuda/index_math.h)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynprune_rt.backends.cuda.maps import CHUNK, round_up

Tensor = Any


def by_input(weight: np.ndarray, dtype: torch.dtype) -> Tensor:
    """[K, C, R, S] -> [R*S, C + 1, K up to 8]: rows of outputs, row C zero."""
    outputs, channels, height, width = weight.shape
    rows = np.zeros((height * width, channels + 1, round_up(outputs, CHUNK)), np.float32)
    rows[:, :channels, :outputs] = weight.transpose(2, 3, 1, 0).reshape(height * width, channels, outputs)
    return torch.from_numpy(rows).to(dtype)


def by_output(weight: np.ndarray, dtype: torch.dtype) -> Tensor:
    """[K, C, R, S] -> [K, R*S, C up to 8]: rows of inputs."""
    outputs, channels, height, width = weight.shape
    rows = np.zeros((outputs, height * width, round_up(channels, CHUNK)), np.float32)
    rows[:, :, :channels] = weight.transpose(0, 2, 3, 1).reshape(outputs, height * width, channels)
    return torch.from_numpy(rows).to(dtype)


def grouped(weight: np.ndarray) -> Tensor:
    """[K, C / groups, R, S] -> fp32 [R*S, C / groups, K]."""
    outputs, channels, height, width = weight.shape
    rows = weight.transpose(2, 3, 1, 0).reshape(height * width, channels, outputs)
    return torch.from_numpy(np.ascontiguousarray(rows, np.float32))
