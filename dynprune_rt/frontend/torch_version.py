"""The torch requirement of the frontend, checked before torch is used."""

from __future__ import annotations

import importlib
from typing import Any

from dynprune_rt.errors import ConversionError

MINIMUM = (2, 6)


def require_torch() -> Any:
    """Import torch and return it.

    Raises ConversionError when torch is missing or older than 2.6 (the first with
    ``Dim.DYNAMIC`` and ``torch.export.default_decompositions``).
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ConversionError(
            'converting a model needs torch, which is not installed: pip install "dynprune-rt[torch]"'
        ) from error
    version = parse_version(torch.__version__)
    if version < MINIMUM:
        wanted = ".".join(str(part) for part in MINIMUM)
        raise ConversionError(
            f"converting a model needs torch {wanted} or newer, found {torch.__version__}: "
            'pip install --upgrade "dynprune-rt[torch]"'
        )
    return torch


def parse_version(text: str) -> tuple[int, int]:
    """(major, minor) of a version such as "2.13.0+cpu" or "2.7.0a0+git1234"."""
    major, minor = text.split("+")[0].split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)
