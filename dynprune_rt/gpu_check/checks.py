"""Runs checks one after the other, within a time limit, and remembers what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class NotRun(Exception):
    """Raised by a check that cannot be made here; the message says why. It counts as not run, never as passed."""


class Checks:
    """Outcomes are "passed", "FAILED" and "not run". ``limit``: seconds after which no further check is started."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.results: list[dict[str, Any]] = []
        self._clock, self._limit, self._start = clock, limit, clock()

    @property
    def seconds_left(self) -> float:
        return self._limit - (self._clock() - self._start)

    def run(self, name: str, check: Callable[[], dict[str, Any]]) -> None:
        """Make one check, which returns facts, or raises."""
        start = self._clock()
        facts: dict[str, Any] = {}
        try:
            if self.seconds_left <= 0:
                raise NotRun(f"the limit of {self._limit:.0f} s is reached")
            facts, outcome = check(), "passed"
        except NotRun as reason:
            facts, outcome = {"reason": str(reason)}, "not run"
        except Exception as error:  # one failure must not hide the others
            facts, outcome = {"error": f"{type(error).__name__}: {error}"}, "FAILED"
        self.results.append({"check": name, "outcome": outcome, "seconds": round(self._clock() - start, 2), **facts})
        details = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
        print(f"{outcome:7}  {name}: {details}", flush=True)

    def note(self, name: str, outcome: str, reason: str) -> None:
        """An outcome that is known without running anything."""
        self.results.append({"check": name, "outcome": outcome, "seconds": 0.0, "reason": reason})
        print(f"{outcome:7}  {name}: {reason}", flush=True)

    def count(self, outcome: str) -> int:
        return sum(result["outcome"] == outcome for result in self.results)

    def summary(self) -> str:
        """One line: how many of each outcome, and that what has not run is not checked."""
        line = f"{self.count('passed')} passed, {self.count('FAILED')} failed, {self.count('not run')} not run"
        names = [result["check"] for result in self.results if result["outcome"] == "not run"]
        return line + (f" (unknown, not passed: {', '.join(names)})" if names else "")
