"""Loading a program onto a device and running it. Imports numpy only."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from dynprune_rt.devices import cuda_status
from dynprune_rt.errors import DeviceError, InputError
from dynprune_rt.profile import Profile
from dynprune_rt.program import Program

if TYPE_CHECKING:
    from dynprune_rt.backends.cuda.session import CudaSession

#: Environment variable that chooses the instruction set of the CPU kernels.
ISA_VARIABLE = "DYNPRUNE_RT_ISA"

_MAX_THREADS = 1024


@overload
def load(source: str | os.PathLike[str] | Program, device: Literal["cpu"] = "cpu", threads: int = 0) -> Session: ...


@overload
def load(
    source: str | os.PathLike[str] | Program,
    device: str,
    threads: int = 0,
    precision: str = "fp16",
    tune_batch: int = 32,
) -> Session | CudaSession: ...


def load(
    source: str | os.PathLike[str] | Program,
    device: str = "cpu",
    threads: int = 0,
    precision: str = "fp16",
    tune_batch: int = 32,
) -> Session | CudaSession:
    """Prepare a program for running.

    ``source``: the path of a ``.dpr`` file, or a `Program`. ``device``: "cpu", "cuda" or "cuda:<number>".
    ``threads``: CPU threads for one `Session.run`, 0 = one per core that this process may use.
    ``precision``: on a GPU, what activations and convolution weights are stored in: "fp16", "bf16", or "tf32" for fp32
    that is multiplied as tf32. ``tune_batch``: on a GPU, the batch size for which it is measured which layers are
    faster dense (kept on disk, see DYNPRUNE_RT_CACHE); the same for all batches, so that results do not depend on
    them. 0 measures nothing and skips whatever can be skipped.

    Raises ArtifactError for a damaged file, DeviceError for an unknown or unusable device or an instruction set
    (environment variable DYNPRUNE_RT_ISA) that this CPU lacks, InputError for a bad thread count, precision or batch.
    """
    program = source if isinstance(source, Program) else Program.load(Path(source))
    if device == "cpu":
        return Session(program, threads=threads)
    if not re.fullmatch(r"cuda(:\d+)?", str(device)):
        raise DeviceError(f"unknown device {device!r}; known are 'cpu', 'cuda' and 'cuda:<number>'")
    status = cuda_status()  # before anything imports torch
    if not status.usable:
        raise DeviceError(f"device {device!r} cannot be used: {status.reason}. Run on the CPU: device='cpu'")
    from dynprune_rt.backends.cuda.session import open_session

    return open_session(program, str(device), precision, _tune_batch(tune_batch))


def cpu_isa() -> str:
    """The instruction set that `load` would use now: "generic", "avx2", "avx512", "avx512_vnni" or
    "avx512_bf16".

    Raises DeviceError when DYNPRUNE_RT_ISA names an unknown one, or one that this CPU lacks.
    """
    from dynprune_rt import _C

    wanted = os.environ.get(ISA_VARIABLE, "").strip().lower()
    try:
        return str(_C.default_isa(wanted))
    except ValueError as error:
        raise DeviceError(f"{ISA_VARIABLE}={wanted}: {error}") from None


def available_isas() -> list[str]:
    """Instruction sets that this build has kernels for and this CPU can run, best last."""
    from dynprune_rt import _C

    return list(_C.available_isas())


def _tune_batch(batch: int) -> int:
    if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 0:
        raise InputError(f"tune_batch must be a batch size, or 0, got {batch!r}")
    return int(batch)


def _thread_count(threads: int) -> int:
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise InputError(f"threads must be a whole number, got {threads!r}")
    if not 0 <= threads <= _MAX_THREADS:
        raise InputError(f"threads must be between 0 (one per core) and {_MAX_THREADS}, got {threads}")
    if threads:
        return int(threads)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _warn_of_portable_code(program: Program) -> None:
    """Say once where narrow layers have no instructions of their own: the results are the same, the time is not."""
    from dynprune_rt import _C

    isa = cpu_isa()
    types = {v.type.dtype for node in program.graph.nodes for v in node.outputs}
    for name, dtypes, kernels, needs in (
        ("int8", {"u8", "s8"}, _C.int8_kernels(isa), "AVX-512 VNNI and VBMI"),
        ("bf16", {"bf16"}, _C.bf16_kernels(isa), "AVX-512 BF16, VNNI and VBMI"),
    ):
        if kernels == "portable" and types & dtypes:
            warnings.warn(
                f"{name} layers run in portable code with instruction set {isa!r} (fast ones need {needs}): "
                "same results, but the float32 program is likely to be faster",
                RuntimeWarning,
                stacklevel=3,
            )


class Session:
    """A program on one device. `run` may be called from several Python threads at once.

    Each concurrent call works in memory of its own; the first gets all the session's threads. A process that is
    forked while no call is running can go on using its parent's sessions.
    """

    def __init__(self, program: Program, threads: int = 0) -> None:
        from dynprune_rt import _C
        from dynprune_rt.backends.cpu.lowering import lower

        count = _thread_count(threads)
        self.program = program
        _warn_of_portable_code(program)
        self._plan = lower(program.graph, cpu_isa())
        try:
            self._executor = _C.Executor(self._plan.plan, count)
        except RuntimeError as error:  # std::system_error
            raise DeviceError(f"cannot start {count} threads ({error}); ask for fewer with threads=") from None
        self._output_dtypes = [np.dtype(_NUMPY_DTYPES[d]) for d in self._plan.output_dtypes]

    @property
    def threads(self) -> int:
        return int(self._executor.threads)

    @property
    def isa(self) -> str:
        return str(self._executor.isa)

    @property
    def activation_bytes(self) -> int:
        """Activation memory allocated so far, in bytes."""
        return int(self._executor.memory_bytes)

    def run(self, x: Any, skip: bool = True, out: Any = None) -> Any:
        """Run one batch.

        ``x``: float32 [N, C, H, W] as converted, any N >= 0; a numpy array, or a torch tensor on the
        CPU. Several inputs are a tuple. ``skip=False`` computes every channel instead (same bits, up
        to the sign of zero). ``out``: array (or tuple of arrays) of the result's shape and dtype to
        write into. Returns the output, a tuple where the program has several, of the kind that ``x`` is.

        Raises InputError when an input does not fit.
        """
        inputs, batch, as_torch = self._inputs(x)
        targets = self._outputs(batch, out)
        buffers = [
            t if t.dtype == np.float32 and t.flags.c_contiguous else np.empty(t.shape, np.float32) for t in targets
        ]
        if batch:
            self._executor.run(inputs, buffers, batch, skip)
        for target, buffer in zip(targets, buffers, strict=True):
            if target is not buffer:
                target[...] = buffer
        results = targets if out is None or not as_torch else None
        if results is None:
            return out
        if as_torch:
            torch = sys.modules["torch"]
            results = [torch.from_numpy(r) for r in results]
        return results[0] if len(results) == 1 else tuple(results)

    def profile(self, x: Any, skip: bool = True) -> Profile:
        """Run one batch and report, per layer, what was executed and how long it took.

        Live channels are means over the batch; MACs and milliseconds are sums.
        """
        inputs, batch, _ = self._inputs(x)
        if batch == 0:
            raise InputError("profile needs at least one image")
        outputs = self._outputs(batch, None)
        buffers = [np.empty(t.shape, np.float32) for t in outputs]
        self._executor.run(inputs, buffers, batch, skip)  # first touch of memory and weights
        images = self._executor.run(inputs, buffers, batch, skip, False, True)
        rows = []
        for index, layer in enumerate(self._plan.layers):
            records = [image[index] for image in images]
            has_channels = layer.total_out > 0
            rows.append(
                {
                    "name": layer.name,
                    "kernel": next((r[4] for r in records if r[4]), layer.op) or layer.op,
                    "live_in": sum(r[2] for r in records) / batch if has_channels else 0,
                    "total_in": layer.total_in,
                    "live_out": sum(r[3] for r in records) / batch if has_channels else 0,
                    "total_out": layer.total_out,
                    "macs": sum(r[1] for r in records),
                    "dense_macs": layer.dense_macs * batch,
                    "ms": sum(r[0] for r in records) / 1e6,
                }
            )
        return Profile(rows=rows, batch=batch, threads=self.threads, isa=self.isa, skip=skip)

    def live_channels(self, x: Any) -> dict[str, np.ndarray]:
        """Executed output channels per convolution and image: name -> int array [N]."""
        inputs, batch, _ = self._inputs(x)
        buffers = [np.empty(t.shape, np.float32) for t in self._outputs(batch, None)]
        images = self._executor.run(inputs, buffers, batch, True, False, True) if batch else []
        return {
            layer.name: np.array([image[index][3] for image in images], np.int64)
            for index, layer in enumerate(self._plan.layers)
            if layer.op == "conv2d"
        }

    # -- arguments --------------------------------------------------------------------------------

    def _inputs(self, x: Any) -> tuple[list[np.ndarray], int, bool]:
        given = list(x) if isinstance(x, (tuple, list)) else [x]
        shapes = self._plan.input_shapes
        if len(given) != len(shapes):
            raise InputError(f"the program takes {len(shapes)} input(s), got {len(given)}")
        as_torch = any(_is_torch(g) for g in given)
        arrays = []
        for index, (value, shape) in enumerate(zip(given, shapes, strict=True)):
            arrays.append(_checked_input(value, shape, f"input {index}" if len(given) > 1 else "the input"))
        batch = arrays[0].shape[0]
        if len(arrays) > 1 and any(a.shape[0] != batch for a in arrays):
            raise InputError(f"inputs have different batch sizes: {[a.shape[0] for a in arrays]}")
        return arrays, batch, as_torch

    def _outputs(self, batch: int, out: Any) -> list[np.ndarray]:
        expected = [(batch, *shape) for shape in self._plan.output_shapes]
        if out is None:
            return [np.empty(s, d) for s, d in zip(expected, self._output_dtypes, strict=True)]
        given = list(out) if isinstance(out, (tuple, list)) else [out]
        if len(given) != len(expected):
            raise InputError(f"the program has {len(expected)} output(s), out holds {len(given)}")
        arrays = []
        for value, shape, dtype in zip(given, expected, self._output_dtypes, strict=True):
            array = value.detach().numpy() if _is_torch(value) else value
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
                found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(value).__name__
                raise InputError(f"out must be a {dtype}{list(shape)} array, got {found}")
            if not array.flags.writeable:
                raise InputError("out is read-only")
            arrays.append(array)
        return arrays


_FLOAT32 = np.dtype(np.float32)
_NUMPY_DTYPES = {"f32": np.float32, "i64": np.int64, "bool": np.bool_}


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _checked_input(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    if (
        type(value) is np.ndarray and value.dtype is _FLOAT32 and value.shape[1:] == shape
    ):  # most calls: no text to make
        return value if value.flags.c_contiguous else np.ascontiguousarray(value)
    wanted = f"float32 [N, {', '.join(map(str, shape))}]"
    if _is_torch(value):
        if value.device.type != "cpu":
            raise InputError(f"{what} is on device {value.device}; move it to the CPU: x.cpu()")
        value = value.detach().numpy()
    if not isinstance(value, np.ndarray):
        raise InputError(f"{what} must be a numpy array or a torch tensor {wanted}, got {type(value).__name__}")
    if value.dtype != np.float32:
        raise InputError(f"{what} has dtype {value.dtype}, expected {wanted}; convert it: x.astype('float32')")
    if value.shape[1:] != tuple(shape):
        hint = "; add the batch dimension: x[None]" if value.shape == tuple(shape) else ""
        raise InputError(f"{what} has shape {list(value.shape)}, expected {wanted}{hint}")
    return np.ascontiguousarray(value)
