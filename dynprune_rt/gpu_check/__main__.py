"""Checks the GPU back end on this machine's GPU: correctness first, a table of times last.

python -m dynprune_rt.gpu_check [--device cuda:0] [--json results.json] [--quick] [--only kernels,networks]

Exit status: 0 everything that ran passed; 1 a check failed; 77 nothing was checked, as there is no usable GPU (the
reason is printed). What has not run is listed, and is not passed. Needs torch. Networks come from the zoo with random
weights, their thresholds set for the wanted share of live channels. Every section runs in a process of its own, which
is ended when its time or that of the whole script is up; the JSON file is written anew after each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from dynprune_rt.devices import CudaStatus, cuda_status
from dynprune_rt.gpu_check.checks import Checks

#: Exit status where nothing was checked, as automake and CTest have it.
SKIPPED: Final = 77
#: Runs a command for at most so many seconds; its exit status, or None if it was ended.
Run = Callable[[Sequence[str], float], "int | None"]


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
    parser.add_argument("--only", help="sections by name, with commas; also: layers (every mode at every live share)")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for everything")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # run this one, in this process
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)  # where it leaves its results
    args = parser.parse_args(arguments)
    status = cuda_status()
    if not status.usable:
        print(f"SKIPPED, nothing was checked: {status.reason}")
        return SKIPPED
    if args.section is not None:
        return run_section(args.section, args.device, args.part, args.limit)
    print(status.reason)
    return run_all(args, status)


def run_section(name: str, device: str, part: Path | None, limit: float) -> int:
    """One section in this process; 1 where a check failed."""
    from dynprune_rt.gpu_check.sections import Work, section

    work = Work(device, part, Checks(limit))
    work.save()
    section(name).run(work)
    return 1 if work.checks.count("FAILED") else 0


def run_process(command: Sequence[str], seconds: float) -> int | None:
    """See `Run`. What the command started ends with it."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_all(
    args: argparse.Namespace,
    status: CudaStatus,
    run: Run = run_process,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The sections that were asked for, each in its process; prints the table last."""
    from dynprune_rt.gpu_check import figures, sections

    chosen = [s for s in sections.SECTIONS if not (args.quick and s.timing)]
    if args.only:
        try:
            chosen = [sections.section(name) for name in args.only.split(",")]
        except KeyError as error:
            known = ", ".join(s.name for s in (*sections.SECTIONS, *sections.EXTRA))
            raise SystemExit(f"no section {error}; there are {known}") from None
    checks, rows, facts = Checks(args.limit, clock), list[dict[str, Any]](), dict[str, Any]()
    for section in chosen:
        left = checks.seconds_left
        if left < 5:
            checks.note(section.name, "not run", f"the limit of {args.limit:.0f} s is reached")
            continue
        seconds = min(section.seconds, left)
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part.json"
            command = [sys.executable, "-m", "dynprune_rt.gpu_check", "--section", section.name]
            command += ["--device", args.device, "--part", str(part), "--limit", f"{seconds:.0f}"]
            ended = run(command, seconds)
            found = json.loads(part.read_text()) if part.exists() else {"checks": [], "figures": [], "facts": {}}
        checks.results += found["checks"]
        rows += found["figures"]
        for name, fact in found["facts"].items():
            facts[name] = {**facts.get(name, {}), **fact} if isinstance(fact, dict) else fact
        if ended is None:
            checks.note(section.name, "not run", f"its process was ended after {seconds:.0f} s; what it found counts")
        elif ended not in (0, 1) or (ended == 1 and not any(c["outcome"] == "FAILED" for c in found["checks"])):
            checks.note(section.name, "FAILED", f"its process ended with status {ended}")
        rows = figures.with_compiled(rows, facts.get("torch.compile ms", {}))
        write(args, status, checks, rows, facts)
    write(args, status, checks, rows, facts)
    if rows:
        print(figures.table(rows))
    print(checks.summary())
    return 1 if checks.count("FAILED") else 0


def write(
    args: argparse.Namespace, status: CudaStatus, checks: Checks, rows: list[dict[str, Any]], facts: dict[str, Any]
) -> None:
    """The JSON file, with the machine's facts."""
    if args.json is None:
        return
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
