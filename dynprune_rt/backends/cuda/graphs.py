"""One captured CUDA graph per batch size, replayed for ever new inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

import torch

Tensor = Any
Execute = Callable[[list[Tensor]], list[Tensor]]

#: Captured graphs that are kept; each holds the memory of its batch's activations.
MAX_GRAPHS: Final = 8


@dataclass(eq=False)
class _Captured:
    graph: Any
    inputs: list[Tensor]
    outputs: list[Tensor]


class CapturedGraphs:
    """Graphs by key, the longest unused given up first. Threads and streams take turns, as graphs have fixed memory.

    ``cuda``: torch.cuda, or a stand-in for tests.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._last_replay: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, inputs: list[Tensor], execute: Execute, prepare: Callable[[], None]) -> list[Tensor]:
        """Results on the current device, in memory that the caller may keep.

        ``execute`` queues the work; ``prepare`` is called once before it is captured, and may wait for the device. On a
        stream that the caller is capturing the work becomes part of that graph instead.
        """
        with self._lock:
            if self._cuda.is_current_stream_capturing():
                return execute(inputs)
            stream = self._cuda.current_stream()
            if self._last_replay is not None:
                stream.wait_event(self._last_replay)  # the graph's buffers are one call's at a time
            captured = self._find(key, inputs, execute, prepare)
            for buffer, given in zip(captured.inputs, inputs, strict=True):
                buffer.copy_(given, non_blocking=True)
            captured.graph.replay()
            results = [t.clone() for t in captured.outputs]
            self._last_replay = self._cuda.Event()
            self._last_replay.record(stream)
            return results

    def _find(self, key: Hashable, inputs: list[Tensor], execute: Execute, prepare: Callable[[], None]) -> _Captured:
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if len(self._graphs) >= MAX_GRAPHS:
            self._cuda.current_stream().synchronize()  # the oldest may still be running
            self._graphs.popitem(last=False)
        prepare()
        buffers = [t.clone() for t in inputs]
        side = self._cuda.Stream()
        side.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(side):  # a first run outside the capture makes tables and loads kernels
            execute(buffers)
        self._cuda.current_stream().wait_stream(side)
        graph = self._cuda.CUDAGraph()
        with self._cuda.graph(graph):
            outputs = execute(buffers)
        self._graphs[key] = _Captured(graph, buffers, outputs)
        return self._graphs[key]

    def release(self) -> None:
        """Give up all graphs and their memory. Nothing may be running."""
        with self._lock:
            self._graphs.clear()
            self._last_replay = None
