"""Mixed bit widths end to end: the criteria, quantize with a budget, and the packed artifact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynprune_rt.errors import QuantizationError
from dynprune_rt.ir.interpreter import run
from dynprune_rt.methods import discriminant
from dynprune_rt.program import Program, weight_bytes, weight_widths
from dynprune_rt.quantization import quantize
from dynprune_rt.quantization.channel_damage import damage, discriminant_scores
from dynprune_rt.quantization.scales import quantize_weights
from dynprune_rt.session import Session
from python_tests.quantization.networks import gated_resnet, images, inverted_residuals

CASES = {
    "gated resnet": lambda: gated_resnet(3, valued=True),
    "inverted residuals": lambda: inverted_residuals(2),
}


@pytest.fixture(scope="module", params=CASES)
def program(request):
    return Program(CASES[request.param]())


@pytest.fixture(scope="module")
def batch(program):
    return images(8, program.graph)


def convolutions(program: Program) -> list:
    return [node for node in program.graph.nodes if node.op == "conv2d"]


@pytest.mark.parametrize("criterion", ["sensitivity", "information"])
def test_a_budget_is_kept_and_the_packed_file_gives_the_same_bits(program, batch, criterion, tmp_path):
    labels = [np.arange(len(batch)) % 3]
    quantized = quantize(program, [batch], labels=labels, weight_bits=4.5, bits_by=criterion, max_layer_error=9)
    summary = quantized.report["quantization"]["weights"]
    assert 3.9 < summary["mean_bits"] <= 4.5 and summary["bits_by"] == criterion
    assert sum(summary[f"share_{bits}"] > 0 for bits in (2, 4, 8)) > 1
    path = tmp_path / "packed.dpr"
    quantized.save(path)
    loaded = Program.load(path)
    for name, array in quantized.graph.constants.items():
        np.testing.assert_array_equal(loaded.graph.constants[name], array)
        assert not loaded.graph.constants[name].flags.writeable
    expected = run(quantized.graph, {"x": batch[:3]})[0]
    for skip in (True, False):
        ours = Session(loaded, threads=1).run(batch[:3], skip=skip)
        np.testing.assert_array_equal(ours, Session(quantized, threads=1).run(batch[:3]))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    size = sum(weight_bytes(loaded.graph, n) for n in loaded.graph.nodes if n.op == "quantized_conv2d")
    assert size <= summary["bytes"]
    tensors = path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
    others = [array.nbytes for array in loaded.graph.constants.values() if array.dtype != np.int8]
    assert tensors == size + sum(others)


def test_sensitivity_is_the_change_of_the_output(program, batch):
    """Against the program with the weights of one channel replaced in its constants."""
    for node in (convolutions(program)[1], convolutions(program)[-2]):
        table = damage(program.graph, [node], "sensitivity", batch[:3], None)[node.name]
        weight = node.inputs[1].name
        exact = program.graph.constants[weight]
        before = Session(program, threads=1).run(batch[:3])
        integers, scales = quantize_weights(exact, node.name, np.full(len(exact), 2, np.uint8))
        channel = int(table[:, 0].argmax())
        changed = exact.copy()
        changed[channel] = integers[channel] * np.float32(scales[channel])
        program.graph.constants[weight] = changed
        after = Session(program, threads=1).run(batch[:3])
        program.graph.constants[weight] = exact
        np.testing.assert_allclose(table[channel, 0], np.square(after - before, dtype=np.float64).sum(), rtol=1e-3)


def test_information_agrees_with_the_torch_criterion():
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 6, 3, 3)).astype(np.float32)
    labels = random.integers(0, 4, 40)
    expected = discriminant.discriminant_scores(torch.from_numpy(features), torch.from_numpy(labels), 4)
    np.testing.assert_allclose(discriminant_scores(features, np.eye(4)[labels]), expected.numpy(), rtol=1e-6)


def test_widths_can_be_given_and_narrow_rows_keep_their_mean(program, batch):
    node = convolutions(program)[0]
    channels = node.output.type.channels
    widths = [(8, 4, 2)[k % 3] for k in range(channels)]
    quantized = quantize(program, [batch], weight_bits={node.name: widths}, max_layer_error=9)
    rounded = next(n for n in quantized.graph.nodes if n.name == node.name and n.op == "quantized_conv2d")
    counts = weight_widths(quantized.graph, rounded)
    assert counts[8] == len(widths[::3]) and counts[4] + counts[2] == channels - counts[8]
    row = next(r for r in quantized.report["quantization"]["layers"] if r["name"] == node.name)
    assert row["bits"] == {str(bits): widths.count(bits) for bits in (2, 4, 8)}


def test_narrow_weights_cost_accuracy(program, batch):
    names = [node.name for node in convolutions(program)]
    reports = [
        quantize(program, [batch], weight_bits=dict.fromkeys(names, bits), max_layer_error=9).report["quantization"]
        for bits in (2, 4)
    ]
    assert reports[0]["output_error"] > 2 * reports[1]["output_error"]
    assert [report["weights"]["mean_bits"] for report in reports] == [2, 4]


def test_bad_requests_are_refused():
    program = Program(gated_resnet(3))
    batch = images(4, program.graph)
    for wrong, message in (
        ({"weight_bits": 9.0}, "from 2 to 8"),
        ({"weight_bits": 4.0, "weight_bytes": 1000}, "two ways"),
        ({"weight_bytes": 10}, "too few"),
        ({"weight_bits": 4.0, "bits_by": "luck"}, "luck"),
        ({"weight_bits": 4.0, "bits_by": "information"}, "need labels"),
        ({"weight_bits": 4.0, "bits_by": "information", "labels": [np.zeros(3, np.int64)]}, "3 labels"),
        ({"weight_bits": 4.0, "bits_by": "information", "labels": [np.zeros(4, np.int64)]}, "two classes"),
        ({"weight_bits": {"nothing": 4}}, "nothing"),
        ({"weight_bits": 4.0, "dtype": "bf16"}, "for int8"),
    ):
        with pytest.raises(QuantizationError, match=message):
            quantize(program, [batch], **wrong)
