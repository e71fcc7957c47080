"""The torch requirement is explained, not stumbled over."""

from __future__ import annotations

import sys

import pytest
import torch

from dynprune_rt.errors import ConversionError
from dynprune_rt.frontend.torch_version import parse_version, require_torch


def test_present() -> None:
    assert require_torch() is torch


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConversionError, match=r'pip install "dynprune-rt\[torch\]"'):
        require_torch()


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu121"])
def test_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ConversionError, match=f"torch 2.6 or newer, found {version[:3]}"):
        require_torch()


@pytest.mark.parametrize(("text", "parsed"), [("2.13.0+cpu", (2, 13)), ("2.7.0a0+gitabc", (2, 7)), ("3.0", (3, 0))])
def test_parsing(text: str, parsed: tuple[int, int]) -> None:
    assert parse_version(text) == parsed
