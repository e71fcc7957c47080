"""A converted network inside a larger torch program: a module whose forward is one torch.library operator.

The whole network is one operator, ``dynprune_rt::run``, opaque to torch.compile and torch.export, which see the shapes
and types of its outputs and leave the batch dynamic. It has no gradient: converted networks are for inference.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import torch

from dynprune_rt import artifact
from dynprune_rt.errors import DeviceError
from dynprune_rt.program import Program
from dynprune_rt.session import Session, load

if TYPE_CHECKING:
    from dynprune_rt.backends.cuda.session import CudaSession

Tensor = Any
_TORCH_DTYPES: Final = {"f32": torch.float32, "i64": torch.int64, "bool": torch.bool}

#: Sessions by name; compiled and exported graphs hold names.
_SESSIONS: dict[str, Session | CudaSession] = {}


class TorchModule(torch.nn.Module):
    """A program as an inference module: tensors [N, ...] in, a tensor (or a tuple of several) out.

    ``source``, ``device``, ``threads`` and ``precision`` are those of `load`; ``skip`` is that of `Session.run`.
    Inputs are on the session's device or on the CPU; results come where the inputs are.

    A graph exported with torch.export refers to the network by ``name``, which follows from the program's contents, the
    device and the precision: in another process, make the same TorchModule before running the graph.

    Raises what `load` raises; calling it raises InputError for inputs that do not fit.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Program,
        device: str = "cpu",
        threads: int = 0,
        precision: str = "fp16",
        skip: bool = True,
    ) -> None:
        super().__init__()
        program = source if isinstance(source, Program) else Program.load(source)
        kind = "cpu" if device == "cpu" else f"{device}_{precision}"
        self.name = f"{artifact.digest(program.graph)[:16]}_{kind}"
        self.skip = skip
        if device == "cpu":
            self.name += f"_{threads}"
        if self.name not in _SESSIONS:
            _SESSIONS[self.name] = load(program, device, threads, precision)

    @property
    def session(self) -> Session | CudaSession:
        """The session that runs the network; shared by modules of the same name."""
        return _session(self.name)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = torch.ops.dynprune_rt.run(list(inputs), self.name, self.skip)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def extra_repr(self) -> str:
        return f"{self.name}, skip={self.skip}"


def forget(name: str) -> None:
    """Give up the session of that `TorchModule.name` and its memory; modules and graphs that use it stop working."""
    _SESSIONS.pop(name, None)


def _session(name: str) -> Session | CudaSession:
    if name not in _SESSIONS:
        raise DeviceError(
            f"no network {name!r} in this process: make the TorchModule that this graph was exported with, from the "
            "same .dpr file, device and precision, before running the graph"
        )
    return _SESSIONS[name]


@torch.library.custom_op("dynprune_rt::run", mutates_args=())
def _run(inputs: list[torch.Tensor], name: str, skip: bool) -> list[torch.Tensor]:
    results = _session(name).run(tuple(inputs), skip=skip)
    outputs = list(results) if isinstance(results, tuple) else [results]
    # An operator's outputs share no memory, with its inputs or with one another.
    taken = {t.untyped_storage().data_ptr() for t in inputs if t.numel()}
    for index, output in enumerate(outputs):
        address = output.untyped_storage().data_ptr()
        if output.numel() and address in taken:
            outputs[index] = output.clone()
        taken.add(address)
    return outputs


@_run.register_fake
def _(inputs: list[torch.Tensor], name: str, skip: bool) -> list[torch.Tensor]:
    graph = _session(name).program.graph
    batch = inputs[0].shape[0]
    return [
        inputs[0].new_empty((batch, *v.type.shape[int(v.type.batched) :]), dtype=_TORCH_DTYPES[v.type.dtype])
        for v in graph.outputs
    ]
