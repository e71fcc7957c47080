"""OpenVINO on the CPU: fp32, bf16, and int8 as NNCF quantizes."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynprune_rt.benchmark.peers.interface import DenseNetwork, not_installed
from dynprune_rt.benchmark.timing import Runner


class OpenVINO:
    """Latency hint, one stream. ``dtype``: "f32" (stated, for on CPUs with bf16 units it is not the default), "bf16" or
    "int8"; what stays in floats of an int8 network runs in f32.
    """

    def __init__(self, dtype: str = "f32") -> None:
        self.name = "openvino" if dtype == "f32" else f"openvino-{dtype}"
        self.settings = f"latency hint, {dtype}{' (NNCF)' if dtype == 'int8' else ''}, one stream"
        self._dtype = dtype

    def missing(self, network: DenseNetwork) -> str | None:
        packages = ("openvino", "nncf") if self._dtype == "int8" else ("openvino",)
        absent = next((reason for reason in map(not_installed, packages) if reason), None)
        return absent or (None if network.onnx else "no ONNX model given")

    def prepare(self, network: DenseNetwork, inputs: Sequence[np.ndarray], threads: int) -> Runner:
        assert network.onnx is not None
        model = int8_model(network.onnx, inputs) if self._dtype == "int8" else network.onnx
        return compiled(model, self._dtype, inputs, threads)


def compiled(model: Any, dtype: str, inputs: Sequence[np.ndarray], threads: int) -> Runner:
    """A runner of a model: the bytes of an ONNX file, the path of a model, or one in memory."""
    import openvino

    core = openvino.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    if not isinstance(model, openvino.Model):
        model = core.read_model(model)
    network = core.compile_model(model, "CPU", config)
    if network.get_property("INFERENCE_NUM_THREADS") != threads:
        raise RuntimeError(f"OpenVINO refused {threads} threads")
    if dtype == "bf16" and network.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        raise RuntimeError("OpenVINO does not run bf16 on this CPU")
    request = network.create_infer_request()
    tensors = [openvino.Tensor(x, shared_memory=True) for x in inputs]
    output = request.get_output_tensor(0)

    def run(i: int) -> np.ndarray:
        request.set_input_tensor(tensors[i])
        request.infer()
        result: np.ndarray = output.data
        return result

    return run


def int8_model(onnx: bytes, calibration: Sequence[np.ndarray]) -> Any:
    """Post-training quantization of an ONNX file with NNCF's defaults."""
    import nncf
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        return nncf.quantize(openvino.Core().read_model(onnx), nncf.Dataset(list(calibration)))
