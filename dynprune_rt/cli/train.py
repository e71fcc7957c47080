"""Make a pretrained network dynamic or smaller, and write it as a .dpr program. Needs torch.

--data is a folder with CIFAR-10 (the original Python or binary batches, or .npz files); without it the environment
variable DYNPRUNE_RT_DATA is taken. A run with --folder keeps a checkpoint and goes on from it when it is repeated.

  dynprune train --method fbs --arch cifar_resnet20 --weights resnet20.safetensors --data cifar10 \\
      --target 0.5 --epochs 18 --folder runs/fbs --out fbs50.dpr
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dynprune_rt.cli.arguments import fraction, positive
from dynprune_rt.cli.progress import ProgressBar
from dynprune_rt.errors import DynpruneError

ABOUT = "prune a network or train gates for it"

#: Methods, spelled out so that --help needs no torch.
METHOD_NAMES = ("is", "di", "manidp", "cwp", "fbs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", required=True, choices=METHOD_NAMES)
    parser.add_argument(
        "--arch", required=True, metavar="NAME", help="network of the zoo (see dynprune convert --list)"
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="pretrained weights, safetensors")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with CIFAR-10 (default: $DYNPRUNE_RT_DATA)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.dpr")
    parser.add_argument("--target", type=fraction, help="share of the MACs to leave (default: the method's)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the method, for example rule=threshold"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep checkpoint.pt and log.jsonl here, and resume")
    parser.add_argument(
        "--teacher-cache", type=Path, metavar="DIR", help="keep the teacher's logits here, for runs of the same seed"
    )
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights of an earlier run of this method, to go on")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=positive, default=20, help="default: %(default)s")
    group.add_argument("--batch", type=positive, default=128, help="default: %(default)s")
    group.add_argument("--lr", type=float, default=0.05, help="peak learning rate (default: %(default)s)")
    group.add_argument("--distillation", type=float, default=0.7, help="weight of the teacher (default: %(default)s)")
    group.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="default: %(default)s")
    group.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    group.add_argument("--device", help="default: cuda where there is one, else cpu")
    group.add_argument("--train-images", type=positive, metavar="N", help="use the first N training images only")


def run(args: argparse.Namespace) -> int:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise DynpruneError(f"training needs torch, which cannot be imported: {error}") from None
    from dataclasses import replace

    from dynprune_rt.methods import Settings, load_cifar10
    from dynprune_rt.recipes.training_run import Place, Recipe
    from dynprune_rt.recipes.training_run import run as train

    data = load_cifar10(args.data)
    if args.train_images is not None:
        data = replace(data, train=data.train.part(0, args.train_images))
    recipe = Recipe(
        arch=args.arch,
        method=args.method,
        target=args.target,
        weights=str(args.weights.resolve()),
        options=dict(parse_option(text) for text in args.option),
        settings=Settings(
            epochs=args.epochs,
            learning_rate=args.lr,
            distillation=args.distillation,
            precision=args.precision,
            seed=args.seed,
        ),
        batch=args.batch,
        start=str(args.start.resolve()) if args.start is not None else None,
    )
    with ProgressBar("training") as bar:
        place = Place(data=data, weights="", run=args.folder, teacher=args.teacher_cache, device=args.device)
        outcome = train(recipe, place, progress=lambda done, total, text: bar(done, total, text))
    outcome.program.save(args.out)
    row = outcome.row
    if args.json:
        json.dump(row, sys.stdout, indent=1)
        print()
    else:
        activity = row["activity"]
        print(f"test accuracy  {row['test_accuracy']:.2%} of {row['test_images']} images, through the runtime")
        print(f"MACs left      {activity['macs_left']:.1%} of the dense network's, gates counted")
        print(f"static part    {activity['static_share']:.0%} of the cut would be had by deleting never-live channels")
        print(f"wrote {args.out}")
    return 0


def parse_option(text: str) -> tuple[str, Any]:
    """``key=value`` with the value as a number, true or false where it is one, else as text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise DynpruneError(f"--option {text!r}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
