"""One training run from files to figures: train, convert, and measure the .dpr through the runtime."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dynprune_rt
from dynprune_rt import methods, models
from dynprune_rt.errors import DataError, TrainingError
from dynprune_rt.methods.attach import gate_key
from dynprune_rt.methods.data import Cifar10, ImageSet
from dynprune_rt.methods.graph import trace
from dynprune_rt.program import Program

#: Images that methods calibrate on, in batches of 250 (every ten consecutive ones hold one image per class).
CALIBRATION_IMAGES = 1000

#: Images on which the converted program is compared with the torch model.
PARITY_IMAGES = 1000


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. ``weights``, ``start``: safetensors files, relative to the data folder.

    ``base``: name of a recipe whose finished network this one starts from; ``target`` is then relative to that one.
    """

    arch: str
    method: str
    target: float | None
    weights: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: methods.Settings = field(default_factory=methods.Settings)
    batch: int = 128
    start: str | None = None
    start_epochs: int = 0
    base: str | None = None


@dataclass
class Outcome:
    """``row``: the figures, ready for JSON; ``program``: the converted model."""

    model: nn.Module
    program: Program
    row: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a run finds and keeps things: CIFAR-10, the folder of weights, those of its own and of its base's
    checkpoints, and of the teacher's logits (see `methods.train`); recipes of one seed and batch size share them.
    """

    data: Cifar10
    weights: str | Path
    run: str | Path | None = None
    base: str | Path | None = None
    teacher: str | Path | None = None
    device: str | None = None


def run(
    recipe: Recipe,
    place: Place,
    base: Recipe | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Outcome:
    """Train by ``recipe`` (going on where its folder holds a checkpoint) and measure the result.

    base: the recipe that ``recipe.base`` names, trained first where its folder holds no finished run.
    The test images are looked at once, at the end, through the converted program.
    """
    started = time.monotonic()
    data = place.data
    dense = models.create(recipe.arch, weights=_file(place.weights, recipe.weights))
    network = dense
    if base is not None:
        network = _train(base, place, place.base, dense, dense, progress).model
    result = _train(recipe, place, place.run, network, dense, progress)
    images = [x for x, _ in in_order(data.validation)]
    activity = methods.measure_activity(network, result.model, result.method, images)
    if base is not None:
        example = images[0][:1]
        activity = activity.within(trace(network, example).macs / trace(dense, example).macs)
    program = dynprune_rt.convert(result.model, data_example(data))
    row: dict[str, Any] = {
        "arch": recipe.arch,
        "method": recipe.method,
        "target": recipe.target,
        "options": dict(recipe.options),
        "settings": asdict(recipe.settings),
        "start": recipe.start or recipe.base,
        "epochs": recipe.settings.epochs,
        "epochs_before": recipe.start_epochs + (base.settings.epochs + base.start_epochs if base is not None else 0),
        "train_seconds": sum(r["seconds"] for r in result.history),
        "train_cpu_seconds": sum(r["cpu_seconds"] for r in result.history),
        "validation": [r["validation"] for r in result.history],
        "activity": asdict(activity),
        **evaluate(result.model, program, data),
        "seconds": time.monotonic() - started,
    }
    return Outcome(result.model, program, row)


def _train(
    recipe: Recipe,
    place: Place,
    folder: str | Path | None,
    network: nn.Module,
    teacher: nn.Module,
    progress: Callable[[int, int, str], None] | None,
) -> methods.Training:
    data = place.data
    return methods.train(
        network,
        methods.Batches(data.train, recipe.batch, augment=True, seed=recipe.settings.seed),
        methods.create(recipe.method, recipe.target, **recipe.options),
        settings=recipe.settings,
        classes=data.train.classes,
        calibration=list(in_order(data.train.part(0, CALIBRATION_IMAGES))),
        validation=in_order(data.validation),
        teacher=teacher,
        teacher_cache=place.teacher,
        start=_start_weights(network, _file(place.weights, recipe.start)) if recipe.start else None,
        device=place.device,
        folder=folder,
        progress=progress,
    )


def evaluate(model: nn.Module, program: Program, data: Cifar10) -> dict[str, Any]:
    """Accuracy of ``program`` on the test images, MACs it executed, and its agreement with the torch model."""
    session = dynprune_rt.load(program, threads=1)
    right = 0
    for images, labels in in_order(data.test):
        logits = session.run(images.numpy())
        right += int((logits.argmax(1) == labels.numpy()).sum())
    count = min(PARITY_IMAGES, len(data.test))
    worst, agree, macs, full = 0.0, 0, 0, 0
    for images, _ in in_order(data.test.part(0, count)):
        with torch.no_grad():
            wanted = model(images).numpy()
        logits = session.run(images.numpy())
        worst = max(worst, float(np.abs(logits - wanted).max()))
        agree += int((logits.argmax(1) == wanted.argmax(1)).sum())
        for layer in session.profile(images.numpy()).rows:
            macs += int(layer["macs"])
    for layer in session.profile(images.numpy(), skip=False).rows:
        full += int(layer["macs"])
    return {
        "test_accuracy": right / len(data.test),
        "test_images": len(data.test),
        "executed_macs": macs / count,
        "program_macs": full / len(images),
        "parity_images": count,
        "parity_max_difference": worst,
        "parity_same_class": agree / count,
    }


def in_order(images: ImageSet) -> methods.Batches:
    """Batches of up to 250, not augmented."""
    return methods.Batches(images, min(250, len(images)))


def data_example(data: Cifar10) -> Tensor:
    """Two normalised images, for conversion."""
    return next(iter(methods.Batches(data.validation.part(0, 2), 2)))[0].contiguous()


def _file(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise DataError(f"{path} is missing")
    return path


def _start_weights(network: nn.Module, path: Path) -> dict[str, Tensor]:
    """Weights of an earlier run; gates numbered ``gates.k`` (w1, w2) are given this package's names."""
    from safetensors.torch import load_file

    sites = trace(network, torch.zeros(1, 3, 32, 32)).sites
    tensors = load_file(str(path))
    perceptron = any(".w1." in name for name in tensors)
    layers = {"w1": "fc1", "w2": "fc2" if perceptron else "fc"}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"gates\.(\d+)\.(w1|w2|thre)\.?(.*)", name)
        if match is None:
            renamed[name] = tensor
            continue
        if int(match[1]) >= len(sites):
            raise TrainingError(f"{path}: {name} has no place, the network has {len(sites)} sites")
        key = gate_key(sites[int(match[1])].conv)
        if match[2] == "thre":
            renamed[f"gates.{key}.threshold"] = tensor.reshape(())
        else:
            renamed[f"gates.{key}.{layers[match[2]]}.{match[3]}"] = tensor
    return renamed
