"""torch eager, channels_last, fp32."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from dynprune_rt.benchmark.peers.interface import DenseNetwork, not_installed
from dynprune_rt.benchmark.timing import Runner


class TorchEager:
    """What most people run without further thought; never to be quoted alone as "dense"."""

    name = "torch-eager"
    settings = "channels_last, inference mode"

    def missing(self, network: DenseNetwork) -> str | None:
        return not_installed("torch") or (None if network.module is not None else "no torch module given")

    def prepare(self, network: DenseNetwork, inputs: Sequence[np.ndarray], threads: int) -> Runner:
        import torch

        torch.set_num_threads(threads)
        module = copy.deepcopy(network.module).to(memory_format=torch.channels_last)
        tensors = [torch.from_numpy(x).contiguous(memory_format=torch.channels_last) for x in inputs]

        def run(i: int) -> np.ndarray:
            with torch.inference_mode():
                result: np.ndarray = module(tensors[i]).numpy()
            return result

        return run
