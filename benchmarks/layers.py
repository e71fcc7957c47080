"""Where time goes, per convolution shape: this runtime's layers beside OpenVINO's (oneDNN, prepacked weights).

python benchmarks/layers.py --run                         measure all networks (each in a process of its own), print
python benchmarks/layers.py --run --only resnet50,vgg16_bn
python benchmarks/layers.py                               print the tables of the results that are there

Both runtimes execute the same dense network, one thread, in alternating slots of one process, and time every layer
themselves: `Session.profile` here, performance counters there. So weights and activations are as cold as in a real
run. Layers of one shape are summed. A layer's time includes what the runtime does to its input for its sake (phase
planes here, reordered images there); whatever belongs to no convolution is in the line "other". Times are medians
of the slots' means; counters tick in microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
NETWORKS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "cifar_resnet20",
    "cifar_resnet56",
    "vgg16_bn",
)
#: Bytes that a slot's first calls may find evicted by the other runtime: they are not counted.
WARM_CALLS = 2
CALLS = 8


@dataclass
class ShapeTime:
    """All layers of one shape in one network: microseconds per image, summed over the layers."""

    shape: str
    layers: int
    mmacs: float
    ours: float
    openvino: float
    kernels: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Our time over OpenVINO's."""
        return self.ours / self.openvino if self.openvino else float("nan")


def shape_of(node: Any) -> str:
    """`kernel, stride, channels, input size` of a conv2d node, such as ``3x3s2 64>128 56x56``."""
    x, weight = node.inputs[0].type.shape, node.inputs[1].type.shape
    stride = node.attrs["stride"][0]
    groups = node.attrs["groups"]
    kind = "dw" if groups == x[1] and groups > 1 else f"g{groups} " if groups > 1 else ""
    return f"{kind}{weight[2]}x{weight[3]}{f's{stride}' if stride > 1 else ''} {x[1]}>{weight[0]} {x[2]}x{x[3]}"


def module_path(onnx_name: str) -> str:
    """The module path in a node name of torch's exporter: ``/layer1/layer1.0/conv1/Conv`` -> ``layer1.0.conv1``."""
    path, parent = "", ""
    for part in onnx_name.split("/")[1:]:
        if part == "Conv":
            break
        # The members of a Sequential repeat its name.
        stem = path.removesuffix(parent) if parent and part.startswith(f"{parent}.") else f"{path}." if path else ""
        path, parent = stem + part, part
    return path


class Ours:
    """This runtime: microseconds per layer; a phase split counts for the convolution after it."""

    def __init__(self, program: Any, image: np.ndarray) -> None:
        import dynprune_rt

        self.session = dynprune_rt.load(program, device="cpu", threads=1)
        self.image = image
        self.kernels: dict[str, str] = {}

    def slot(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for call in range(WARM_CALLS + CALLS):
            rows = self.session.profile(self.image).rows
            if call < WARM_CALLS:
                continue
            for row, name in zip(rows, _owners(rows), strict=True):
                total[name] = total.get(name, 0.0) + row["ms"] * 1e3 / CALLS
                if row["dense_macs"]:
                    self.kernels[name] = row["kernel"]
        return total


def _owners(rows: list[dict[str, Any]]) -> list[str]:
    """For each row the layer that it belongs to."""
    owners: list[str] = []
    following = ""
    for row in reversed(rows):
        if row["dense_macs"]:
            following = row["name"]
        owners.append(following if row["kernel"] in ("phase_split", "load") else row["name"])
    return owners[::-1]


class Peer:
    """OpenVINO with performance counters, which run from compilation on: a fresh network per slot."""

    def __init__(self, onnx: bytes, image: np.ndarray) -> None:
        import openvino

        self.core = openvino.Core()
        self.model = self.core.read_model(onnx)
        self.tensor = openvino.Tensor(image, shared_memory=True)

    def slot(self) -> dict[str, float]:
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "PERF_COUNT": True,
        }
        compiled = self.core.compile_model(self.model, "CPU", config)
        request = compiled.create_infer_request()
        request.set_input_tensor(self.tensor)
        totals = []
        for calls in (WARM_CALLS, CALLS):
            for _ in range(calls):
                request.infer()
            done = WARM_CALLS if not totals else WARM_CALLS + CALLS
            counted: dict[str, float] = {}
            for node in request.get_profiling_info():
                microseconds = node.real_time.total_seconds() * 1e6
                # A reorder of the image is named after it and the layer: input_layouts_/path/Conv.
                name = module_path(node.node_name[node.node_name.index("/") :]) if "/Conv" in node.node_name else ""
                counted[name] = counted.get(name, 0.0) + microseconds * done
            totals.append(counted)
        warm, all_calls = totals
        return {name: (time - warm.get(name, 0.0)) / CALLS for name, time in all_calls.items()}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Both runtimes on one network of the zoo; the JSON result."""
    from dynprune_rt import convert, models
    from dynprune_rt.benchmark.case import export_onnx
    from dynprune_rt.benchmark.machine import machine_facts

    size = models.entry(name).input_size
    network = models.create(name, seed=0, input_size=size)
    image = models.synthetic_images(1, size, seed=1)
    program = convert(network, image)
    array = np.ascontiguousarray(image.numpy())
    exported = export_onnx(network, image)
    if exported is None:
        raise SystemExit("exporting the networks for OpenVINO needs the onnx package")
    runtimes = {"ours": Ours(program, array), "openvino": Peer(exported, array)}
    slots: dict[str, list[dict[str, float]]] = {key: [] for key in runtimes}
    for number in range(rounds):
        for key in list(runtimes) if number % 2 else list(runtimes)[::-1]:
            slots[key].append(runtimes[key].slot())
    medians = {
        key: {layer: statistics.median(slot.get(layer, 0.0) for slot in found) for layer in found[0]}
        for key, found in slots.items()
    }
    ours = runtimes["ours"]
    assert isinstance(ours, Ours)
    shapes: dict[str, ShapeTime] = {}
    convolutions = [node for node in program.graph.nodes if node.op == "conv2d"]
    for node in convolutions:
        if node.name not in medians["openvino"]:
            raise SystemExit(f"{name}: OpenVINO has no layer {node.name}; it has {sorted(medians['openvino'])}")
        shape = shape_of(node)
        weight, out = node.inputs[1].type.shape, node.outputs[0].type.shape
        mmacs = float(np.prod(weight)) * out[2] * out[3] / 1e6
        row = shapes.setdefault(shape, ShapeTime(shape, 0, 0.0, 0.0, 0.0))
        row.layers, row.mmacs = row.layers + 1, row.mmacs + mmacs
        row.ours += medians["ours"][node.name]
        row.openvino += medians["openvino"][node.name]
        kernel = ours.kernels[node.name]
        if kernel not in row.kernels:
            row.kernels.append(kernel)
    names = {node.name for node in convolutions}
    other = [sum(time for layer, time in medians[key].items() if layer not in names) for key in ("ours", "openvino")]
    rows = [*shapes.values(), ShapeTime("other", 0, 0.0, other[0], other[1])]
    return {"network": name, "rounds": rounds, "machine": machine_facts(), "rows": [asdict(row) for row in rows]}


def table(result: dict[str, Any]) -> str:
    """The result as text; slower than OpenVINO is marked."""
    from dynprune_rt.profile import format_table

    rows = [ShapeTime(**row) for row in result["rows"]]
    total = ShapeTime("total", 0, sum(r.mmacs for r in rows), sum(r.ours for r in rows), sum(r.openvino for r in rows))
    lines = []
    for row in [*rows, total]:
        rate = f"{row.mmacs / row.ours * 2e3:.1f}" if row.mmacs else ""
        count = f"{row.layers}x" if row.layers else ""
        mark = "slower" if row.ratio > 1 else ""
        times = [f"{row.ours:.0f}", f"{row.openvino:.0f}", f"{row.ratio:.2f}"]
        lines.append([row.shape, ", ".join(row.kernels), count, rate, *times, mark])
    header = ["shape", "kernel", "layers", "GFLOP/s", "us", "OpenVINO us", "ratio", ""]
    return f"{result['network']}\n" + format_table(header, lines, rule_before_last=True)


def result_path(name: str) -> Path:
    """Where the result of one network is kept."""
    return RESULTS / f"layers_{name}.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure before printing")
    parser.add_argument("--only", metavar="LIST", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    args = parser.parse_args()
    names = list(NETWORKS) if args.only is None else args.only.split(",")
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"unknown networks: {', '.join(unknown)}")
    if args.run and len(names) > 1:
        for name in names:
            arguments = ["--run", "--only", name, "--rounds", str(args.rounds)]
            subprocess.run([sys.executable, __file__, *arguments], check=True)
        return 0
    if args.run:
        RESULTS.mkdir(exist_ok=True)
        result_path(names[0]).write_text(json.dumps(measure(names[0], args.rounds), indent=1) + "\n")
    for name in names:
        if result_path(name).is_file():
            print(table(json.loads(result_path(name).read_text())), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
