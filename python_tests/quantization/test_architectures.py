"""VGG-16-BN, DenseNet and SqueezeNet from torch, gated, in int8 and bf16."""

from __future__ import annotations

import numpy as np
import pytest

import dynprune_rt as dp
from dynprune_rt import models
from dynprune_rt.program import Program
from dynprune_rt.session import Session
from python_tests.backends.cpu.plan_checks import execute
from python_tests.quantization.integer_reference import check_integer_maps

#: Name, options, input size.
SMALL = {
    "vgg16_bn": ({"width": 0.25}, 32),
    "densenet121": ({"growth": 6, "depths": (2, 2, 2)}, 65),
    "squeezenet1_1": ({"width": 0.25}, 65),
}


@pytest.fixture(scope="module", params=SMALL)
def program(request):
    options, size = SMALL[request.param]
    model = models.create(request.param, "random", input_size=size, share=0.5, **options)
    return dp.convert(model, models.synthetic_images(2, size))


def batch(program: Program, seed: int) -> np.ndarray:
    size = program.graph.inputs[0].type.shape[2]
    return models.synthetic_images(3, size, seed=seed).numpy()


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_networks_run_narrow_with_the_same_bits_in_every_mode(program, dtype):
    x = batch(program, 3)
    narrow = dp.quantize(program, [batch(program, 1)] if dtype == "int8" else (), dtype)
    kinds = [row["kind"] for row in narrow.report["quantization"]["layers"]]
    assert kinds.count(dtype) >= 0.9 * len(kinds)
    concatenations = [node for node in narrow.graph.nodes if node.op == "cat" and node.output.type.is_map]
    assert all(node.output.type.dtype != "f32" for node in concatenations[1:])
    if dtype == "int8":
        # The outputs of a network with random gates are no measure: a score near its threshold decides on channels.
        assert max(row["error"] for row in narrow.report["quantization"]["layers"]) < 0.25
        check_integer_maps(narrow.graph, x[:2])
    one, two = Session(narrow, threads=1), Session(narrow, threads=2)
    want = execute(one, [x])[0]
    assert np.isfinite(want).all()
    for got in (execute(one, [x], skip=False), execute(one, [x], poison=True), execute(two, [x])):
        np.testing.assert_array_equal(got[0], want)
    np.testing.assert_array_equal(np.concatenate([two.run(x[i : i + 1]) for i in range(3)]), want)
