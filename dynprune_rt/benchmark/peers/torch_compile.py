"""torch.compile (Inductor) with weight freezing, fp32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynprune_rt.benchmark.peers.interface import DenseNetwork, not_installed
from dynprune_rt.benchmark.timing import Runner


class TorchCompile:
    """Frozen weights, so that BN is folded and weights are packed ahead; needs a C++ compiler."""

    name = "torch.compile"
    settings = "Inductor, freezing"

    def missing(self, network: DenseNetwork) -> str | None:
        return not_installed("torch") or (None if network.module is not None else "no torch module given")

    def prepare(self, network: DenseNetwork, inputs: Sequence[np.ndarray], threads: int) -> Runner:
        import torch
        import torch._dynamo
        import torch._inductor.config as inductor

        torch.set_num_threads(threads)
        torch._dynamo.reset()
        tensors = [torch.from_numpy(x) for x in inputs]
        with inductor.patch({"freezing": True, "cpp.threads": threads}), torch.no_grad():
            compiled = torch.compile(network.module)
            for tensor in tensors[:2]:
                compiled(tensor)

        def run(i: int) -> np.ndarray:
            with torch.no_grad():
                result: np.ndarray = compiled(tensors[i]).numpy()
            return result

        return run
