"""Every step of converted networks on its own, its operands taken from the reference interpreter.

A network as a whole cannot be compared exactly: in fp16 a gate near its threshold may fall on the other side.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dynprune_rt.backends.cuda.execution import Execution
from dynprune_rt.backends.cuda.lowering import CudaPlan, DeviceConstants, Step
from dynprune_rt.backends.cuda.maps import BY_INPUT, BY_OUTPUT, TWO_SIDED
from dynprune_rt.backends.cuda.modes import unmeasured
from dynprune_rt.backends.cuda.native_kernels import NativeKernels
from dynprune_rt.errors import DeviceError
from dynprune_rt.ir import interpreter
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Value
from dynprune_rt.ir.types import BATCH, TensorType
from python_tests.backends.cuda.networks import images, network

#: name, gate, image size, kernels that the plan must use.
NETWORKS = [
    ("cifar_resnet20", "laudnet", 12, {"conv_gemm_by_output", "conv_gemm_by_input", "conv_gemm_dense", "linear"}),
    ("cifar_resnet20", "fbs", 12, {"conv_gemm_two_sided", "sort"}),
    ("resnet50", "laudnet", 32, {"conv_gemm_two_sided", "conv_gemm_by_output", "conv_gemm_by_input", "pool2d"}),
    ("mobilenet_v2", "batch_shaping", 32, {"conv_direct"}),
    ("squeezenet1_1", "fbs", 32, {"pool2d", "torch"}),
    pytest.param("cifar_densenet40", "laudnet", 8, {"torch"}, marks=pytest.mark.full),
]

#: Of the largest value: operands and results are rounded to this precision.
TOLERANCE = {"fp16": 4e-3, "bf16": 3e-2}


def run_step(step: Step, plan: CudaPlan, traced: dict[str, np.ndarray], batch: int) -> dict[str, torch.Tensor]:
    """The outputs of one step for the reference's operands, as plain tensors."""
    choices = plan.choices
    state = Execution(plan.kernels, plan.constants, batch, choices.skip, choices.packed)
    operands: list[Value] = [v for v in step.node.operands() if v not in plan.constants]
    for value in sorted(operands, key=lambda v: v.type.dtype != "bool"):  # masks first: maps are packed by them
        if not plan.graph.is_constant(value):
            state.store(value, torch.from_numpy(traced[value.name]))
    step.run(state)
    return {v.name: state.plain(v) for v in step.node.outputs}


def live_channels(value: Value, traced: dict[str, np.ndarray], skip: bool) -> np.ndarray:
    """Where a value is defined, in a shape that broadcasts against it."""
    if value.live is None or not skip:
        return np.ones((), bool)
    mask = traced[value.live.name]
    return mask.reshape(*mask.shape, *[1] * (value.type.rank - 2))


@pytest.mark.parametrize(("name", "gate", "size", "expected_kernels"), NETWORKS)
def test_every_step(emulated: ModuleType, name: str, gate: str, size: int, expected_kernels: set[str]) -> None:
    check_steps(emulated, name, gate, size, expected_kernels)


def test_every_step_without_skipping(emulated: ModuleType) -> None:
    check_steps(emulated, "cifar_resnet20", "fbs", 12, {"conv_gemm_dense"}, skip=False)


def test_every_step_in_bf16(emulated: ModuleType) -> None:
    check_steps(emulated, "cifar_resnet20", "fbs", 12, {"conv_gemm_two_sided"}, precision="bf16")


def check_steps(
    emulated: ModuleType,
    name: str,
    gate: str,
    size: int,
    expected_kernels: set[str],
    skip: bool = True,
    precision: str = "fp16",
) -> None:
    graph = network(name, gate, size).graph
    kernels = NativeKernels(emulated, torch.device("cpu"), precision)
    plan = CudaPlan(graph, kernels, unmeasured(graph, skip), DeviceConstants(graph, kernels))
    assert expected_kernels <= {step.kernel(2) for step in plan.steps}
    x = images(2, size)
    traced = interpreter.trace(graph, {graph.inputs[0].name: x})
    for step in plan.steps:
        for result_name, tensor in run_step(step, plan, traced, len(x)).items():
            value = next(v for v in step.node.outputs if v.name == result_name)
            defined = live_channels(value, traced, skip)
            expected = np.where(defined, traced[result_name], 0)
            actual = np.where(defined, tensor.numpy(), 0)
            if value.type.dtype != "f32":
                np.testing.assert_array_equal(actual, expected, err_msg=step.node.name)
                continue
            scale = max(float(np.abs(expected).max()), 1e-3)
            error = float(np.abs(actual - expected).max()) / scale
            assert error < TOLERANCE[precision], f"{step.node.name} ({step.kernel(2)}): {error}"


def test_weights_are_shared_between_plans(emulated: ModuleType) -> None:
    graph = network("cifar_resnet20", "laudnet", 12).graph
    kernels = NativeKernels(emulated, torch.device("cpu"), "fp16")
    constants = DeviceConstants(graph, kernels)
    weight = next(n.inputs[1] for n in graph.nodes if n.op == "conv2d")
    assert weight is not None
    assert constants.weights(weight, BY_INPUT) is constants.weights(weight, TWO_SIDED)
    assert constants.weights(weight, BY_OUTPUT) is not constants.weights(weight, BY_INPUT)


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        (
            "quantize",
            {"scale": 0.1, "dtype": "u8"},
            r"no kernel for operator quantize .*int8 program runs on the CPU",
        ),
        ("cast", {"dtype": "bf16"}, r"works on bf16 values.*load the float program with precision='bf16'"),
    ],
)
def test_low_precision_programs_of_the_cpu_are_refused(
    emulated: ModuleType, op: str, attrs: dict[str, Any], message: str
) -> None:
    builder = Builder(fold=False)
    x = builder.graph.add_input("x", TensorType("f32", (BATCH, 4, 3, 3)))
    builder.graph.outputs.append(builder.op(op, x, **attrs))
    kernels = NativeKernels(emulated, torch.device("cpu"), "fp16")
    with pytest.raises(DeviceError, match=message):
        CudaPlan(builder.graph, kernels, unmeasured(builder.graph, True), DeviceConstants(builder.graph, kernels))
