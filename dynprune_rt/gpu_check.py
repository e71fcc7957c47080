"""Checks the CUDA back end on this machine's GPU: correctness first, a table of times last.

python -m dynprune_rt.gpu_check [--device cuda:0] [--json results.json] [--quick]

Without a usable GPU it says why, and exits with status 0: nothing was checked. Needs torch. Networks come from the
zoo with random weights, their thresholds set so that half of the gated channels are live.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dynprune_rt.devices import cuda_status

#: Zoo networks for whole-network checks: name, gate, image size.
_NETWORKS = (("cifar_resnet20", "laudnet", 32), ("resnet50", "laudnet", 64), ("mobilenet_v2", "batch_shaping", 64))
#: What is timed, at 224 pixels: name, gate; batches.
_TIMED = (("resnet34", "laudnet"), ("resnet50", "laudnet"))
_BATCHES = (1, 8, 64, 256)

#: Largest relative error of logits in fp16 where no gate has changed its mind.
_TOLERANCE = 1e-2


class Checks:
    """Runs checks one after the other, prints each outcome, and remembers all."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def run(self, name: str, check: Callable[[], dict[str, Any]]) -> None:
        start = time.perf_counter()
        try:
            facts, passed = check(), True
        except Exception as error:  # one failure must not hide the others
            facts, passed = {"error": f"{type(error).__name__}: {error}"}, False
        seconds = time.perf_counter() - start
        self.results.append({"check": name, "passed": passed, "seconds": round(seconds, 2), **facts})
        details = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
        print(f"{'passed' if passed else 'FAILED'}  {name}: {details}", flush=True)

    @property
    def passed(self) -> bool:
        return all(result["passed"] for result in self.results)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all passed, or no GPU; 1 a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="write results there")
    parser.add_argument("--quick", action="store_true", help="correctness only")
    args = parser.parse_args(arguments)
    status = cuda_status()
    if not status.usable:
        print(f"SKIPPED, nothing was checked: {status.reason}")
        return 0
    print(status.reason)
    checks = Checks()
    for name, gate, size in _NETWORKS:
        check_network(checks, name, gate, size, args.device)
    rows = [] if args.quick else [r for name, gate in _TIMED for r in time_network(checks, name, gate, args.device)]
    for row in rows:
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if args.json is not None:
        facts = {"gpu": status.reason, "checks": checks.results, "times": rows}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    print("all checks passed" if checks.passed else "SOME CHECKS FAILED")
    return 0 if checks.passed else 1


def _converted(name: str, gate: str, size: int) -> tuple[Any, Any]:
    import torch

    import dynprune_rt
    from dynprune_rt.models import create

    model = create(name, gate, input_size=size)
    return model, dynprune_rt.convert(model, torch.rand(2, 3, size, size))


def check_network(checks: Checks, name: str, gate: str, size: int, device: str) -> None:
    """A network on the GPU against the CPU, through captured graphs, over changing inputs and batches."""
    import numpy as np

    import dynprune_rt

    _, program = _converted(name, gate, size)
    cpu = dynprune_rt.load(program)
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((4, 3, size, size)).astype(np.float32) for _ in range(3)]

    def parity(precision: str) -> dict[str, Any]:
        gpu = dynprune_rt.load(program, device=device, precision=precision)
        images, worst, undecided = 0, 0.0, 0
        for x in batches:  # the same graph, other masks
            expected, actual = cpu.run(x), gpu.run(x)
            on_cpu, on_gpu = cpu.live_channels(x), gpu.live_channels(x)
            same = np.all([on_cpu[k] == on_gpu[k] for k in on_cpu], axis=0)
            images += len(x)
            undecided += int((~same).sum())
            if same.any():
                scale = float(np.abs(expected[same]).max())
                worst = max(worst, float(np.abs(actual[same] - expected[same]).max()) / scale)
        tolerance = _TOLERANCE * (8 if precision == "bf16" else 1)
        if not worst <= tolerance:
            raise AssertionError(f"relative error {worst:.3g} above {tolerance}")
        # Gates within rounding of their thresholds fall on either side; the error of those images says nothing.
        return {"relative error": worst, "images": images, "with other gates": undecided}

    def invariance() -> dict[str, Any]:
        gpu = dynprune_rt.load(program, device=device)
        x = batches[0]
        together = gpu.run(x)
        for i in range(len(x)):
            if not np.array_equal(gpu.run(x[i : i + 1]), together[i : i + 1]):
                raise AssertionError(f"image {i} gives other bits alone than in a batch of {len(x)}")
        if not np.array_equal(gpu.run(x), together):
            raise AssertionError("the same batch gives other bits the second time")
        return {"images": len(x)}

    def replay() -> dict[str, Any]:
        import torch

        gpu = dynprune_rt.load(program, device=device)
        inputs = [torch.from_numpy(x).to(device) for x in batches]
        first = [gpu.run(x) for x in inputs]
        for _ in range(3):
            for x, expected in zip(inputs, first, strict=True):
                if not torch.equal(gpu.run(x), expected):
                    raise AssertionError("a replayed graph gives other bits")
        graph, static = torch.cuda.CUDAGraph(), inputs[0].clone()
        with torch.cuda.graph(graph):  # inside a graph of the caller's
            result = gpu.run(static)
        static.copy_(inputs[1])
        graph.replay()
        if not torch.equal(result, first[1]):
            raise AssertionError("inside the caller's graph the network gives other bits")
        return {"replays": 3 * len(inputs)}

    checks.run(f"{name} {gate} fp16 against the CPU", lambda: parity("fp16"))
    checks.run(f"{name} {gate} bf16 against the CPU", lambda: parity("bf16"))
    checks.run(f"{name} {gate} batch invariance", invariance)
    checks.run(f"{name} {gate} graph replay", replay)


def time_network(checks: Checks, name: str, gate: str, device: str) -> list[dict[str, Any]]:
    """Milliseconds per batch: skipping, not skipping, and torch in channels_last fp16 under one CUDA graph."""
    rows: list[dict[str, Any]] = []

    def measure() -> dict[str, Any]:
        import torch

        import dynprune_rt
        from dynprune_rt.models import create

        _, program = _converted(name, gate, 224)
        session: Any = dynprune_rt.load(program, device=device)
        dense = create(name, None).to(device).half().to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True
        for batch in _BATCHES:
            x = torch.randn(batch, 3, 224, 224, device=device)
            row = {"network": name, "batch": batch}
            row["skip ms"] = _median_ms(partial(session.run, x))
            row["no skip ms"] = _median_ms(partial(session.run, x, skip=False))
            row["torch dense ms"] = _torch_graph_ms(dense, x.half().to(memory_format=torch.channels_last))
            rows.append(row)
            session.release_graphs()
        return {"rows": len(rows)}

    checks.run(f"{name} {gate} times", measure)
    return rows


def _torch_graph_ms(model: Any, x: Any) -> float:
    import torch

    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        return _median_ms(graph.replay)


def _median_ms(call: Callable[[], Any], repeats: int = 20) -> float:
    """Median over repeats, by CUDA events, after warming up."""
    import torch

    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)))
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    sys.exit(main())
