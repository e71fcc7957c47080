"""Times of one network on the GPU: skipping, not skipping, and in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import dynprune_rt
from dynprune_rt.gpu_check.baselines import FusedNetwork, compiled
from dynprune_rt.gpu_check.checks import NotRun
from dynprune_rt.gpu_check.networks import Open, converted
from dynprune_rt.gpu_check.roofline import Roofline, network_limit
from dynprune_rt.gpu_check.timing import graphed, median_ms
from dynprune_rt.models import create

_SIZE = 224


class Measurement:
    """A gated network of the zoo with this share of live channels, and the same network ungated in torch."""

    def __init__(
        self, network: str, share: float, device: torch.device, open_session: Open, roof: Roofline | None
    ) -> None:
        self._device, self._roof = device, roof
        _, self._program = converted(network, "laudnet", _SIZE, share)
        self._session = open_session(self._program, "fp16", 64)
        _, dense = converted(network, None, _SIZE)
        torch.backends.cudnn.benchmark = True
        self._fused = FusedNetwork(dense.graph, device)

    def timers(self, batch: int) -> dict[str, Callable[[], float]]:
        """What `figures.measure` takes. All read the same images, which lie on the device."""
        x = torch.randn(batch, 3, _SIZE, _SIZE, device=self._device)
        half = x.half().to(memory_format=torch.channels_last)

        def session_ms(skip: bool) -> float:
            self._session.release_graphs()
            return median_ms(partial(self._session.run, x, skip=skip))

        return {
            "skip": partial(session_ms, True),
            "no skip": partial(session_ms, False),
            "cudnn": lambda: median_ms(graphed(partial(self._fused, half))),
        }

    def limit(self, batch: int) -> float:
        """The roofline's speed-up with the channels that random images leave live."""
        if self._roof is None:
            raise NotRun("the GPU's rates were not measured")
        images = torch.randn(4, 3, _SIZE, _SIZE).numpy()
        profile = dynprune_rt.load(self._program).profile(images)
        return network_limit(self._program.graph, profile, self._roof, batch)["gain"]


def compile_ms(network: str, batch: int, device: torch.device) -> float:
    """torch.compile of the ungated network."""
    run = compiled(create(network, None), device)
    x = torch.randn(batch, 3, _SIZE, _SIZE, device=device).half().to(memory_format=torch.channels_last)
    return median_ms(partial(run, x))
