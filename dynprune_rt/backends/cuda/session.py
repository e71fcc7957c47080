"""A program on a GPU: torch owns memory and streams, one CUDA graph per batch size replays the network."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch

from dynprune_rt.backends.cuda.execution import Execution
from dynprune_rt.backends.cuda.lowering import CudaPlan, DeviceConstants, Step, executed_channels
from dynprune_rt.backends.cuda.maps import PRECISIONS, Kernels
from dynprune_rt.devices import OLDEST_CAPABILITY, cuda_module
from dynprune_rt.errors import DeviceError, InputError
from dynprune_rt.profile import Profile
from dynprune_rt.program import Program, dense_macs

Tensor = Any

#: Captured graphs that a session keeps; each holds the memory of its batch's activations.
MAX_GRAPHS: Final = 8

_TORCH_DTYPES: Final = {"f32": torch.float32, "i64": torch.int64, "bool": torch.bool}


def open_session(program: Program, device: str, precision: str) -> CudaSession:
    """A session on "cuda" or "cuda:<number>", where `cuda_status` says that CUDA is usable.

    Raises DeviceError for a device that is not there, too old, or out of memory, and for a torch without CUDA.
    """
    module, why = cuda_module()
    if module is None:
        raise DeviceError(f"device {device!r} cannot be used: {why}")
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device {device!r} cannot be used: this PyTorch ({torch.__version__}) sees no GPU; "
            "install a PyTorch that is built for CUDA"
        )
    _, _, number = device.partition(":")
    index = int(number) if number else torch.cuda.current_device()
    count = torch.cuda.device_count()
    if index >= count:
        raise DeviceError(f"there is no device {device!r}; this machine has {count}: cuda:0 to cuda:{count - 1}")
    return CudaSession(program, module, torch.device("cuda", index), precision)


@dataclass(eq=False)
class _Captured:
    graph: Any
    inputs: list[Tensor]
    outputs: list[Tensor]


class CudaSession:
    """A program on one GPU; `run` may be called from several threads and streams, and takes turns.

    ``precision``: what activations and convolution weights are stored in, "fp16" or "bf16"; sums, gates and vectors
    are fp32. On the emulator (tests) ``device`` is the CPU, and nothing is captured.
    """

    def __init__(self, program: Program, module: ModuleType, device: torch.device, precision: str = "fp16") -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is unknown; the GPU knows {', '.join(PRECISIONS)}")
        self.program = program
        self.device = device
        self.precision = precision
        self._kernels = Kernels(module, device, precision)
        if self._kernels.capability < OLDEST_CAPABILITY:
            oldest, found = (".".join(map(str, v)) for v in (OLDEST_CAPABILITY, self._kernels.capability))
            raise DeviceError(f"{self._kernels.gpu} has compute capability {found}; {oldest} or newer is needed")
        self._lock = threading.Lock()
        self._graphs: OrderedDict[tuple[int, bool], _Captured] = OrderedDict()
        self._last_replay: Any = None
        graph = program.graph
        self._input_types = [v.type for v in graph.inputs]
        self._output_types = [v.type for v in graph.outputs]
        with self._memory_errors("loading the program"):
            constants = DeviceConstants(graph, self._kernels)
            self._plans = {skip: CudaPlan(graph, self._kernels, skip, constants) for skip in (True, False)}

    @property
    def gpu(self) -> str:
        """The GPU's name."""
        return str(self._kernels.gpu)

    def run(self, x: Any, skip: bool = True, out: Any = None) -> Any:
        """Run one batch, as `Session.run` does on the CPU.

        Inputs are numpy arrays, or torch tensors on the CPU or on this session's GPU; results are of the same kind and
        in the same place. With tensors on the GPU nothing waits for the device: work is queued on torch's current
        stream. Inside a CUDA graph that the caller captures, the network becomes part of that graph.
        ``skip=False`` computes every channel; results agree up to the rounding of sums.

        Raises InputError when an input does not fit, DeviceError when the GPU's memory does not suffice.
        """
        given = list(x) if isinstance(x, (tuple, list)) else [x]
        inputs, batch = self._checked_inputs(given)
        targets = None if out is None else self._checked_outputs(out, batch)
        if batch:
            with self._memory_errors(f"a batch of {batch}"):
                results = self._queue([t.to(self.device) for t in inputs], skip)
        else:
            results = [
                torch.empty((0, *t.shape[int(t.batched) :]), dtype=_TORCH_DTYPES[t.dtype], device=self.device)
                for t in self._output_types
            ]
        if targets is not None:
            for target, result in zip(targets, results, strict=True):
                target.copy_(result)
            return out
        as_numpy = not any(isinstance(g, torch.Tensor) for g in given)
        home = "cpu" if as_numpy else inputs[0].device
        moved = [r.to(home).numpy() if as_numpy else r.to(home) for r in results]
        return moved[0] if len(moved) == 1 else tuple(moved)

    def live_channels(self, x: Any) -> dict[str, np.ndarray]:
        """Executed output channels per convolution and image: name -> int array [N]."""
        counts: dict[str, np.ndarray] = {}

        def observe(step: Step, state: Execution) -> None:
            if step.node.op == "conv2d" and step.node.name not in seen:
                seen.add(step.node.name)  # before the step; the masks exist after it
            elif step.node.op == "conv2d":
                _, computed = executed_channels(step, state)
                total = step.node.output.type.channels
                counts[step.node.name] = (
                    np.full(state.batch, total, np.int64) if computed is None else computed.sum(1).cpu().numpy()
                )

        seen: set[str] = set()
        inputs, batch = self._checked_inputs(list(x) if isinstance(x, (tuple, list)) else [x])
        if batch:
            with self._memory_errors(f"a batch of {batch}"):
                self._plans[True].execute([t.to(self.device) for t in inputs], observe)
        return counts

    def profile(self, x: Any, skip: bool = True) -> Profile:
        """Run one batch step by step and report what each executed, and its time on the GPU.

        Times are those of kernels that are queued one by one, not of the captured graph.
        """
        inputs, batch = self._checked_inputs(list(x) if isinstance(x, (tuple, list)) else [x])
        if batch == 0:
            raise InputError("profile needs at least one image")
        on_device = [t.to(self.device) for t in inputs]
        rows: list[dict[str, Any]] = []
        marks: list[Any] = []

        def observe(step: Step, state: Execution) -> None:
            marks.append(self._mark())
            if len(marks) % 2 == 0:
                rows.append(_profile_row(step, state))

        with self._memory_errors(f"a batch of {batch}"):
            self._plans[skip].execute(on_device)  # first touch of memory and weights
            self._plans[skip].execute(on_device, observe)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for index, row in enumerate(rows):
            row["ms"] = _milliseconds(marks[2 * index], marks[2 * index + 1])
        return Profile(rows=rows, batch=batch, threads=1, isa=self.gpu, skip=skip)

    # -- execution --------------------------------------------------------------------------------

    def _queue(self, inputs: list[Tensor], skip: bool) -> list[Tensor]:
        """Results on the device, in memory that the caller may keep."""
        plan = self._plans[skip]
        if self.device.type != "cuda":
            with self._lock:
                return plan.execute(inputs)
        with self._lock, torch.cuda.device(self.device):
            if torch.cuda.is_current_stream_capturing():
                return plan.execute(inputs)
            stream = torch.cuda.current_stream()
            if self._last_replay is not None:
                stream.wait_event(self._last_replay)  # the graph's buffers are one call's at a time
            captured = self._captured(inputs, skip)
            for buffer, given in zip(captured.inputs, inputs, strict=True):
                buffer.copy_(given, non_blocking=True)
            captured.graph.replay()
            results = [t.clone() for t in captured.outputs]
            self._last_replay = torch.cuda.Event()
            self._last_replay.record(stream)
            return results

    def _captured(self, inputs: list[Tensor], skip: bool) -> _Captured:
        key = (int(inputs[0].shape[0]), skip)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if len(self._graphs) >= MAX_GRAPHS:
            torch.cuda.current_stream().synchronize()  # the oldest may still be running
            self._graphs.popitem(last=False)
        buffers = [t.clone() for t in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a first run outside the capture makes tables and loads kernels
            self._plans[skip].execute(buffers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._plans[skip].execute(buffers)
        self._graphs[key] = _Captured(graph, buffers, outputs)
        return self._graphs[key]

    def _memory_errors(self, what: str) -> _MemoryErrors:
        return _MemoryErrors(self, what)

    def release_graphs(self) -> None:
        """Give up the captured graphs and the memory of their activations; the next runs capture anew."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._graphs.clear()
        self._last_replay = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    # -- arguments --------------------------------------------------------------------------------

    def _checked_inputs(self, given: Sequence[Any]) -> tuple[list[Tensor], int]:
        if len(given) != len(self._input_types):
            raise InputError(f"the program takes {len(self._input_types)} input(s), got {len(given)}")
        tensors = []
        for index, (value, type) in enumerate(zip(given, self._input_types, strict=True)):
            what = f"input {index}" if len(given) > 1 else "the input"
            tensors.append(self._checked_input(value, type.dtype, type.shape[1:], what))
        batches = [int(t.shape[0]) for t in tensors]
        if len(set(batches)) > 1:
            raise InputError(f"inputs have different batch sizes: {batches}")
        if len({t.device for t in tensors}) > 1:
            raise InputError(f"inputs are on different devices: {[str(t.device) for t in tensors]}")
        return tensors, batches[0]

    def _checked_input(self, value: Any, dtype: str, shape: tuple[int, ...], what: str) -> Tensor:
        wanted = f"{_TORCH_DTYPES[dtype]} [N, {', '.join(map(str, shape))}]".replace("torch.", "")
        if isinstance(value, np.ndarray):
            if not value.flags.writeable or any(s < 0 for s in value.strides):
                value = value.copy()  # torch cannot share such memory
            try:
                value = torch.from_numpy(value)
            except TypeError:
                raise InputError(f"{what} has dtype {value.dtype}, expected {wanted}") from None
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{what} must be a numpy array or a torch tensor {wanted}, got {type(value).__name__}")
        value = value.detach()
        if value.device.type != "cpu" and value.device != self.device:
            raise InputError(f"{what} is on device {value.device}, the session on {self.device}; move it: x.to(...)")
        if value.dtype != _TORCH_DTYPES[dtype]:
            raise InputError(f"{what} has dtype {value.dtype}, expected {wanted}; convert it: x.float()")
        if tuple(value.shape[1:]) != tuple(shape) or value.dim() == 0:
            hint = "; add the batch dimension: x[None]" if tuple(value.shape) == tuple(shape) else ""
            raise InputError(f"{what} has shape {list(value.shape)}, expected {wanted}{hint}")
        return value.contiguous()

    def _checked_outputs(self, out: Any, batch: int) -> list[Tensor]:
        given = list(out) if isinstance(out, (tuple, list)) else [out]
        if len(given) != len(self._output_types):
            raise InputError(f"the program has {len(self._output_types)} output(s), out holds {len(given)}")
        targets = []
        for value, expected in zip(given, self._output_types, strict=True):
            shape = (batch, *expected.shape[int(expected.batched) :])
            dtype = _TORCH_DTYPES[expected.dtype]
            if isinstance(value, np.ndarray) and not value.flags.writeable:
                raise InputError("out is read-only")
            tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape or tensor.dtype != dtype:
                found = f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__
                raise InputError(f"out must be {dtype}{list(shape)}, got {found}".replace("torch.", ""))
            targets.append(tensor)
        return targets


class _MemoryErrors:
    """Turns torch's out-of-memory error into a DeviceError and leaves the session usable."""

    def __init__(self, session: CudaSession, what: str) -> None:
        self._session, self._what = session, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            self._session.release_graphs()
            raise DeviceError(
                f"{self._session.gpu} has too little free memory for {self._what}: use a smaller batch"
            ) from error


def _milliseconds(start: Any, end: Any) -> float:
    return (end - start) * 1e3 if isinstance(start, float) else float(start.elapsed_time(end))


def _profile_row(step: Step, state: Execution) -> dict[str, Any]:
    node = step.node
    row: dict[str, Any] = {
        "name": node.name,
        "kernel": step.kernel,
        "live_in": 0,
        "total_in": 0,
        "live_out": 0,
        "total_out": 0,
        "dense_macs": dense_macs(node) * state.batch,
    }
    row["macs"] = row["dense_macs"]
    if node.op != "conv2d":
        return row
    source, weight = node.inputs[0], node.inputs[1]
    assert source is not None and weight is not None
    groups, out = node.attrs["groups"], node.output
    live, computed = executed_channels(step, state)
    per_group = []
    for mask, channels in ((live, source.type.channels), (computed, out.type.channels)):
        if mask is None:
            mask = torch.ones((state.batch, channels), dtype=torch.bool, device=state.kernels.device)
        per_group.append(mask.reshape(state.batch, groups, -1).sum(2))
    taps = weight.type.shape[2] * weight.type.shape[3] * out.type.shape[2] * out.type.shape[3]
    row.update(
        live_in=float(per_group[0].sum()) / state.batch,
        total_in=source.type.channels,
        live_out=float(per_group[1].sum()) / state.batch,
        total_out=out.type.channels,
        macs=int((per_group[0] * per_group[1]).sum()) * taps,
    )
    return row
