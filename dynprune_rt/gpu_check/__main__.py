"""Checks the GPU back end on this machine's GPU: correctness first, a table of times last.

python -m dynprune_rt.gpu_check [--device cuda:0] [--json results.json] [--quick]

Exit status: 0 everything that ran passed; 1 a check failed; 77 nothing was checked, as there is no usable GPU (the
reason is printed). What has not run is listed, and is not passed. Needs torch. Networks come from the zoo with random
weights, their thresholds set for the wanted share of live channels.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dynprune_rt.devices import CudaStatus, cuda_status
from dynprune_rt.gpu_check.checks import Checks, NotRun

#: Exit status where nothing was checked, as automake and CTest have it.
SKIPPED = 77


def main(arguments: list[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m dynprune_rt.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path, help="write results there")
    parser.add_argument("--quick", action="store_true", help="correctness only")
    parser.add_argument("--grid-only", action="store_true", help="the grid of small convolutions only")
    parser.add_argument("--layers", action="store_true", help="also single layers in every mode at every live share")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds after which no further check starts")
    args = parser.parse_args(arguments)
    status = cuda_status()
    if not status.usable:
        print(f"SKIPPED, nothing was checked: {status.reason}")
        return SKIPPED
    print(status.reason)
    return check_device(args, status)


def check_device(args: argparse.Namespace, status: CudaStatus) -> int:
    """All that was asked for, on a usable GPU; prints, writes the JSON file, and returns the exit status."""
    import torch

    from dynprune_rt.backends.cuda.session import open_kernels
    from dynprune_rt.gpu_check import kernel_grid, networks, sanitizer
    from dynprune_rt.session import load

    checks = Checks(args.limit)
    device = torch.device(args.device)

    def grid(precision: str) -> dict[str, Any]:
        kernels = open_kernels(device, precision)
        modes = sum(kernel_grid.check_case(kernels, case) for case in (*kernel_grid.CONVS, *kernel_grid.DIRECT))
        torch.cuda.synchronize(device)
        return {"convolutions": modes}

    for precision in kernel_grid.TOLERANCE:
        checks.run(f"convolutions in {precision} against float64", partial(grid, precision))
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    if not args.grid_only:

        def open_session(program: Any, precision: str, tune_batch: int) -> Any:
            return load(program, args.device, precision=precision, tune_batch=tune_batch)

        for name, gate, size in networks.NETWORKS:
            networks.check_network(checks, name, gate, size, open_session)
        checks.run("out of memory leaves the session usable", partial(out_of_memory, open_session))
        for tool in sanitizer.TOOLS:
            checks.run(f"compute-sanitizer {tool}", partial(sanitizer.sanitize, tool, args.device))
        if not args.quick:
            times(checks, device, open_session, rows, facts, args.layers)
    report(args, status, checks, rows, facts)
    return 1 if checks.count("FAILED") else 0


def out_of_memory(open_session: Callable[..., Any]) -> dict[str, Any]:
    """A batch that cannot fit is refused in words, and the next one runs."""
    import torch

    from dynprune_rt.errors import DeviceError
    from dynprune_rt.gpu_check.networks import converted

    gpu = open_session(converted("cifar_resnet20", None, 32)[1], "fp16", 0)
    x = torch.rand(1, 3, 32, 32, device=gpu.device)
    expected = gpu.run(x)
    free = torch.cuda.mem_get_info(gpu.device)[0]
    blocks = [torch.empty(free - 2**28, dtype=torch.uint8, device=gpu.device)]  # little is left
    try:
        gpu.run(torch.rand(4096, 3, 32, 32, device=gpu.device))
    except DeviceError as error:
        message = str(error)
    else:
        raise NotRun("the batch fitted")
    finally:
        blocks.clear()
        torch.cuda.empty_cache()
    if not torch.equal(gpu.run(x), expected):
        raise AssertionError("after it the session gives other bits")
    return {"message": message}


def times(
    checks: Checks,
    device: Any,
    open_session: Callable[..., Any],
    rows: list[dict[str, Any]],
    facts: dict[str, Any],
    layers: bool,
) -> None:
    """Rates, launches, then the networks; torch.compile last, as it takes longest."""
    from dynprune_rt.backends.cuda.session import open_kernels
    from dynprune_rt.gpu_check import figures, microbenchmarks
    from dynprune_rt.gpu_check.measurement import Measurement

    kernels = open_kernels(device, "fp16")
    roofs: list[Any] = []

    def rates() -> dict[str, Any]:
        roof = microbenchmarks.rates(device)
        roofs.append(roof)
        facts["TMAC per second"] = roof.macs_per_second / 1e12
        facts["TB per second"] = roof.bytes_per_second / 1e12
        facts["us per kernel in a graph"] = microbenchmarks.launch_gap(kernels)
        return facts

    def figures_of(network: str, share: float) -> dict[str, Any]:
        measured = Measurement(network, share, device, open_session, roofs[0] if roofs else None)
        failures = {}
        for batch in figures.BATCHES:
            row, why = figures.measure(network, batch, share, measured.timers(batch), partial(measured.limit, batch))
            rows.append(row)
            failures.update({f"batch {batch} {name}": text for name, text in why.items()})
        if failures:
            raise AssertionError(str(failures))
        return {"rows": len(figures.BATCHES)}

    checks.run("rates", rates)
    for share in figures.SHARES:
        for network in figures.NETWORKS:
            checks.run(f"{network} at {share:.0%} live: times", partial(figures_of, network, share))
    for network in figures.NETWORKS:
        checks.run(f"{network}: torch.compile", partial(compile_times, network, device, rows, checks))
    if layers:
        checks.run("single layers", lambda: {"layers": facts.setdefault("layers", microbenchmarks.all_layers(kernels))})


def compile_times(network: str, device: Any, rows: list[dict[str, Any]], checks: Checks) -> dict[str, Any]:
    """Adds torch.compile's time to the rows of a network, as far as time allows: tuning takes minutes per batch."""
    from dynprune_rt.gpu_check import figures
    from dynprune_rt.gpu_check.measurement import compile_ms

    done = []
    for batch in figures.BATCHES:
        if checks.seconds_left < 60:
            break
        ms = compile_ms(network, batch, device)
        done.append(batch)
        for index, row in enumerate(rows):
            if (row["network"], row["batch"]) == (network, batch):
                known = {**row["ms"], "compile": ms}
                rows[index] = figures.figure(network, row["live"], batch, known, row["limit"])
    if not done:
        raise NotRun("too little time is left")
    return {"batches": str(done)}


def report(
    args: argparse.Namespace, status: CudaStatus, checks: Checks, rows: list[dict[str, Any]], facts: dict[str, Any]
) -> None:
    """Table last; JSON with the machine's facts."""
    from dynprune_rt.gpu_check import figures

    if rows:
        print(figures.table(rows))
    print(checks.summary())
    if args.json is not None:
        content = {
            "gpu": status.reason,
            "kernels": status.kernels,
            "machine": {"python": platform.python_version(), "system": platform.platform()},
            "command": sys.argv[1:],
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "facts": facts,
            "checks": checks.results,
            "figures": rows,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
