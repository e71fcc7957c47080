"""The sections of `gpu_check`, in the order in which they run: correctness, then times.

Each runs in a process of its own, with a time limit: one that hangs or loses the device leaves the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from dynprune_rt.backends.cuda.session import open_kernels
from dynprune_rt.errors import DeviceError
from dynprune_rt.gpu_check import figures, kernel_grid, microbenchmarks, networks, sanitizer
from dynprune_rt.gpu_check.checks import Checks, NotRun
from dynprune_rt.gpu_check.measurement import Measurement, compile_ms
from dynprune_rt.session import load


@dataclass
class Work:
    """What a section works on, and what it leaves: checks, rows of the table, facts; saved on the way to ``part``."""

    device: str
    part: Path | None
    checks: Checks
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def open_session(self, program: Any, precision: str, tune_batch: int) -> Any:
        return load(program, self.device, precision=precision, tune_batch=tune_batch)

    def run(self, name: str, check: Callable[[], dict[str, Any]]) -> None:
        self.checks.run(name, check)
        self.save()

    def save(self) -> None:
        """Replaces ``part``, so that it holds all results at any time."""
        if self.part is None:
            return
        content = {"checks": self.checks.results, "figures": self.rows, "facts": self.facts}
        fresh = self.part.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        fresh.replace(self.part)


@dataclass(frozen=True)
class Section:
    """``seconds``: after which its process is ended; what it has saved counts."""

    name: str
    seconds: float
    run: Callable[[Work], None]
    timing: bool = False


def check_grid(work: Work, precision: str, cases: Sequence[kernel_grid.Conv]) -> dict[str, Any]:
    """Small convolutions in every mode against float64."""
    kernels = open_kernels(torch.device(work.device), precision)
    modes = sum(kernel_grid.check_case(kernels, case) for case in cases)
    if kernels.device.type == "cuda":
        torch.cuda.synchronize(kernels.device)
    return {"convolutions": modes}


def check_kernels(work: Work) -> None:
    """The grid in every precision."""
    for precision in kernel_grid.TOLERANCE:
        cases = (*kernel_grid.CONVS, *kernel_grid.DIRECT)
        work.run(f"convolutions in {precision} against float64", partial(check_grid, work, precision, cases))


def check_small_kernels(work: Work) -> None:
    """A part of the grid that compute-sanitizer gets through in half a minute."""
    cases = (*kernel_grid.CONVS[:2], *kernel_grid.DIRECT[:1])
    work.run("some convolutions in fp16", partial(check_grid, work, "fp16", cases))


def check_networks(work: Work) -> None:
    """Whole networks, and a batch that does not fit."""
    work.run("out of memory leaves the session usable", partial(out_of_memory, work.open_session))
    for name, gate, size in networks.NETWORKS:
        networks.check_network(work, name, gate, size, work.open_session)


def check_sanitized(work: Work) -> None:
    for tool in sanitizer.TOOLS:
        work.run(f"compute-sanitizer {tool}", partial(sanitizer.sanitize, tool, work.device))


def out_of_memory(open_session: networks.Open) -> dict[str, Any]:
    """A batch that cannot fit is refused in words, and the next one runs."""
    gpu = open_session(networks.converted("cifar_resnet20", None, 32)[1], "fp16", 0)
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


def measure_rates(work: Work) -> None:
    """What the GPU reaches, and what decides about kernels that are not written yet."""
    device = torch.device(work.device)

    def rates() -> dict[str, Any]:
        roof = microbenchmarks.rates(device)
        found = {"TMAC per second": roof.macs_per_second / 1e12, "TB per second": roof.bytes_per_second / 1e12}
        found["us per kernel in a graph"] = microbenchmarks.launch_gap(open_kernels(device, "fp16"))
        work.facts.update(found)
        return found

    def dense() -> dict[str, Any]:
        work.facts["dense layers"] = microbenchmarks.dense_layers(open_kernels(device, "fp16"))
        return microbenchmarks.dense_summary(work.facts["dense layers"])

    def order() -> dict[str, Any]:
        work.facts["ms by order of images"] = microbenchmarks.image_order(open_kernels(device, "fp16"))
        return dict(work.facts["ms by order of images"])

    work.run("rates", rates)
    work.run("dense layers beside cuDNN", dense)
    work.run("order of images", order)


def measure_network(work: Work, network: str, share: float) -> None:
    """The rows of one network with this share of live channels; the smallest batch first."""
    device = torch.device(work.device)
    measured = Measurement(network, share, device, work.open_session, microbenchmarks.rates(device))

    def row_of(batch: int) -> dict[str, Any]:
        row, failures = figures.measure(network, batch, share, measured.timers(batch), partial(measured.limit, batch))
        work.rows.append(row)
        if failures:
            raise AssertionError(str(failures))
        return {"ms": row["ms"]["skip"]}

    for batch in figures.BATCHES:
        work.run(f"{network} at {share:.0%} live, batch {batch}: times", partial(row_of, batch))


def measure_compiled(work: Work, network: str) -> None:
    """torch.compile's times, which tunes for minutes per batch: what is done when time is up counts."""
    times = work.facts.setdefault("torch.compile ms", {})

    def compiled(batch: int) -> dict[str, Any]:
        times[figures.compile_key(network, batch)] = ms = compile_ms(network, batch, torch.device(work.device))
        return {"ms": ms}

    for batch in figures.BATCHES:
        work.run(f"{network}, batch {batch}: torch.compile", partial(compiled, batch))


def measure_layers(work: Work) -> None:
    """Single layers in every mode at every live share."""
    kernels = open_kernels(torch.device(work.device), "fp16")
    for batch in microbenchmarks.LAYER_BATCHES:
        for layer in microbenchmarks.LAYERS:

            def times(batch: int = batch, layer: tuple[int, int, int, int] = layer) -> dict[str, Any]:
                found = microbenchmarks.layer_times(kernels, layer, batch)
                work.facts.setdefault("layers", []).extend(found)
                return {"modes": len(found)}

            work.run(f"layer {layer}, batch {batch}", times)


SECTIONS: Final = (
    Section("kernels", 60, check_kernels),
    Section("networks", 120, check_networks),
    Section("sanitizer", 3 * sanitizer.SECONDS + 10, check_sanitized),
    Section("rates", 60, measure_rates, timing=True),
    *(
        Section(f"{network}-{share:.0%}", 100, partial(measure_network, network=network, share=share), timing=True)
        for share in figures.SHARES
        for network in figures.NETWORKS
    ),
    *(
        Section(f"{network}-compile", 150, partial(measure_compiled, network=network), timing=True)
        for network in figures.NETWORKS
    ),
)
#: Run only where they are named.
EXTRA: Final = (Section("layers", 300, measure_layers, timing=True), Section("small", 300, check_small_kernels))


def section(name: str) -> Section:
    """Raises KeyError for an unknown name."""
    return {s.name: s for s in (*SECTIONS, *EXTRA)}[name]
