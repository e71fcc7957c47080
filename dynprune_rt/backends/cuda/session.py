"""A program on a GPU: torch owns memory and streams, one CUDA graph per batch size replays the network."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from dynprune_rt.backends.cuda.conv_timer import ConvTimer
from dynprune_rt.backends.cuda.execution import Execution
from dynprune_rt.backends.cuda.graphs import CapturedGraphs
from dynprune_rt.backends.cuda.kernels import Kernels
from dynprune_rt.backends.cuda.lowering import CudaPlan, DeviceConstants, Step, executed_channels
from dynprune_rt.backends.cuda.maps import PRECISIONS
from dynprune_rt.backends.cuda.modes import output_mask, unmeasured
from dynprune_rt.backends.cuda.native_kernels import NativeKernels
from dynprune_rt.backends.cuda.times_cache import TimesCache, default_path
from dynprune_rt.backends.cuda.tuning import Tuner
from dynprune_rt.devices import OLDEST_CAPABILITY, cuda_module
from dynprune_rt.errors import DeviceError, InputError
from dynprune_rt.profile import Profile
from dynprune_rt.program import Program, dense_macs

Tensor = Any

_TORCH_DTYPES: Final = {"f32": torch.float32, "i64": torch.int64, "bool": torch.bool}


def open_session(program: Program, device: str, precision: str, tune_batch: int) -> CudaSession:
    """A session on "cuda" or "cuda:<number>", where `cuda_status` says that CUDA is usable.

    Raises InputError for an unknown precision, DeviceError for a device that is not there, too old, or out of memory,
    and for a torch without CUDA.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown; the GPU knows {', '.join(PRECISIONS)}")
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
    with torch.cuda.device(index):
        kernels = open_kernels(torch.device("cuda", index), precision)
        tuner = None
        if tune_batch:
            context = f"{kernels.gpu}, {kernels.version}, torch {torch.__version__}, {precision}"
            times = TimesCache(default_path(), context)
            tuner = Tuner(ConvTimer(kernels), times, tune_batch, kernels.segments)
        return CudaSession(program, kernels, tuner)


def open_kernels(device: torch.device, precision: str) -> Kernels:
    """The CUDA module's kernels, or Triton's where there is no such module."""
    module, why = cuda_module()
    if module is not None:
        return NativeKernels(module, device, precision)
    try:
        from dynprune_rt.backends.triton_kernels.kernels import TritonKernels
    except ImportError as error:
        raise DeviceError(f"device {str(device)!r} cannot be used: {why}, and Triton does not load: {error}") from None
    return TritonKernels(device, precision)


class CudaSession:
    """A program on one GPU; `run` may be called from several threads and streams, and takes turns.

    ``kernels`` fixes the device and the precision: activations and convolution weights are stored in fp16 or bf16,
    or in fp32 ("tf32": products of tf32); sums, gates and vectors are fp32. With ``tuner``, measured times decide how
    convolutions are executed. With kernels on the CPU (emulators, for tests) nothing is captured.
    """

    def __init__(self, program: Program, kernels: Kernels, tuner: Tuner | None = None) -> None:
        self.program = program
        self.device = kernels.device
        self.precision = kernels.precision
        self._kernels, self._tuner = kernels, tuner
        if kernels.capability < OLDEST_CAPABILITY:
            oldest, found = (".".join(map(str, v)) for v in (OLDEST_CAPABILITY, kernels.capability))
            raise DeviceError(f"{kernels.gpu} has compute capability {found}; {oldest} or newer is needed")
        self._lock = threading.Lock()
        self._graphs = CapturedGraphs()
        graph = program.graph
        self._input_types = [v.type for v in graph.inputs]
        self._output_types = [v.type for v in graph.outputs]
        with self._memory_errors("loading the program"):
            constants = DeviceConstants(graph, kernels)
            self._plans = {
                choices.skip: CudaPlan(graph, kernels, choices, constants)
                for choices in (
                    (unmeasured(graph, True), unmeasured(graph, False))
                    if tuner is None
                    else (tuner.choose(graph), tuner.choose_dense(graph))
                )
            }

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

        Raises InputError when an input does not fit, or is not on the GPU while its stream is being captured;
        DeviceError when the GPU's memory does not suffice.
        """
        given = list(x) if isinstance(x, (tuple, list)) else [x]
        inputs, batch = self._checked_inputs(given)
        targets = None if out is None else self._checked_outputs(out, batch)
        if self._capturing() and any(not self._on_device(t) for t in (*given, *self._listed(out))):
            raise InputError(
                f"the current stream is being captured, where nothing can move between host and GPU: inputs and out "
                f"must be tensors on {self.device}"
            )
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
        """Output channels that the gates leave live, per convolution and image: name -> int array [N].

        Where a dense mode is faster, a convolution computes more; `profile` says so.
        """
        counts: dict[str, np.ndarray] = {}

        def observe(step: Step, state: Execution) -> None:
            if step.node.op == "conv2d" and step.node.name not in seen:
                seen.add(step.node.name)  # before the step; the masks exist after it
            elif step.node.op == "conv2d":
                live = state.set(output_mask(step.node))
                total = step.node.output.type.channels
                counts[step.node.name] = (
                    np.full(state.batch, total, np.int64) if live is None else live.mask.sum(1).cpu().numpy()
                )

        seen: set[str] = set()
        self._refuse_capture("live_channels")
        inputs, batch = self._checked_inputs(list(x) if isinstance(x, (tuple, list)) else [x])
        if batch:
            with self._memory_errors(f"a batch of {batch}"):
                self._plans[True].execute([t.to(self.device) for t in inputs], observe)
        return counts

    def profile(self, x: Any, skip: bool = True) -> Profile:
        """Run one batch step by step and report what each executed, and its time on the GPU.

        Times are those of kernels that are queued one by one, not of the captured graph.
        """
        self._refuse_capture("profile")
        inputs, batch = self._checked_inputs(list(x) if isinstance(x, (tuple, list)) else [x])
        if batch == 0:
            raise InputError("profile needs at least one image")
        on_device = [t.to(self.device) for t in inputs]
        rows: list[dict[str, Any]] = []
        marks: list[Any] = []

        def observe(step: Step, state: Execution) -> None:
            marks.append(self._mark())
            if len(marks) % 2 == 0:
                rows.append(_profile_row(step, plan, state))

        plan = self._plans[skip]
        with self._memory_errors(f"a batch of {batch}"):
            self._prepare(batch, skip)
            plan.execute(on_device)  # first touch of memory and weights
            plan.execute(on_device, observe)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for index, row in enumerate(rows):
            row["ms"] = _milliseconds(marks[2 * index], marks[2 * index + 1])
        return Profile(rows=rows, batch=batch, threads=1, isa=self.gpu, skip=skip)

    # -- execution --------------------------------------------------------------------------------

    def _queue(self, inputs: list[Tensor], skip: bool) -> list[Tensor]:
        """Results on the device, in memory that the caller may keep."""
        batch, plan = int(inputs[0].shape[0]), self._plans[skip]
        if self.device.type != "cuda":
            with self._lock:
                self._prepare(batch, skip)
                return plan.execute(inputs)
        with torch.cuda.device(self.device):
            return self._graphs.run((batch, skip), inputs, plan.execute, lambda: self._prepare(batch, skip))

    def _prepare(self, batch: int, skip: bool) -> None:
        """Measure what is fastest for a batch, and have the weights for it on the device."""
        plan = self._plans[skip]
        if self._tuner is not None:
            self._tuner.prepare(plan.choices, plan.products, batch)
        plan.upload(batch)

    def _capturing(self) -> bool:
        """Whether the caller is capturing torch's current stream on this GPU."""
        if self.device.type != "cuda":
            return False
        with torch.cuda.device(self.device):
            return bool(torch.cuda.is_current_stream_capturing())

    def _refuse_capture(self, method: str) -> None:
        if self._capturing():
            raise InputError(f"{method} waits for the GPU, which is impossible on a stream that is being captured")

    def _on_device(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.device == self.device

    def _memory_errors(self, what: str) -> _MemoryErrors:
        return _MemoryErrors(self, what)

    def release_graphs(self) -> None:
        """Give up the captured graphs and the memory of their activations; the next runs capture anew."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._graphs.release()
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

    @staticmethod
    def _listed(out: Any) -> list[Any]:
        return [] if out is None else list(out) if isinstance(out, (tuple, list)) else [out]

    def _checked_outputs(self, out: Any, batch: int) -> list[Tensor]:
        given = self._listed(out)
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
            if not self._session._capturing():  # which the caller has to end first
                self._session.release_graphs()
            raise DeviceError(
                f"{self._session.gpu} has too little free memory for {self._what}: use a smaller batch"
            ) from error


def _milliseconds(start: Any, end: Any) -> float:
    return (end - start) * 1e3 if isinstance(start, float) else float(start.elapsed_time(end))


def _profile_row(step: Step, plan: CudaPlan, state: Execution) -> dict[str, Any]:
    node = step.node
    row: dict[str, Any] = {
        "name": node.name,
        "kernel": step.kernel(state.batch),
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
    live, computed = executed_channels(step, plan.choices, state)
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
