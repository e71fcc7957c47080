"""bf16 convolutions that run as Winograd: where they do, and that no way to execute a network changes its bits."""

from __future__ import annotations

import numpy as np
import pytest

from dynprune_rt import _C
from dynprune_rt.ir.graph import Graph
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.program import Program
from dynprune_rt.quantization import quantize
from dynprune_rt.session import Session
from python_tests.backends.cpu.plan_checks import check_plan
from python_tests.quantization.networks import Network, gated_resnet, images

HAS_WINOGRAD = _C.bf16_kernels() == "bf16"
KERNEL = "bf16 winograd F(4x4)"


def kernels(session: Session, inputs: list[np.ndarray]) -> dict[str, str]:
    """The kernel that each layer of a profiled run took."""
    return {row["name"]: row["kernel"] for row in session.profile(tuple(inputs)).rows if row["kernel"]}


def residual_blocks(channels: int, size: int, blocks: int = 3) -> Graph:
    """Residual blocks whose gates, two per block, are inputs of the graph."""
    net = Network(3, size=(size, size))
    x = net.relu(net.conv(net.x, channels, "stem"))
    for block in range(blocks):
        gates = [
            net.builder.graph.add_input(f"gate{block}.{i}", TensorType("f32", (BATCH, channels, 1, 1)))
            for i in range(2)
        ]
        y = net.mul(net.relu(net.conv(x, channels, f"block{block}.conv1")), gates[0])
        z = net.mul(net.conv(y, channels, f"block{block}.conv2"), gates[1])
        x = net.relu(net.add(z, x))
    return net.finish(x)


@pytest.mark.parametrize(("channels", "size"), [(16, 32), (33, 16)])
def test_kept_inputs_outlive_nothing(channels, size):
    """A block goes on from the transformed input of the one before, unless that took the direct kernel."""
    graph = quantize(Program(residual_blocks(channels, size)), dtype="bf16").graph
    batch, gates = 12, len(graph.inputs) - 1
    random = np.random.default_rng(5)
    share = random.choice([0.0, 0.1, 0.5, 1.0], size=(gates, batch, 1, 1, 1))
    live = [(random.random((batch, channels, 1, 1)) < share[i]).astype(np.float32) for i in range(gates)]
    inputs = [images(batch, graph), *live]
    check_plan(graph, inputs, tolerance=0.02)
    session, used = Session(Program(graph), threads=1), set()
    for image in range(batch):
        used |= set(kernels(session, [x[image : image + 1] for x in inputs]).values())
    assert (KERNEL in used) == HAS_WINOGRAD and "bf16 direct" in used


@pytest.mark.parametrize("valued", [False, True])
def test_skipping_threads_batches_and_poison_leave_the_bits(valued):
    """Packed maps of any live channels, and residual streams, that threads share in rows or in channels."""
    graph = quantize(Program(gated_resnet(5, width=48, size=(28, 30), valued=valued)), dtype="bf16").graph
    x = images(3, graph)
    check_plan(graph, [x], tolerance=0.02)
    used = kernels(Session(Program(graph), threads=1), [x[:1]])
    assert (used["layer0.0.conv1"] == KERNEL) == HAS_WINOGRAD


def test_small_maps_and_strides_stay_direct():
    net = Network(4, size=(32, 32))
    x = net.relu(net.conv(net.x, 32, "stem"))
    x = net.relu(net.conv(x, 32, "large"))
    x = net.relu(net.conv(x, 32, "strided", stride=2))
    x = net.relu(net.conv(x, 32, "grouped", groups=4))
    x = net.relu(net.conv(net.relu(net.conv(x, 64, "small.down", stride=2)), 64, "small"))
    graph = quantize(Program(net.finish(x)), dtype="bf16").graph
    used = kernels(Session(Program(graph), threads=1), [images(1, graph)])
    assert [name for name, kernel in used.items() if kernel == KERNEL] == (["large"] if HAS_WINOGRAD else [])
