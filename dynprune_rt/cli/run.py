"""Run a .dpr program on images from a numpy file.

Prints the best classes per image, or writes the output with -o. Needs no torch.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from dynprune_rt.cli.arguments import add_normalization, add_threads, positive
from dynprune_rt.cli.arrays import add_input, as_batch, read_array, write_array
from dynprune_rt.cli.progress import ProgressBar
from dynprune_rt.errors import DynpruneError

ABOUT = "run a program on images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", type=Path, metavar="PROGRAM", help="a .dpr file")
    add_input(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.npy", help="write the output here")
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="classes to print (default: %(default)s)")
    parser.add_argument(
        "--batch", type=positive, default=32, metavar="N", help="images per call (default: %(default)s)"
    )
    parser.add_argument("--no-skip", action="store_true", help="execute every channel (same result, for comparison)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_threads(parser)
    add_normalization(parser)


def run(args: argparse.Namespace) -> int:
    import dynprune_rt

    session = dynprune_rt.load(args.program, threads=args.threads)
    types = list(session.program.inputs.values())
    if len(types) != 1:
        raise DynpruneError(f"{args.program} has {len(types)} inputs; use dynprune_rt.load from Python")
    images = as_batch(read_array(args.input, args.key), types[0].shape[1:], args.mean, args.std)
    outputs = []
    with ProgressBar("running") as bar:
        for start in range(0, max(len(images), 1), args.batch):
            result = session.run(images[start : start + args.batch], skip=not args.no_skip)
            outputs.append(result[0] if isinstance(result, tuple) else result)
            bar(min(start + args.batch, len(images)), len(images))
    output = np.concatenate(outputs)
    if args.output is not None:
        write_array(args.output, output)
        if args.json:
            print(json.dumps({"output": str(args.output), "shape": list(output.shape)}))
        return 0
    scores = output.reshape(len(output), math.prod(output.shape[1:]))
    best = np.argsort(-scores, axis=1, kind="stable")[:, : args.top]
    if args.json:
        rows = [{"image": i, "classes": row.tolist(), "scores": scores[i, row].tolist()} for i, row in enumerate(best)]
        print(json.dumps(rows))
        return 0
    for i, row in enumerate(best):
        print(f"image {i}: " + ", ".join(f"{c} ({scores[i, c]:.3f})" for c in row))
    return 0
