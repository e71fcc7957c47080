"""Show what a .dpr program does: inputs, layers, what each can skip by which gate, and why not more.

Needs no torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dynprune_rt.program import LAYERS, Program, dense_macs, gate_names, weight_bytes, weight_widths

ABOUT = "show a program's layers and what they can skip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", type=Path, metavar="PROGRAM", help="a .dpr file")
    parser.add_argument("--graph", action="store_true", help="print every operator instead of the layers")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    program = Program.load(args.program)
    if args.graph:
        from dynprune_rt.ir.printer import format_graph

        print(format_graph(program.graph), end="")
    elif args.json:
        print(json.dumps(describe(program), indent=1))
    else:
        print(program)
    return 0


def describe(program: Program) -> dict[str, object]:
    """The program's layers as a JSON-like object."""
    layers = []
    for node in program.graph.nodes:
        if node.op not in LAYERS:
            continue
        source = node.inputs[0]
        layer: dict[str, object] = {
            "name": node.name,
            "op": node.op,
            "output": str(node.output.type),
            "dense_macs": dense_macs(node),
            "weight_bytes": weight_bytes(program.graph, node),
        }
        if node.op == "quantized_conv2d":
            widths = weight_widths(program.graph, node)
            layer["channels_by_weight_bits"] = {str(bits): count for bits, count in widths.items()}
        layer.update(
            skips_inputs_by=gate_names(source.live if source is not None else None),
            skips_outputs_by=gate_names(node.computed or node.output.live),
            note=node.note,
        )
        layers.append(layer)
    return {
        "inputs": {name: str(type) for name, type in program.inputs.items()},
        "outputs": {name: str(type) for name, type in program.outputs.items()},
        "parameters": program.parameters,
        "dense_macs": program.dense_macs,
        "report": program.report,
        "layers": layers,
    }
