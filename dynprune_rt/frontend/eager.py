"""The model run eagerly: the reference of every comparison, and the record that tracing needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dynprune_rt.frontend import outputs as output_selection
from dynprune_rt.frontend.adapter_mode import AdapterMode, InputDependence, ScalarRead
from dynprune_rt.frontend.arguments import ExtraArguments


class EagerModel:
    """A model with its extra arguments bound: image [N, ...] -> flattened tensors."""

    def __init__(
        self, model: torch.nn.Module, example: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> None:
        self.model = model
        self.extra = ExtraArguments(args, kwargs, example.shape[0])

    def run(self, image: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """(key path, tensor) of every tensor that the model returns."""
        return self.run_recorded(image)[0]

    def run_recorded(self, image: torch.Tensor) -> tuple[list[tuple[str, torch.Tensor]], list[ScalarRead]]:
        """The result, and every conversion of a tensor to a Python value on the way."""
        batched = self.extra.batched(image.shape[0])
        args, kwargs = self.extra.bind(batched)
        image = image.clone()  # the model may work in place
        dependence = InputDependence([image, *batched])
        mode = AdapterMode(dependence=dependence)
        with torch.no_grad(), preserved_state(self.model), mode, dependence:
            result = self.model(image, *args, **kwargs)
        return [(path, t.detach().clone()) for path, t in output_selection.tensor_leaves(result)], mode.reads


@contextmanager
def preserved_state(model: torch.nn.Module) -> Iterator[None]:
    """Restore buffers and the random state afterwards: converting a model must not change it."""
    saved = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in saved and buffer.shape == saved[name].shape:
                        buffer.copy_(saved[name])


def agreed_reads(runs: Sequence[Sequence[ScalarRead]]) -> list[ScalarRead]:
    """The reads of the first run, marked as dependent where another run (another batch size) saw another value."""
    first = runs[0]
    merged: list[ScalarRead] = []
    for i, read in enumerate(first):
        others = [run[i] if i < len(run) else None for run in runs[1:]]
        same = all(
            o is not None and (o.function, o.site, o.value) == (read.function, read.site, read.value) for o in others
        )
        merged.append(ScalarRead(read.function, read.site, read.value, read.depends_on_input or not same))
    return merged
