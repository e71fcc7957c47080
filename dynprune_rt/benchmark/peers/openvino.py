"""OpenVINO on the CPU, fp32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynprune_rt.benchmark.peers.interface import DenseNetwork, not_installed
from dynprune_rt.benchmark.timing import Runner


class OpenVINO:
    """Latency hint, one stream, fp32 execution (on CPUs with bf16 units the default would not be fp32)."""

    name = "openvino"
    settings = "latency hint, f32, one stream"

    def missing(self, network: DenseNetwork) -> str | None:
        return not_installed("openvino") or (None if network.onnx else "no ONNX model given")

    def prepare(self, network: DenseNetwork, inputs: Sequence[np.ndarray], threads: int) -> Runner:
        import openvino

        core = openvino.Core()
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        compiled = core.compile_model(core.read_model(network.onnx), "CPU", config)
        if compiled.get_property("INFERENCE_NUM_THREADS") != threads:
            raise RuntimeError(f"OpenVINO refused {threads} threads")
        request = compiled.create_infer_request()
        tensors = [openvino.Tensor(x, shared_memory=True) for x in inputs]
        output = request.get_output_tensor(0)

        def run(i: int) -> np.ndarray:
            request.set_input_tensor(tensors[i])
            request.infer()
            result: np.ndarray = output.data
            return result

        return run
