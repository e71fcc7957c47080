"""ONNX Runtime with its CPU execution provider, fp32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynprune_rt.benchmark.peers.interface import DenseNetwork, not_installed
from dynprune_rt.benchmark.timing import Runner


class OnnxRuntime:
    """All graph optimisations, sequential execution."""

    name = "onnxruntime"
    settings = "all optimisations, sequential"

    def missing(self, network: DenseNetwork) -> str | None:
        return not_installed("onnxruntime") or (None if network.onnx else "no ONNX model given")

    def prepare(self, network: DenseNetwork, inputs: Sequence[np.ndarray], threads: int) -> Runner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(network.onnx, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        feeds = [{name: x} for x in inputs]

        def run(i: int) -> np.ndarray:
            result: np.ndarray = session.run(None, feeds[i])[0]
            return result

        return run
