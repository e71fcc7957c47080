"""A progress bar on stderr; silent where stderr is not a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO


class ProgressBar:
    """``with ProgressBar("measuring") as bar: bar(done, total)``. Redraws at most ten times per second."""

    def __init__(self, label: str = "", stream: TextIO | None = None) -> None:
        self.label = label
        self.stream = stream if stream is not None else sys.stderr
        self.enabled = self.stream.isatty()
        self._drawn = 0.0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def __call__(self, done: int, total: int, label: str | None = None) -> None:
        """Show ``done`` of ``total`` steps; a new label redraws at once."""
        if not self.enabled:
            return
        now = time.monotonic()
        if label in (None, self.label) and done < total and now - self._drawn < 0.1:
            return
        self._drawn = now
        self.label = self.label if label is None else label
        share = min(done / total, 1.0) if total else 0.0
        room = shutil.get_terminal_size().columns - len(self.label) - 9
        width = max(0, min(40, room))
        filled = round(share * width)
        self.stream.write(f"\r\x1b[K{self.label} {'█' * filled}{'░' * (width - filled)} {share:4.0%}")
        self.stream.flush()
