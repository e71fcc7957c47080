"""Stand-ins for what the GPU session uses of torch.cuda."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch


class FakeEvent:
    """Every two of them are 1.5 ms apart."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing

    def record(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: object) -> float:
        assert self.timed and isinstance(later, FakeEvent) and later.timed
        return 1.5


class FakeCuda:
    """A stream that is always idle; inside `graph`, calls of `captured` are recorded, and replayed in place."""

    def __init__(self) -> None:
        self.capturing = False
        self.waits: list[Any] = []
        self.recording: list[Callable[[], None]] | None = None

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def current_stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_event=self.waits.append, wait_stream=lambda s: None, synchronize=lambda: None)

    Stream = current_stream

    def Event(self) -> SimpleNamespace:
        return SimpleNamespace(record=lambda stream: None)

    def stream(self, side: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def CUDAGraph(self) -> SimpleNamespace:
        calls: list[Callable[[], None]] = []
        return SimpleNamespace(calls=calls, replay=lambda: [call() for call in calls])

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.recording = graph.calls
        yield
        self.recording = None

    def captured(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """A network: doubles its input."""
        outputs = [2 * t for t in inputs]
        if self.recording is not None:
            self.recording.append(lambda: [o.copy_(2 * i) for o, i in zip(outputs, inputs, strict=True)])
        return outputs
