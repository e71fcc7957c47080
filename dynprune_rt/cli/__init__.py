"""The command line: ``dynprune demo | convert | quantize | run | bench | profile | inspect | train | env``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import dynprune_rt
from dynprune_rt.errors import DynpruneError

#: Subcommands in the order of --help; each is a module here with ABOUT, add_arguments and run.
COMMANDS = ("demo", "convert", "quantize", "inspect", "run", "profile", "bench", "train", "env")

_EPILOG = """\
examples:
  dynprune demo                                        classify CIFAR-10 images with two gated ResNets
  dynprune convert mypackage.nets:resnet --weights w.safetensors --input-shape 1,3,224,224 -o net.dpr
  dynprune quantize net.dpr images.npy -o net8.dpr     int8, calibrated on the images; or --dtype bf16
  dynprune inspect net.dpr                             what each layer can skip, and why not more
  dynprune run net.dpr images.npy -o logits.npy
  dynprune bench resnet18 --share 0.5                  against OpenVINO, ONNX Runtime and torch
  dynprune train --method fbs --arch cifar_resnet20 --weights w.safetensors --data cifar10 --out fbs.dpr

exit codes: 0 success, 1 an error that is explained on stderr, 2 wrong usage, 130 interrupted.
DYNPRUNE_RT_ISA=generic|avx2|avx512|avx512_vnni|avx512_bf16 forces an instruction set. Every command takes --help.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="dynprune",
        description="Convert per-image channel-gated CNNs and execute only the channels that are live.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dynprune-rt {dynprune_rt.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show Python tracebacks of errors (for bug reports)")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"dynprune_rt.cli.{name}")
        sub = subparsers.add_parser(
            name,
            help=module.ABOUT,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors of this package are printed without a traceback."""
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except DynpruneError as error:
        if args.traceback:
            raise
        print(f"dynprune {args.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dynprune {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
