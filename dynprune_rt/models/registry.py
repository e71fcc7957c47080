"""The zoo's table: names, constructors, input shapes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynprune_rt.errors import DynpruneError
from dynprune_rt.models.calibration import calibrate, initialise
from dynprune_rt.models.cifar_resnet import CifarResNet
from dynprune_rt.models.densenet import DenseNet
from dynprune_rt.models.gates import ImageGate
from dynprune_rt.models.images import synthetic_images
from dynprune_rt.models.mobilenet_v1 import MobileNetV1
from dynprune_rt.models.mobilenet_v2 import MobileNetV2
from dynprune_rt.models.placement import GateFactory
from dynprune_rt.models.resnet import ResNet
from dynprune_rt.models.squeezenet import SqueezeNet
from dynprune_rt.models.vgg import VGG16BN
from dynprune_rt.models.weights import load_weights


@dataclass(frozen=True)
class ZooEntry:
    """One network: its constructor (taking a GateFactory and options) and the usual input size."""

    build: Callable[..., nn.Module]
    input_size: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        return (3, self.input_size, self.input_size)


_ZOO: dict[str, ZooEntry] = {
    **{f"cifar_resnet{6 * n + 2}": ZooEntry(partial(CifarResNet, blocks=n), 32) for n in (3, 5, 7, 9, 18)},
    "vgg16_bn": ZooEntry(VGG16BN, 32),
    "resnet18": ZooEntry(partial(ResNet, depths=(2, 2, 2, 2)), 224),
    "resnet34": ZooEntry(partial(ResNet, depths=(3, 4, 6, 3)), 224),
    "resnet50": ZooEntry(partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True), 224),
    "mobilenet_v1": ZooEntry(MobileNetV1, 224),
    "mobilenet_v1_075": ZooEntry(partial(MobileNetV1, width=0.75), 224),
    "mobilenet_v2": ZooEntry(MobileNetV2, 224),
    "squeezenet1_1": ZooEntry(SqueezeNet, 224),
    "densenet121": ZooEntry(partial(DenseNet, depths=(6, 12, 24, 16)), 224),
    "cifar_densenet40": ZooEntry(partial(DenseNet, depths=(6, 6, 6), growth=12, large=False, classes=10), 32),
}


def _calibration_images(size: int) -> int:
    """Enough for statistics: batch norms inside gates see one value per image only."""
    return 16 if size >= 128 else 32


def available() -> list[str]:
    """Names that ``create`` takes."""
    return sorted(_ZOO)


def entry(name: str) -> ZooEntry:
    """The zoo's row of ``name``. Raises DynpruneError for an unknown one, with the nearest names."""
    if name not in _ZOO:
        near = difflib.get_close_matches(name, _ZOO, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(available())}"
        raise DynpruneError(f"no model {name!r} in the zoo; {hint}")
    return _ZOO[name]


def create(
    name: str,
    gate: str | None = None,
    seed: int = 0,
    *,
    share: float = 0.5,
    weights: str | Path | None = None,
    input_size: int | None = None,
    calibration: Tensor | None = None,
    gate_sites: Collection[int] | None = None,
    gate_options: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A network in eval mode, its outputs finite and its masks mixed.

    gate: a key of ``models.GATES``, or None for the dense network.
    seed: of weights, thresholds and synthetic calibration images; the global generator is left alone.
    share: wanted fraction of live channels (exact for fixed-count gates, on average over images otherwise).
    weights: safetensors file; without one the weights are random and batch-norm statistics come from data.
    input_size: height and width of the synthetic calibration images (default: the network's usual one).
    calibration: images f32[N, 3, H, W] to calibrate with instead of synthetic ones.
    gate_sites: numbers of the sites to gate, in order of execution; all by default.
    gate_options, options: for the gate's and the network's constructors (width=, classes=, shortcut=, ...).

    Raises DynpruneError for unknown names and options and for weights that do not fit.
    """
    row = entry(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        factory = GateFactory(gate, share, gate_sites, **(gate_options or {}))
        try:
            model = row.build(factory, **options)
        except (TypeError, ValueError) as error:
            raise DynpruneError(f"cannot build {name!r} with options {options}: {error}") from None
        if gate is not None and not any(isinstance(m, ImageGate) for m in model.modules()):
            raise DynpruneError(
                f"gate {gate!r} has no place in {name!r} (it needs residual blocks, or other gate_sites)"
            )
        if weights is None:
            initialise(model)
            uncalibrated = True
        else:
            uncalibrated = bool(load_weights(model, weights))
        if uncalibrated:
            if calibration is None:
                size = input_size or row.input_size
                calibration = synthetic_images(_calibration_images(size), size, seed)
            calibrate(model, calibration, statistics=weights is None)
    return model.eval()
