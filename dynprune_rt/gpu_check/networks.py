"""Whole networks on the GPU against the model in torch: correctness, replayed graphs, batch invariance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import torch

import dynprune_rt
from dynprune_rt.models import create
from dynprune_rt.program import Program

#: Zoo networks: name, gate, image size.
NETWORKS: Final = (
    ("cifar_resnet20", "laudnet", 32),
    ("resnet50", "laudnet", 64),
    ("resnet18", "fbs", 64),
    ("mobilenet_v2", "batch_shaping", 64),
)
#: Largest relative error of logits where no gate has changed its mind.
TOLERANCES: Final = {"fp16": 1e-2, "bf16": 8e-2, "tf32": 1e-2}

#: A session on the device that is checked: program, precision, tune_batch.
Open = Callable[[Program, str, int], Any]


class Runner(Protocol):
    """What makes checks and remembers what came of them: `checks.Checks` does."""

    def run(self, name: str, check: Callable[[], dict[str, Any]]) -> None: ...


def converted(name: str, gate: str | None, size: int, share: float = 0.5) -> tuple[Any, Program]:
    """A model with random weights and thresholds such that this share of gated channels is live; and its program."""
    model = create(name, gate, input_size=size, share=share)
    return model, dynprune_rt.convert(model, torch.rand(2, 3, size, size))


def check_network(checks: Runner, name: str, gate: str, size: int, open_session: Open) -> None:
    """All checks of one network; ``open_session`` is `load` for the device."""
    title = f"{name} {gate}"
    model, program = converted(name, gate, size)
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((4, 3, size, size)).astype(np.float32) for _ in range(3)]
    for precision in TOLERANCES:
        check = partial(parity, model, program, open_session, batches, precision)
        checks.run(f"{title} {precision} against torch", check)
    checks.run(f"{title} batch invariance", partial(invariance, program, open_session, batches[0]))
    checks.run(f"{title} changing masks in one graph", partial(replay, program, open_session, batches))


def parity(
    model: Any, program: Program, open_session: Open, batches: list[np.ndarray], precision: str
) -> dict[str, Any]:
    """Logits against the model's, of the images for which every gate agrees with the CPU's."""
    gpu, cpu = open_session(program, precision, 0), dynprune_rt.load(program)
    images, compared, worst = 0, 0, 0.0
    for x in batches:  # the same graph, other masks
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        actual = gpu.run(x)
        on_cpu, on_gpu = cpu.live_channels(x), gpu.live_channels(x)
        same = np.all([on_cpu[k] == on_gpu[k] for k in on_cpu], axis=0)
        images, compared = images + len(x), compared + int(same.sum())
        if same.any():
            scale = float(np.abs(expected[same]).max())
            worst = max(worst, float(np.abs(actual[same] - expected[same]).max()) / scale)
    if not worst <= TOLERANCES[precision]:
        raise AssertionError(f"relative error {worst:.3g} above {TOLERANCES[precision]}")
    if precision == "tf32" and not compared:
        raise AssertionError("no image has the gates it has on the CPU")
    # Gates within rounding of their thresholds fall on either side; the error of those images says nothing.
    return {"relative error": worst, "images": images, "with other gates": images - compared}


def invariance(program: Program, open_session: Open, x: np.ndarray) -> dict[str, Any]:
    """An image's bits do not depend on its batch: with everything skipped, and as measured times choose."""
    for tune_batch in (0, 4):
        gpu = open_session(program, "fp16", tune_batch)
        together = gpu.run(x)
        for i in range(len(x)):
            if not np.array_equal(gpu.run(x[i : i + 1]), together[i : i + 1]):
                raise AssertionError(f"image {i} gives other bits alone than in a batch of {len(x)}")
        if not np.array_equal(gpu.run(x), together):
            raise AssertionError("the same batch gives other bits the second time")
    return {"images": len(x)}


def replay(program: Program, open_session: Open, batches: list[np.ndarray]) -> dict[str, Any]:
    """One captured graph, inputs with other masks; and the network inside a graph of the caller's."""
    gpu = open_session(program, "fp16", 0)
    inputs = [torch.from_numpy(x).to(gpu.device) for x in batches]
    first = [gpu.run(x) for x in inputs]
    for _ in range(3):
        for x, expected in zip(inputs, first, strict=True):
            if not torch.equal(gpu.run(x), expected):
                raise AssertionError("a replayed graph gives other bits")
    if gpu.device.type == "cuda":
        graph, static = torch.cuda.CUDAGraph(), inputs[0].clone()
        with torch.cuda.graph(graph):
            result = gpu.run(static)
        static.copy_(inputs[1])
        graph.replay()
        if not torch.equal(result, first[1]):
            raise AssertionError("inside the caller's graph the network gives other bits")
    return {"replays": 3 * len(inputs)}
