"""Checkpoints: written whole or not at all, read without executing anything from the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from dynprune_rt.errors import TrainingError

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, strings, containers) beside ``path`` and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(path.suffix + ".part")
    torch.save({"format": FORMAT, **content}, scratch)
    os.replace(scratch, path)


def load(path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint whose entry "run" equals ``expected``. Raises TrainingError naming what differs."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = content["run"]
        known = content["format"] == FORMAT
    except Exception as error:
        raise TrainingError(f"cannot resume from {path}: {type(error).__name__}: {error}") from None
    if not known:
        raise TrainingError(f"cannot resume from {path}: format {content['format']}, expected {FORMAT}")
    different = [
        f"{key}: {saved.get(key)} in the checkpoint, {expected.get(key)} now"
        for key in sorted(saved.keys() | expected.keys())
        if saved.get(key) != expected.get(key)
    ]
    if different:
        raise TrainingError(
            f"{path} belongs to another run; remove it or repeat its settings:\n  " + "\n  ".join(different)
        )
    return content
