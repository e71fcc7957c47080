"""Measured times of convolutions, kept on disk between sessions.

One JSON file holds, per GPU and version of the kernels, milliseconds by convolution, mode and batch. It is replaced
as a whole, so that readers never see half of it; what cannot be read is ignored with a warning, and measured anew.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Final

#: Environment variable with the folder of the cache; "off" keeps nothing on disk.
CACHE_VARIABLE: Final = "DYNPRUNE_RT_CACHE"
_FORMAT: Final = 1


def default_path() -> Path | None:
    """Where measured times are kept: the folder in DYNPRUNE_RT_CACHE, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE, "").strip()
    if chosen.lower() == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(chosen) if chosen else Path(home) / "dynprune-rt"
    return folder / "gpu_times.json"


class TimesCache:
    """Times of one GPU and one version of the kernels. ``path`` None keeps them for this process only."""

    def __init__(self, path: Path | None, context: str) -> None:
        self.path, self.context = path, context
        self._times = self._read().get(context, {})
        self._new: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        """Milliseconds, or None where nothing was measured."""
        return self._times.get(key)

    def put(self, key: str, milliseconds: float) -> None:
        self._times[key] = self._new[key] = milliseconds

    def save(self) -> None:
        """Add what was measured to the file, which other processes may have changed meanwhile."""
        if self.path is None or not self._new:
            return
        everything = self._read(quiet=True)
        everything.setdefault(self.context, {}).update(self._new)
        text = json.dumps({"format": _FORMAT, "times": everything}, indent=1, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(temporary, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            warnings.warn(
                f"measured times cannot be kept in {self.path} ({error.strerror or error}): the next session measures "
                f"again; {CACHE_VARIABLE} names another folder, or 'off'",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._new = {}

    def _read(self, quiet: bool = False) -> dict[str, dict[str, float]]:
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return _checked(content)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            if not quiet:
                warnings.warn(
                    f"the measured times in {self.path} are ignored, and measured anew: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return {}


def _checked(content: Any) -> dict[str, dict[str, float]]:
    """The file's times. Raises ValueError for anything but what `TimesCache.save` writes."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("times"), dict):
        raise ValueError("not a file of measured times")
    for times in content["times"].values():
        if not isinstance(times, dict) or not all(_is_time(v) for v in times.values()):
            raise ValueError("a time that is no positive number")
    return {str(context): {k: float(v) for k, v in times.items()} for context, times in content["times"].items()}


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
