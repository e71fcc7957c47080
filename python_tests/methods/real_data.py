"""CIFAR-10 and pretrained weights, where this machine has them."""

import functools
import os
from pathlib import Path

import pytest
import torch

from dynprune_rt import methods, models

#: $DYNPRUNE_RT_DATA, or shared/data beside the checkout.
FOLDER = Path(os.environ.get("DYNPRUNE_RT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

WEIGHTS = FOLDER / "cifar10_resnet20.safetensors"

needs_data = pytest.mark.skipif(
    not (FOLDER / "cifar10_test.npz").is_file() or not WEIGHTS.is_file(),
    reason="needs CIFAR-10 and pretrained weights: set DYNPRUNE_RT_DATA",
)


@functools.lru_cache(maxsize=1)
def cifar10():
    return methods.load_cifar10(FOLDER)


def resnet20():
    return models.create("cifar_resnet20", weights=WEIGHTS)


def calibration(count=500):
    return list(methods.Batches(cifar10().train.part(0, count), 250))


EXAMPLE = torch.zeros(1, 3, 32, 32)
