"""Accuracy on the 10,000 CIFAR-10 test images through the runtime, image by image against torch.

For every network whose weights are given: top-1 of the runtime and of torch, the share of multiply-accumulates
that was executed, and every image whose logits or classes differ, with its top-2 margin (distance of the two best
logits) and its gate margin (smallest relative distance of a gate score from its threshold), to tell rounding from
error.

    python benchmarks/accuracy_cifar10.py --test test_batch.bin --train data_batch_1.bin \
        --resnet20 resnet20.safetensors --resnet56 resnet56.safetensors --resnet20-fbs resnet20_fbs.safetensors
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

import dynprune_rt
from dynprune_rt import models
from dynprune_rt.benchmark.machine import machine_facts
from dynprune_rt.cli.progress import ProgressBar
from dynprune_rt.demo.cifar10 import load_images, normalize
from dynprune_rt.models.gates import ImageGate, InstanceNormGate, KthGate, ManiDPGate
from dynprune_rt.recipes.instance_wise_sparsity import build, choose

BATCH = 200

#: Logits may differ by this much of the largest one (fp32 in another order of summation).
TOLERANCE = 1e-4


@dataclass
class Deviation:
    """An image whose logits differ from torch's by more than rounding, or that is classified differently."""

    image: int
    error: float
    runtime: int
    torch: int
    top2_margin: float
    gate_margin: float | None


@dataclass
class Result:
    """One network on all images; ``macs`` and ``dense_macs`` per image, ``max_error`` relative to the largest logit."""

    network: str
    images: int
    accuracy: float
    torch_accuracy: float
    macs: float
    dense_macs: int
    max_error: float
    deviations: list[Deviation] = field(default_factory=list)

    @property
    def disagreements(self) -> int:
        """Images that the runtime and torch classify differently."""
        return sum(case.runtime != case.torch for case in self.deviations)


def networks(args: argparse.Namespace, train: torch.Tensor | None) -> Iterator[tuple[str, nn.Module]]:
    """Names and torch models of everything that was asked for."""
    if args.resnet20 is not None:
        yield "ResNet-20 dense", models.create("cifar_resnet20", weights=args.resnet20)
    if args.resnet56 is not None:
        yield "ResNet-56 dense", models.create("cifar_resnet56", weights=args.resnet56)
        everywhere = build("cifar_resnet56", args.resnet56, None, 0.15, "max")
        yield "ResNet-56 IS, all sites, 0.15 of the largest norm", everywhere
        if train is not None:
            choice = choose("cifar_resnet56", args.resnet56, train)
            model = build("cifar_resnet56", args.resnet56, choice.sites, choice.alpha, "mean")
            yield f"ResNet-56 IS, {len(choice.sites)} sites, {choice.alpha:g} of the mean norm", model
    if args.resnet20_fbs is not None:
        yield "ResNet-20 FBS, 60 % kept", models.create("cifar_resnet20", "kth", share=0.6, weights=args.resnet20_fbs)
    if args.resnet20_manidp is not None:
        model = models.create(
            "cifar_resnet20", "manidp", weights=args.resnet20_manidp, gate_options={"clamp_max": args.manidp_clamp}
        )
        yield "ResNet-20 ManiDP", model


def gate_margin(model: nn.Module, image: torch.Tensor) -> float | None:
    """Smallest relative distance of any gate's score from its threshold on ``image`` f32[1, 3, 32, 32]."""
    margins: list[float] = []

    def record(gate: ImageGate, source: torch.Tensor) -> None:
        if isinstance(gate, InstanceNormGate):
            norms = source.square().sum((2, 3)).sqrt()
            largest = norms.amax(1, keepdim=True)
            threshold = gate.alpha * (largest if gate.rule == "max" else norms.mean(1, keepdim=True))
            margins.append(float(((norms - threshold).abs() / largest).min()))
        elif isinstance(gate, KthGate):
            ordered = gate.saliency(source.mean((2, 3))).sort(descending=True).values
            gap = ordered[:, gate.keep - 1] - ordered[:, gate.keep]
            # Where the k-th largest saliency is zero, so are all the others: nothing hangs on the order.
            margins.append(float(gap / ordered[:, 0]) if float(ordered[:, gate.keep - 1]) > 0 else float("inf"))
        elif isinstance(gate, ManiDPGate):
            hidden = torch.relu(gate.fc1(source.mean((2, 3))))
            saliency = torch.relu(gate.fc2(hidden)).clamp(max=gate.clamp_max)
            margins.append(float((saliency - gate.threshold).abs().min() / saliency.max()))

    originals = []
    for gate in (m for m in model.modules() if isinstance(m, ImageGate)):
        compute = gate.mask
        originals.append((gate, compute))

        def observed(source: torch.Tensor, gate: ImageGate = gate, compute=compute) -> torch.Tensor:
            record(gate, source)
            return compute(source)

        gate.mask = observed
    with torch.inference_mode():
        model(image)
    for gate, compute in originals:
        gate.mask = compute
    return min(margins) if margins else None


def evaluate(name: str, model: nn.Module, images: np.ndarray, labels: np.ndarray, threads: int) -> Result:
    """Convert, run every image through runtime and torch, compare."""
    session = dynprune_rt.load(dynprune_rt.convert(model, images[:2]), threads=threads)
    outputs, expected, macs = [], [], 0
    with ProgressBar(name) as bar, torch.inference_mode():
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            outputs.append(session.run(part))
            macs += session.profile(part).macs
            expected.append(model(torch.from_numpy(part)).numpy())
            bar(start + len(part), len(images))
    ours, theirs = np.concatenate(outputs), np.concatenate(expected)
    predictions, references = ours.argmax(1), theirs.argmax(1)
    result = Result(
        network=name,
        images=len(images),
        accuracy=float((predictions == labels).mean()),
        torch_accuracy=float((references == labels).mean()),
        macs=macs / len(images),
        dense_macs=session.program.dense_macs,
        max_error=float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    )
    errors = np.abs(ours - theirs).max(1) / np.abs(theirs).max()
    for i in np.flatnonzero((predictions != references) | (errors > TOLERANCE)):
        best = np.sort(theirs[i])
        result.deviations.append(
            Deviation(
                image=int(i),
                error=float(errors[i]),
                runtime=int(predictions[i]),
                torch=int(references[i]),
                top2_margin=float(best[-1] - best[-2]),
                gate_margin=gate_margin(model, torch.from_numpy(images[i : i + 1])),
            )
        )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, required=True, help="test images")
    parser.add_argument("--train", type=Path, help="training images: adds the calibrated instance-wise sparsity")
    parser.add_argument("--resnet20", type=Path, help="dense weights, safetensors")
    parser.add_argument("--resnet56", type=Path, help="dense weights, safetensors")
    parser.add_argument("--resnet20-fbs", type=Path, help="gated weights, safetensors")
    parser.add_argument("--resnet20-manidp", type=Path, help="gated weights, safetensors")
    parser.add_argument("--manidp-clamp", type=float, default=4.0, help="largest saliency (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="images to use (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    raw, labels = load_images(args.test, args.limit)
    images = normalize(raw)
    train = None if args.train is None else torch.from_numpy(normalize(load_images(args.train, 2000)[0]))
    results = []
    print("| network | top-1 | torch | MMACs | of dense | largest error | logits differ | classes differ |")
    print("|---|---|---|---|---|---|---|---|")
    for name, model in networks(args, train):
        result = evaluate(name, model, images, labels, args.threads)
        results.append(result)
        work = f"{result.macs / 1e6:.1f} | {result.macs / result.dense_macs:.1%}"
        row = f"| {name} | {result.accuracy:.2%} | {result.torch_accuracy:.2%} | {work} "
        print(f"{row}| {result.max_error:.1e} | {len(result.deviations)} | {result.disagreements} |", flush=True)
    for result in results:
        for case in result.deviations:
            print(f"{result.network}: {case}")
    if args.json is not None:
        # Where the files lie is nobody else's business.
        command = shlex.join(["python", *(Path(part).name if "/" in part else part for part in sys.argv)])
        facts = {"command": command, "machine": machine_facts()}
        args.json.write_text(json.dumps({**facts, "results": [asdict(r) for r in results]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
