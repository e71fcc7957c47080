"""What a peer has to offer."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dynprune_rt.benchmark.timing import Runner


@dataclass(frozen=True)
class DenseNetwork:
    """The dense network in the forms that peers take; a form that is not there is None.

    onnx: serialised model with one input f32[N, C, H, W] of fixed shape. module: torch.nn.Module in eval mode.
    """

    onnx: bytes | None = None
    module: Any = None


class Peer(Protocol):
    """One dense runtime."""

    name: str
    #: What was set, for the report.
    settings: str

    def missing(self, network: DenseNetwork) -> str | None:
        """Why this peer cannot run the network here, or None if it can. Imports nothing heavy."""
        ...

    def prepare(self, network: DenseNetwork, inputs: Sequence[np.ndarray], threads: int) -> Runner:
        """Load and compile; the runner returns the first output of ``inputs[i]``, valid until its next call."""
        ...


def not_installed(package: str) -> str | None:
    """A word for the report if ``package`` cannot be imported."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"
