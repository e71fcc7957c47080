"""int8 convolutions as Winograd: the bits of the plain integer reference, whichever kernel an image gets."""

from __future__ import annotations

import numpy as np
import pytest

import dynprune_rt as dp
from dynprune_rt.ir.graph import Graph
from dynprune_rt.program import Program
from dynprune_rt.quantization import quantize
from dynprune_rt.session import Session
from python_tests.backends.cpu.plan_checks import execute
from python_tests.quantization.integer_reference import check_integer_maps
from python_tests.quantization.networks import Network, gated_resnet, images

WINOGRAD = "int8 winograd F(4x4)" if "avx512_vnni" in dp.available_isas() else "int8 direct"


def kernels(program: Program, x: np.ndarray, *, skip: bool = True) -> dict[str, str]:
    return {row["name"]: row["kernel"] for row in Session(program, threads=1).profile(x, skip=skip).rows}


@pytest.fixture(scope="module")
def quantized() -> Program:
    """Layers that are large enough, with a residual stream and with gates that leave some images too little of them."""
    graph = gated_resnet(3, width=64, size=(28, 26))
    return quantize(Program(graph), [images(2, graph)])


def test_every_integer_map_has_the_bits_of_the_reference(quantized):
    check_integer_maps(quantized.graph, images(1, quantized.graph, seed=4))


def test_skipping_threads_and_batches_leave_the_bits(quantized):
    x = images(4, quantized.graph, seed=5)
    one, two = Session(quantized, threads=1), Session(quantized, threads=2)
    want = execute(one, [x])
    for got in (
        execute(one, [x], skip=False),
        execute(one, [x], poison=True),
        execute(two, [x]),
        [np.concatenate(parts) for parts in zip(*(execute(two, [x[i : i + 1]]) for i in range(4)), strict=True)],
    ):
        np.testing.assert_array_equal(got[0], want[0])


def test_the_kernel_follows_the_live_channels_of_an_image(quantized):
    x = images(1, quantized.graph, seed=5)
    names, live = kernels(quantized, x, skip=False), kernels(quantized, x)
    assert names["layer0.0.conv1"] == names["layer0.1.conv2"] == WINOGRAD
    assert names["stem"] == names["layer1.0.conv1"] == "int8 direct"  # windows of rows; stride 2
    assert live["layer0.0.conv2"] == "int8 direct"


def one_weight(channels: int) -> Graph:
    """A convolution whose weights all are 127 once they are quantized, of a map of so many channels."""
    net = Network(8, size=(24, 24))
    x = net.relu(net.conv(net.x, channels, "stem", kernel=1))
    weight = net.builder.constant("weight", np.full((64, channels, 3, 3), 0.01, np.float32))
    y = net.builder.op("conv2d", x, weight, net.bias(64), name="even", padding=(1, 1, 1, 1))
    return net.finish(net.relu(y))


@pytest.mark.parametrize(("channels", "kernel"), [(115, WINOGRAD), (116, "int8 direct")])
def test_a_layer_whose_sums_may_be_too_large_keeps_the_direct_kernel(channels, kernel):
    program = quantize(Program(graph := one_weight(channels)), [images(2, graph)])
    x = images(1, graph, seed=6)
    assert kernels(program, x)["even"] == kernel
    check_integer_maps(program.graph, x)
