"""Profile a .dpr program layer by layer: live channels, multiply-accumulates, time, efficiency.

Runs the images with and without skipping, several times, and shows the run of median time of each.
Efficiency is the realised speed-up over the ideal one, in which time follows multiply-accumulates.
Needs no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dynprune_rt.cli.arguments import add_normalization, add_threads, positive
from dynprune_rt.cli.arrays import add_input, as_batch, read_array
from dynprune_rt.cli.progress import ProgressBar
from dynprune_rt.errors import DynpruneError
from dynprune_rt.profile import Profile

ABOUT = "time a program layer by layer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", type=Path, metavar="PROGRAM", help="a .dpr file")
    add_input(parser)
    parser.add_argument(
        "--images", type=positive, default=8, metavar="N", help="use the first N (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=positive, default=20, metavar="N", help="runs of each (default: %(default)s)")
    parser.add_argument("--no-dense", action="store_true", help="do not compare with a run without skipping")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_threads(parser, default=1)
    add_normalization(parser)


def run(args: argparse.Namespace) -> int:
    import dynprune_rt

    session = dynprune_rt.load(args.program, threads=args.threads)
    types = list(session.program.inputs.values())
    if len(types) != 1:
        raise DynpruneError(f"{args.program} has {len(types)} inputs; use Session.profile from Python")
    images = as_batch(read_array(args.input, args.key), types[0].shape[1:], args.mean, args.std)[: args.images]
    skipping: list[Profile] = []
    dense: list[Profile] = []
    with ProgressBar("profiling") as bar:
        for i in range(args.repeats):
            skipping.append(session.profile(images))
            if not args.no_dense:
                dense.append(session.profile(images, skip=False))
            bar(i + 1, args.repeats)
    profile = median(skipping)
    if dense:
        profile = profile.against(median(dense))
    print(profile.to_json() if args.json else profile)
    return 0


def median(profiles: list[Profile]) -> Profile:
    """The profile whose total time is the median."""
    return sorted(profiles, key=lambda profile: profile.ms)[len(profiles) // 2]
