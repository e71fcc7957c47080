"""Measure a network: gated, without skipping, dense, and dense in other runtimes, all in one run.

MODEL is a network of the zoo (needs torch; see `dynprune convert --list`) or a .dpr file. Rounds are
interleaved; every run is pinned to the same cores. A .dpr file is compared with its own run without
skipping, and with OpenVINO and ONNX Runtime where --onnx gives the dense network.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dynprune_rt.cli.arguments import add_normalization, cores, fraction, positive
from dynprune_rt.cli.arrays import as_batch, read_array
from dynprune_rt.cli.progress import ProgressBar
from dynprune_rt.errors import DynpruneError

if TYPE_CHECKING:
    from dynprune_rt.benchmark import Case

ABOUT = "measure latency against other runtimes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="zoo name or .dpr file")
    parser.add_argument("--gate", default="random", help="zoo: gate pattern (default: %(default)s, exact share)")
    parser.add_argument("--share", type=fraction, default=0.5, help="zoo: live channels (default: %(default)s)")
    parser.add_argument("--input-size", type=positive, metavar="PIXELS", help="zoo: default: the network's usual one")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images per call (default: %(default)s)")
    parser.add_argument(
        "--images", type=positive, default=4, metavar="N", help="different batches (default: %(default)s)"
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help=".dpr: real images, .npy or .npz")
    parser.add_argument("--key", help="name of the array in a .npz file with several")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help=".dpr: the dense network for other runtimes")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="for every run (default: %(default)s)")
    parser.add_argument(
        "--cores", type=cores, metavar="LIST", help="pin to these logical cores (default: one per thread)"
    )
    parser.add_argument("--no-pin", action="store_true", help="leave the choice of cores to the system")
    parser.add_argument("--rounds", type=positive, default=15, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=("f32", "bf16", "int8"),
        default="f32",
        help="quantize first, for int8 with ranges from the inputs; OpenVINO then runs in this type too",
    )
    parser.add_argument(
        "--peers",
        metavar="LIST",
        help="of openvino, openvino-bf16, openvino-int8, onnxruntime, torch.compile, torch-eager; or none",
    )
    parser.add_argument("--refcheck", action="store_true", help="compare the outputs with torch")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the result with all circumstances ('-': stdout)"
    )
    add_normalization(parser)


def run(args: argparse.Namespace) -> int:
    from dynprune_rt.benchmark import BenchmarkOptions, run_benchmark
    from dynprune_rt.benchmark.peers import default_peers

    names = (
        default_peers(args.dtype)
        if args.peers is None
        else tuple(n for n in args.peers.split(",") if n not in ("", "none"))
    )
    options = BenchmarkOptions(
        threads=args.threads,
        rounds=args.rounds,
        peers=names,
        cores=() if args.no_pin else args.cores,
        refcheck=args.refcheck,
    )
    with ProgressBar("preparing") as bar:
        bar(0, 1)
        case = _case(args)
        report = run_benchmark(case if args.dtype == "f32" else case.quantized(args.dtype), options, bar)
    if args.json is not None and str(args.json) == "-":
        print(report.to_json())
        return 0
    print(report)
    if args.json is not None:
        try:
            args.json.write_text(report.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise DynpruneError(f"cannot write {args.json}: {error.strerror}") from None
    return 0


def _case(args: argparse.Namespace) -> Case:
    from dynprune_rt.benchmark import program_case, zoo_case
    from dynprune_rt.program import Program

    if not args.model.endswith(".dpr"):
        if args.onnx is not None or args.input is not None:
            raise DynpruneError("--onnx and --input are for .dpr files; the zoo brings its own")
        return zoo_case(args.model, args.gate, args.share, args.batch, args.images, args.input_size, args.seed)
    if args.refcheck:
        raise DynpruneError("--refcheck needs the torch model: name a network of the zoo")
    inputs = None
    if args.input is not None:
        types = list(Program.load(args.model).inputs.values())
        images = as_batch(read_array(args.input, args.key), types[0].shape[1:], args.mean, args.std)
        if len(images) < args.batch:
            raise DynpruneError(f"{args.input} holds {len(images)} images, fewer than --batch {args.batch}")
        count = min(args.images, len(images) // args.batch)
        inputs = [images[i * args.batch : (i + 1) * args.batch] for i in range(count)]
    return program_case(args.model, args.batch, args.images, inputs, args.onnx, args.seed)
