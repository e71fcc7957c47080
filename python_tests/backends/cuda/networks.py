"""Small gated networks as optimised graphs: what the GPU session is tested with."""

from __future__ import annotations

import functools

import numpy as np
import torch

import dynprune_rt
from dynprune_rt.models import create
from dynprune_rt.program import Program


@functools.cache
def network(name: str, gate: str | None, size: int = 12) -> Program:
    """A zoo network for images of ``size``, converted; the deep ones with one block per stage."""
    depths = {"cifar_resnet20": {"blocks": 1}, "resnet50": {"depths": (1, 1, 1, 1)}}
    model = create(name, gate, input_size=size, **depths.get(name, {}))
    return dynprune_rt.convert(model, torch.rand(2, 3, size, size))


def images(batch: int, size: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size)).astype(np.float32)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
