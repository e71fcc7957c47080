"""Times on the GPU, by CUDA events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: Calls that are timed, and calls before them.
REPEATS = 20
WARM_UP = 3


def median_ms(call: Callable[[], Any]) -> float:
    """Median milliseconds of one call, queued one after the other."""
    for _ in range(WARM_UP):
        call()
    pairs = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    times = sorted(float(start.elapsed_time(end)) for start, end in pairs)
    return times[len(times) // 2]


def graphed(call: Callable[[], Any]) -> Callable[[], None]:
    """The same work as one CUDA graph."""
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    replay: Callable[[], None] = graph.replay
    return replay
