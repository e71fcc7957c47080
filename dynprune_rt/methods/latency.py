"""Latency as a pruning budget: milliseconds per MAC of every layer, measured by this package's runtime."""

from __future__ import annotations

import statistics

from torch import Tensor, nn

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.graph import trace


def layer_rates(model: nn.Module, example: Tensor, threads: int = 1, repeats: int = 5) -> dict[str, float]:
    """Milliseconds per MAC by convolution (module name), of the dense ``model`` at the batch of ``example``.

    The estimate for smaller widths assumes time proportional to MACs within a layer: narrow layers come out faster
    than they are. Raises TrainingError when the runtime's layers cannot be matched with the model's.
    """
    import dynprune_rt

    layers = trace(model, example[:1]).layers
    session = dynprune_rt.load(dynprune_rt.convert(model.eval(), example), threads=threads)
    image = example.numpy()
    seen: dict[str, list[float]] = {}
    for _ in range(repeats):
        for row in session.profile(image, skip=False).rows:
            if row["macs"]:
                seen.setdefault(str(row["name"]), []).append(float(row["ms"]) / float(row["macs"]))
    rates: dict[str, float] = {}
    for layer in layers:
        found = [name for name in seen if name == layer.module or name.startswith(layer.module + ".")]
        if found:
            rates[layer.module] = statistics.median(seen[found[0]])
    if not rates:
        raise TrainingError(f"no layer of the profile matches the model's: {sorted(seen)[:5]} ...")
    return rates
