"""Show the machine, the instruction sets, CUDA and the versions: paste this into bug reports.

Needs no torch.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

from dynprune_rt.benchmark.machine import machine_facts
from dynprune_rt.errors import DynpruneError

ABOUT = "show machine, instruction sets and versions"


_WORDS = {True: "yes", False: "no"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    facts = environment()
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_WORDS.get(v, v)}" for k, v in value.items() if v != "") or "-"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        print(f"{key:<{width}}  {value}")
    return 0


def environment() -> dict[str, Any]:
    """Everything a bug report needs; JSON-like."""
    import dynprune_rt

    facts: dict[str, Any] = dict(machine_facts())
    try:
        facts["isas"] = dynprune_rt.available_isas()
        facts["isa"] = dynprune_rt.cpu_isa()
    except (DynpruneError, ImportError) as error:
        facts["isa"] = f"unusable: {error}"
    facts["cuda"] = asdict(dynprune_rt.cuda_status())
    facts["environment"] = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("DYNPRUNE_", "OMP_"))}
    return facts
