"""A benchmark's result: rows, ratios, text and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from dynprune_rt.profile import format_table


@dataclass
class Row:
    """One contender. ``error`` is its largest deviation from torch, relative to the largest output (--refcheck)."""

    name: str
    settings: str = ""
    median_ms: float | None = None
    p99_ms: float | None = None
    spread: float | None = None
    calls: int = 0
    error: float | None = None
    skipped: str = ""


@dataclass
class Report:
    """Everything a quoted figure needs: rows, work, machine, command, settings.

    ``macs`` (averaged over the inputs, gates included) and ``dense_macs`` (of the network without gates where there
    is one) are per image. ``live_inputs`` and ``live_outputs`` are the shares of channels that layers read and
    computed, weighted by the layers' dense work. ``ideal`` is dense_macs / macs, ``realised`` the dense network's own
    time over the gated one's, ``efficiency`` realised / ideal.
    """

    facts: dict[str, Any]
    machine: dict[str, Any]
    command: str
    settings: dict[str, Any]
    macs: float
    dense_macs: float
    live_inputs: float
    live_outputs: float
    rows: list[Row] = field(default_factory=list)
    bit_identical: bool | None = None

    def row(self, name: str) -> Row | None:
        """The row of that name, measured or skipped."""
        return next((row for row in self.rows if row.name == name), None)

    def median(self, name: str) -> float | None:
        """Median milliseconds of a contender, None if it did not run."""
        row = self.row(name)
        return row.median_ms if row is not None else None

    @property
    def ideal(self) -> float:
        """How much faster the run would be if time followed multiply-accumulates."""
        return self.dense_macs / self.macs if self.macs else float("inf")

    @property
    def realised(self) -> float | None:
        """The engine's own dense network (or else the same program without skipping) over the gated run."""
        gated = self.median("gated")
        dense = self.median("dense") or self.median("gated, skip=False")
        return dense / gated if gated and dense else None

    @property
    def efficiency(self) -> float | None:
        realised = self.realised
        return realised / self.ideal if realised is not None else None

    def to_json(self) -> str:
        ratios = {"ideal": self.ideal, "realised": self.realised, "efficiency": self.efficiency}
        return json.dumps({**asdict(self), **ratios}, indent=1)

    def __str__(self) -> str:
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items() if value is not None)
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        lines = [facts, f"{self.machine['cpu']}; {settings}", ""]
        checked = any(row.error is not None for row in self.rows)
        header = ["run", "settings", "median ms", "p99 ms", "+-", "gated is faster by"] + ["error"] * checked
        gated = self.median("gated")
        table = []
        for row in self.rows:
            if row.median_ms is None or row.p99_ms is None or row.spread is None:
                continue
            ratio = f"{row.median_ms / gated:.2f}x" if gated and row.name != "gated" else ""
            line = [row.name, row.settings, f"{row.median_ms:.3f}", f"{row.p99_ms:.3f}", f"{row.spread:.1%}", ratio]
            table.append(line + ["" if row.error is None else f"{row.error:.1e}"] * checked)
        lines.append(format_table(header, table))
        lines += [f"{row.name}: skipped, {row.skipped}" for row in self.rows if row.skipped]
        lines.append("")
        lines.append(
            f"{self.macs / 1e6:.2f} of {self.dense_macs / 1e6:.2f} MMACs per image, "
            f"{self.live_inputs:.0%} of the inputs and {self.live_outputs:.0%} of the outputs live; "
            f"ideal speed-up {self.ideal:.2f}x"
        )
        if self.realised is not None and self.efficiency is not None:
            lines[-1] += f", realised {self.realised:.2f}x, efficiency {self.efficiency:.0%}"
        if self.bit_identical is not None:
            lines.append(f"skipping on and off give {'the same' if self.bit_identical else 'DIFFERENT'} bits")
        return "\n".join(lines)
