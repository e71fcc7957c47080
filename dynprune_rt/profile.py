"""What a run did, layer by layer: live channels, multiply-accumulates, milliseconds, efficiency."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Layers below this share of the dense multiply-accumulates are summed up in the table.
_SMALL = 5e-4


@dataclass(frozen=True)
class Profile:
    """Measurements of one run.

    ``rows`` holds one dict per executed step, in order, with the keys

    - name: the layer's path in the model; kernel: what executed it;
    - live_in, live_out: channels read and computed, mean over the batch; total_in, total_out: all there are;
    - macs, dense_macs: multiply-accumulates of the batch, executed and without skipping (0 for other steps);
    - ms: time of the batch in this step, summed over its images;
    - dense_ms: the same of a run without skipping, where :meth:`against` has added it.
    """

    rows: list[dict[str, Any]]
    batch: int
    threads: int
    isa: str
    skip: bool

    @property
    def macs(self) -> int:
        """Multiply-accumulates executed for the whole batch."""
        return sum(int(row["macs"]) for row in self.rows)

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the whole batch without skipping."""
        return sum(int(row["dense_macs"]) for row in self.rows)

    @property
    def ms(self) -> float:
        """Milliseconds of the whole batch, summed over steps and images (not the latency on several threads)."""
        return float(sum(row["ms"] for row in self.rows))

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The rows of convolutions and linear layers."""
        return [row for row in self.rows if row["dense_macs"]]

    def against(self, dense: Profile) -> Profile:
        """This profile with ``dense_ms`` per row taken from a run of the same program with ``skip=False``.

        Raises ValueError if the two have different steps.
        """
        if [row["name"] for row in self.rows] != [row["name"] for row in dense.rows]:
            raise ValueError("the two profiles are of different programs")
        pairs = zip(self.rows, dense.rows, strict=True)
        return replace(self, rows=[{**row, "dense_ms": other["ms"] * self.batch / dense.batch} for row, other in pairs])

    def to_json(self) -> str:
        """The rows, totals and circumstances as a JSON object."""
        facts = {"batch": self.batch, "threads": self.threads, "isa": self.isa, "skip": self.skip}
        totals = {"macs": self.macs, "dense_macs": self.dense_macs, "ms": self.ms}
        return json.dumps({**facts, **totals, "rows": self.rows}, indent=1)

    def __str__(self) -> str:
        skipping = "skipping" if self.skip else "without skipping"
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        title = f"batch {self.batch}, {threads}, {self.isa}, {skipping}; per image:"
        compared = all("dense_ms" in row for row in self.rows)
        header = ["layer", "kernel", "in", "out", "MMACs", "of dense", "ms"]
        header += ["dense ms", "speed-up", "efficiency"] if compared else ["GMAC/s"]
        table = [self._line(row["name"], row, compared) for row in self.layers if not self._is_small(row)]
        table += [self._line(*other, compared) for other in self._others()]
        total = {"kernel": "", "macs": self.macs, "dense_macs": self.dense_macs, "ms": self.ms}
        if compared:
            total["dense_ms"] = sum(row["dense_ms"] for row in self.rows)
        table.append(self._line("total", total, compared))
        return title + "\n" + format_table(header, table, rule_before_last=True)

    def _is_small(self, row: dict[str, Any]) -> bool:
        """True for layers that nobody optimises, such as those of gates."""
        return bool(row["dense_macs"] < _SMALL * self.dense_macs)

    def _others(self) -> list[tuple[str, dict[str, Any]]]:
        """Small layers and steps without multiply-accumulates, summed up by kernel, the slowest first."""
        sums: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            if not row["dense_macs"] or self._is_small(row):
                into = sums.setdefault(row["kernel"], {"kernel": "", "macs": 0, "dense_macs": 0, "ms": 0.0, "count": 0})
                into["count"] += 1
                for key in ("macs", "dense_macs", "ms"):
                    into[key] += row[key]
                if "dense_ms" in row:
                    into["dense_ms"] = into.get("dense_ms", 0.0) + row["dense_ms"]
        ordered = sorted(sums.items(), key=lambda item: -item[1]["ms"])
        return [(f"{kernel or 'other'} ({row['count']}x)", row) for kernel, row in ordered]

    def _line(self, name: str, row: dict[str, Any], compared: bool) -> list[str]:
        ms, macs, dense = row["ms"] / self.batch, row["macs"] / self.batch, row["dense_macs"] / self.batch
        line = [name, row["kernel"], _live(row, "in"), _live(row, "out")]
        line += [f"{macs / 1e6:.3f}", f"{macs / dense:.0%}"] if dense else ["", ""]
        line.append(f"{ms:.4f}")
        if not compared:
            return [*line, f"{macs / ms / 1e6:.1f}" if dense and ms > 0 else ""]
        dense_ms = row["dense_ms"] / self.batch
        line.append(f"{dense_ms:.4f}")
        if ms <= 0:
            return [*line, "", ""]
        speedup = dense_ms / ms
        # Realised over ideal: 100 % if time fell as much as the multiply-accumulates did.
        return [*line, f"{speedup:.2f}x", f"{speedup * macs / dense:.0%}" if dense and macs else ""]


def _live(row: dict[str, Any], side: str) -> str:
    if not row["dense_macs"] or f"live_{side}" not in row:
        return ""
    return f"{row[f'live_{side}']:g}/{row[f'total_{side}']}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], rule_before_last: bool = False) -> str:
    """Columns aligned with two spaces between them; the first two to the left, the others to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = []
    for line in cells:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines.insert(1, rule)
    if rule_before_last:
        lines.insert(-1, rule)
    return "\n".join(lines)
