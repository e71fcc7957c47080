"""Quantized programs: bits equal to the integer reference in every mode, values near the float program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import dynprune_rt as dp
from dynprune_rt.ir import interpreter
from dynprune_rt.ir.graph import Graph, Value
from dynprune_rt.program import Program
from dynprune_rt.quantization import quantize
from dynprune_rt.session import Session
from python_tests.backends.cpu.plan_checks import execute
from python_tests.quantization.integer_reference import check_integer_maps
from python_tests.quantization.networks import (
    Network,
    dense_block,
    fire_modules,
    gated_resnet,
    grouped_blocks,
    images,
    inverted_residuals,
    norm_gated,
)


def plain_with_pool() -> Graph:
    net = Network(3, size=(17, 15))
    x = net.relu(net.conv(net.x, 10, "stem", kernel=7, stride=2))
    x = net.builder.op("max_pool2d", x, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    y = net.relu(net.conv(x, 12, "a"))
    return net.finish(net.relu(net.conv(y, 12, "b")))


def pre_activation() -> Graph:
    """Signed residual stream that several layers read."""
    net = Network(4)
    x = net.conv(net.x, 9, "stem")
    for block in range(2):
        y = net.conv(net.relu(x), 9, f"{block}.conv1")
        gate = net.gate(net.relu(x), 9)
        y = net.conv(net.mul(net.relu(y), gate), 9, f"{block}.conv2")
        x = net.add(x, y)
    return net.finish(net.relu(x))


def map_output() -> Graph:
    net = Network(5)
    x = net.relu(net.conv(net.x, 7, "stem"))
    y = net.mul(net.relu(net.conv(x, 5, "head")), net.gate(x, 5))
    return net.close(y, net.builder.op("spatial_reduce", y, kind="l2"))


def shifted_and_padded() -> Graph:
    """Gated batch norms (a shift per image), and a shortcut of strided slices and zero channels."""
    net = Network(6, size=(10, 14))
    op = net.builder.op
    x = net.relu(net.conv(net.x, 8, "stem"))
    gate = net.gate(x, 12)
    y = net.mul(net.relu(net.conv(x, 12, "conv1", stride=2)), gate)
    scale, shift = net.bias(12), net.bias(12)
    second = net.gate(y, 12)
    z = net.mul(op("affine", net.conv(y, 12, "conv2"), scale, shift), second)
    rows = op("slice", x, dim=2, start=0, stop=10, step=2)
    columns = op("slice", rows, dim=3, start=0, stop=14, step=2)
    shortcut = op("pad", columns, low=(0, 2, 0, 0), high=(0, 2, 0, 0), value=0.0)
    y = net.relu(net.add(z, shortcut))
    third = net.mul(net.conv(y, 12, "conv3"), net.gate(y, 12, valued=True))
    shifted = op("add", third, op("reshape", op("mul", second_vector(op, second), net.bias(12)), shape=(-1, 12, 1, 1)))
    return net.finish(net.relu(net.add(shifted, y)))


def second_vector(op: Callable[..., Value], gate: Value) -> Value:
    vector: Value = op("reshape", gate, shape=(-1, gate.type.channels))
    return vector


def strided_pointwise() -> Graph:
    """1x1 convolutions with stride 2: one alone with its map, one whose map a 3x3 convolution reads as well."""
    net = Network(13, size=(11, 13))
    x = net.relu(net.conv(net.x, 9, "stem"))
    y = net.mul(net.relu(net.conv(x, 10, "a", kernel=1, stride=2)), net.gate(x, 10))
    z = net.relu(net.conv(net.relu(net.conv(y, 6, "b", kernel=3, stride=2)), 7, "c", kernel=1))
    return net.finish(net.add(z, net.conv(y, 7, "shortcut", kernel=1, stride=2)))


GRAPHS = {
    "gated": gated_resnet,
    "valued gates": lambda: gated_resnet(1, valued=True, size=(14, 9)),
    "wide": lambda: gated_resnet(2, width=33, size=(7, 7)),
    "inverted residuals": inverted_residuals,
    "inverted residuals with valued gates": lambda: inverted_residuals(2, valued=True),
    "ungated inverted residuals": lambda: inverted_residuals(1, gated=False),
    "pooling": plain_with_pool,
    "pre-activation": pre_activation,
    "map output": map_output,
    "gates of norms": norm_gated,
    "shifts and padded shortcut": shifted_and_padded,
    "fire modules": fire_modules,
    "ungated fire modules": lambda: fire_modules(1, gated=False),
    "dense block": dense_block,
    "grouped": lambda: grouped_blocks(2),
    "strided 1x1": strided_pointwise,
    "ungated groups": lambda: grouped_blocks(1, gated=False),
}


@pytest.fixture(scope="module", params=sorted(GRAPHS))
def pair(request):
    """A float program and its quantized form."""
    program = Program(GRAPHS[request.param]())
    return program, quantize(program, [images(8, program.graph)])


def test_the_runtime_gives_the_bits_of_the_reference(pair):
    _, quantized = pair
    x = images(3, quantized.graph, seed=7)
    name = quantized.graph.inputs[0].name
    session = Session(quantized, threads=1)
    for skip in (True, False):
        for got, want in zip(
            execute(session, [x], skip=skip), interpreter.run(quantized.graph, {name: x}), strict=True
        ):
            # Linear layers and other float operators round differently; what they read is bit for bit the same.
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1.0, float(np.abs(want).max())))


def test_every_integer_map_has_the_bits_of_the_reference(pair):
    _, quantized = pair
    check_integer_maps(quantized.graph, images(2, quantized.graph, seed=9))


def test_skipping_threads_batches_and_poison_leave_the_bits(pair):
    _, quantized = pair
    x = images(5, quantized.graph, seed=3)
    one, two = Session(quantized, threads=1), Session(quantized, threads=2)
    want = execute(one, [x])
    for got in (
        execute(one, [x], skip=False),
        execute(one, [x], poison=True),
        execute(two, [x]),
        [np.concatenate(parts) for parts in zip(*(execute(two, [x[i : i + 1]]) for i in range(5)), strict=True)],
    ):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_literal_skipping_of_the_reference_changes_nothing(pair):
    _, quantized = pair
    x = images(3, quantized.graph, seed=11)
    name = quantized.graph.inputs[0].name
    plain = interpreter.run(quantized.graph, {name: x})
    literal = interpreter.run(quantized.graph, {name: x}, honour_live=True)
    for a, b in zip(plain, literal, strict=True):
        np.testing.assert_array_equal(a, b)


def test_values_are_near_the_float_program(pair):
    program, quantized = pair
    x = images(8, program.graph)
    exact, rounded = (Session(p, threads=1).run(x) for p in (program, quantized))
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (exact, rounded)), strict=True):
        if a.dtype == np.float32:
            assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a)


def test_the_artifact_keeps_a_quantized_program(pair, tmp_path):
    _, quantized = pair
    path = tmp_path / "q.dpr"
    quantized.save(path)
    loaded = Program.load(path)
    x = images(2, quantized.graph)
    for a, b in zip(execute(Session(quantized, threads=1), [x]), execute(Session(loaded, threads=1), [x]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.report["quantization"] == quantized.report["quantization"]


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16"])
def test_every_isa_computes_the_same_integer_maps(isa, tmp_path):
    if isa not in dp.available_isas():
        pytest.skip(f"this CPU lacks {isa}")
    graph = map_output()
    quantized = quantize(Program(graph), [images(8, graph)])
    graph = quantized.graph
    graph.outputs = graph.outputs[:1]  # the dequantized map: no float arithmetic but one product
    quantized.save(tmp_path / "q.dpr")
    x = images(2, graph)
    np.save(tmp_path / "x.npy", x)
    code = (
        f"import numpy as np, dynprune_rt as dp; s = dp.load({str(tmp_path / 'q.dpr')!r}, threads=1);"
        f"np.save({str(tmp_path / 'y.npy')!r}, s.run(np.load({str(tmp_path / 'x.npy')!r})))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "DYNPRUNE_RT_ISA": isa})
    want = interpreter.run(graph, {graph.inputs[0].name: x})[0]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want)


def test_a_session_says_when_int8_runs_in_portable_code(tmp_path):
    graph = plain_with_pool()
    quantize(Program(graph), [images(2, graph)]).save(tmp_path / "q.dpr")
    code = f"import dynprune_rt as dp; dp.load({str(tmp_path / 'q.dpr')!r}); dp.load({str(tmp_path / 'q.dpr')!r})"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "DYNPRUNE_RT_ISA": "generic"}, capture_output=True, text=True
    )
    assert result.returncode == 0 and result.stderr.count("portable") == 1, result.stderr


def test_executed_macs_are_live_in_times_live_out():
    graph = gated_resnet(6)
    quantized = quantize(Program(graph), [images(8, graph)])
    x = images(4, graph, seed=2)
    exact, rounded = (
        {r["name"]: r for r in Session(p, threads=1).profile(x).rows if r["total_out"]}
        for p in (Program(graph), quantized)
    )
    assert exact.keys() == rounded.keys()
    # Gates are decided from pooled sums of quantized maps: a decision near its threshold may differ.
    for name, row in rounded.items():
        assert row["dense_macs"] == exact[name]["dense_macs"]
        assert abs(row["macs"] - exact[name]["macs"]) <= 0.25 * row["dense_macs"]
    assert sum(r["macs"] for r in rounded.values()) < 0.8 * sum(r["dense_macs"] for r in rounded.values())


def test_one_scale_per_residual_stream():
    graph = gated_resnet()
    report = quantize(Program(graph), [images(8, graph)]).report["quantization"]
    rows = {row["name"]: row for row in report["layers"]}
    assert (
        rows["stem"]["output_scale"] == rows["layer0.0.conv2"]["output_scale"] == rows["layer0.1.conv2"]["output_scale"]
    )
    assert rows["layer1.0.conv2"]["output_scale"] == rows["layer1.1.conv2"]["output_scale"]
    assert rows["layer1.0.shortcut"]["output"] == "s8" and rows["stem"]["output"] == "u8"


def test_norm_gates_leave_maps_as_integers():
    graph = norm_gated()
    quantized = quantize(Program(graph), [images(4, graph)]).graph
    kinds = [n.attrs["kind"] for n in quantized.nodes if n.op == "quantized_spatial_reduce"]
    assert kinds[:3] == ["l2", "sum_squares", "mean"]
    assert [n.op for n in quantized.nodes if n.op in ("quantize", "dequantize")] == ["quantize"]


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_methods(method):
    graph = plain_with_pool()
    report = quantize(Program(graph), [images(16, graph)], method=method).report["quantization"]
    assert report["method"] == method and report["output_error"] < 0.1


def test_layers_are_kept_by_name_and_by_error():
    graph = gated_resnet(9)
    program = Program(graph)
    batches = [images(8, graph)]
    report = quantize(program, batches, keep=["layer1.0.*"]).report["quantization"]
    kept = {row["name"] for row in report["layers"] if row["kind"] == "float32"}
    assert kept == {"layer1.0.conv1", "layer1.0.conv2", "layer1.0.shortcut"}
    report = quantize(program, batches, max_layer_error=0.0).report["quantization"]
    assert {row["kind"] for row in report["layers"]} == {"float32"}
    assert all("error" in row["why"] for row in report["layers"])
    assert report["output_error"] == 0


def test_accuracy_is_reported_for_labels():
    graph = gated_resnet(10)
    program = Program(graph)
    x = images(8, graph)
    labels = Session(program, threads=1).run(x).argmax(1)
    report = quantize(program, [x], labels=[labels]).report["quantization"]
    assert report["accuracy_float32"] == 1.0
    assert report["accuracy_int8"] == report["same_largest_output"]


def test_zero_weights_and_constant_maps():
    net = Network(12)
    x = net.relu(net.conv(net.x, 5, "stem"))
    graph = net.finish(net.relu(net.conv(x, 6, "dead")))
    weight, bias = (next(n for n in graph.nodes if n.name == "dead").inputs[i] for i in (1, 2))
    graph.constants[weight.name] = np.zeros_like(graph.constants[weight.name])
    graph.constants[bias.name] = np.full(6, -1.0, np.float32)  # the rectified map is zero throughout
    program = Program(graph)
    quantized = quantize(program, [images(4, graph)])
    x_test = images(4, graph, seed=5)
    np.testing.assert_allclose(Session(quantized).run(x_test), Session(program).run(x_test), atol=1e-5)


def test_bad_calibration_data_is_refused():
    graph = gated_resnet(13)
    program = Program(graph)
    good = images(4, graph)
    with pytest.raises(dp.InputError, match="calibration batch 1"):
        quantize(program, [good, good[:, :2]])
    bad = good.copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(dp.QuantizationError, match="not finite"):
        quantize(program, [bad])
    with pytest.raises(dp.QuantizationError, match="at least one"):
        quantize(program, [])
    with pytest.raises(dp.QuantizationError, match=r"layer|float32"):
        quantize(program, [good * np.float32(1e37)])
    with pytest.raises(dp.QuantizationError, match="int8"):
        quantize(program, [good], dtype="int4")
    with pytest.raises(dp.QuantizationError, match="minmax"):
        quantize(program, [good], method="entropy")
    with pytest.raises(dp.QuantizationError, match="stem"):
        quantize(program, [good], keep=["layer9*"])
    with pytest.raises(dp.QuantizationError, match="quantized already"):
        quantize(quantize(program, [good]), [good])


def test_weights_that_are_not_finite_are_refused():
    net = Network(14)
    graph = net.finish(net.relu(net.conv(net.x, 5, "broken")))
    weight = next(n for n in graph.nodes if n.name == "broken").inputs[1]
    array = graph.constants[weight.name].copy()
    array[2, 0, 0, 0] = np.inf
    graph.constants[weight.name] = array
    with pytest.raises(dp.QuantizationError, match="broken"):
        quantize(Program(graph), [images(2, graph)])
