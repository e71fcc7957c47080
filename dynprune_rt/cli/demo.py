"""Classify real CIFAR-10 images with two gated ResNets and show what skipping saves.

Runs from files in the package: no network connection, no torch. OpenVINO and ONNX Runtime run the dense
networks beside it where they are installed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynprune_rt.cli.arguments import positive
from dynprune_rt.cli.progress import ProgressBar
from dynprune_rt.errors import DynpruneError

if TYPE_CHECKING:
    from dynprune_rt.demo import Trial

ABOUT = "see it work on real images"

_LEVELS = "▁▂▃▄▅▆▇█"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--images", type=Path, metavar="FILE", help="other CIFAR-10 images: test_batch.bin or .npz")
    parser.add_argument("--limit", type=positive, default=400, metavar="N", help="images (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from dynprune_rt.benchmark.machine import cpu_model
    from dynprune_rt.demo import IMAGES, MODELS, try_model
    from dynprune_rt.demo.cifar10 import load_images, normalize

    source = args.images or IMAGES
    if not source.is_file():
        raise DynpruneError(
            f"{source} is missing (CIFAR-10 has no open licence, so packages leave the images out): "
            "pass --images test_batch.bin of the binary version of CIFAR-10"
        )
    raw, labels = load_images(source, args.limit)
    images = normalize(raw)
    trials = []
    for model in MODELS:
        with ProgressBar(f"classifying {len(images)} images") as bar:
            trials.append(try_model(model, images, labels, args.threads, progress=bar))
    if args.json:
        print(json.dumps([summary(trial, labels) for trial in trials], indent=1))
        return 0
    print(f"{len(images)} CIFAR-10 test images, batch 1, {args.threads} thread(s), {trials[0].isa}, {cpu_model()}")
    for trial in trials:
        print()
        print("\n".join(describe(trial, labels)))
    return 0


def summary(trial: Trial, labels: np.ndarray) -> dict[str, Any]:
    """The trial's figures as a JSON-like object."""
    return {
        "model": trial.model.title,
        "images": len(labels),
        "accuracy": trial.accuracy(labels),
        "dense_accuracy": trial.dense_accuracy,
        "macs": {"mean": float(trial.macs.mean()), "min": int(trial.macs.min()), "max": int(trial.macs.max())},
        "dense_macs": trial.dense_macs,
        "bit_identical": trial.bit_identical,
        "latency_ms": trial.latency_ms,
        "skipped_peers": trial.skipped_peers,
        "isa": trial.isa,
        "threads": trial.threads,
    }


def describe(trial: Trial, labels: np.ndarray) -> list[str]:
    """The trial as lines of text."""
    mean = trial.macs.mean()
    lines = [trial.model.title, f"  {trial.model.about}", ""]
    accuracy = f"  accuracy      {trial.accuracy(labels):.1%}"
    if trial.dense_accuracy is not None:
        accuracy += f" (dense network: {trial.dense_accuracy:.1%})"
    lines.append(accuracy)
    lines.append(
        f"  work          {mean / 1e6:.1f} of {trial.dense_macs / 1e6:.1f} MMACs per image on average, "
        f"{trial.macs.min() / 1e6:.1f} to {trial.macs.max() / 1e6:.1f} by image"
    )
    lines.append(f"  same bits     {'yes, with and without skipping' if trial.bit_identical else 'NO'}")
    lines.append("  latency")
    width = max(map(len, trial.latency_ms))
    own = trial.latency_ms["skipping"]
    for name, ms in trial.latency_ms.items():
        ratio = "" if name == "skipping" else f"   {ms / own:.2f}x the time"
        lines.append(f"    {name:<{width}}  {ms:7.3f} ms{ratio}")
    lines += [f"    {name}: not compared, {reason}" for name, reason in trial.skipped_peers.items()]
    return [*lines, "", *_extremes(trial, labels)]


def _extremes(trial: Trial, labels: np.ndarray, count: int = 3) -> list[str]:
    """The images that used least and most, with their work layer by layer."""
    order = np.argsort(trial.macs, kind="stable")
    lines = ["  image   work  margin  work of each layer with gates      class"]
    for about, chosen in (("least", order[:count]), ("most", order[::-1][:count])):
        lines.append(f"  {about} work:")
        lines += [_image_line(trial, int(i), int(labels[i])) for i in chosen]
    return lines


def _image_line(trial: Trial, index: int, label: int) -> str:
    from dynprune_rt.demo.cifar10 import CLASSES

    prediction = int(trial.predictions[index])
    verdict = CLASSES[prediction] if prediction == label else f"{CLASSES[prediction]} (it is: {CLASSES[label]})"
    share = trial.macs[index] / trial.dense_macs
    return f"  {index:5d}   {share:4.0%}  {trial.margins[index]:6.1f}  {bars(trial.layer_shares[index])}  {verdict}"


def bars(shares: np.ndarray) -> str:
    """One block character per layer, its height the share of the layer's work that was done."""
    return "".join(_LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)] for share in shares)
