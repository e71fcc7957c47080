"""bf16 programs: near the reference and the float program, the same bits in every mode and on every ISA."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import dynprune_rt as dp
from dynprune_rt.ir import interpreter
from dynprune_rt.ir.bfloat16 import from_bfloat16
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.graph import Graph
from dynprune_rt.program import Program
from dynprune_rt.quantization import quantize
from dynprune_rt.session import Session
from python_tests.backends.cpu.plan_checks import check_plan, execute
from python_tests.quantization.networks import Network, gated_resnet, images
from python_tests.quantization.test_quantize import GRAPHS

#: With layers that run as Winograd on AVX512_BF16.
BF16_GRAPHS = {**GRAPHS, "larger maps": lambda: gated_resnet(6, width=32, size=(18, 32), valued=True)}


@pytest.fixture(scope="module", params=sorted(BF16_GRAPHS))
def pair(request):
    """A float program and its bf16 form."""
    program = Program(BF16_GRAPHS[request.param]())
    return program, quantize(program, dtype="bf16")


def test_skipping_threads_batches_and_poison_leave_the_bits(pair):
    """And values near the reference: one rounding of a map may fall on the other side."""
    _, narrow = pair
    check_plan(narrow.graph, [images(3, narrow.graph, seed=7)], tolerance=0.02)


def test_every_map_is_within_a_rounding_of_the_reference(pair):
    """Every node on its own: the runtime's map against the reference's result for the runtime's operands."""
    _, narrow = pair
    graph = narrow.graph
    x = images(2, graph, seed=9)
    nodes = [n for n in graph.nodes if n.op == "conv2d" and n.output.type.dtype == "bf16"]
    assert nodes
    shown_graph = Graph(list(graph.inputs), [], list(graph.nodes), dict(graph.constants))
    builder = Builder(shown_graph, fold=False)
    shown = {}
    for value in {v.name: v for n in nodes for v in (n.inputs[0], n.output, *n.inputs[5:]) if v is not None}.values():
        shown[value.name] = builder.append("cast", [value], {"dtype": "f32"}, name=f"{value.name}.shown")[0]
        shown[value.name].live = value.live
    vectors = {v.name: v for n in nodes for v in (*n.inputs[3:5], n.computed, n.output.live) if v is not None}
    vectors = {name: v for name, v in vectors.items() if not graph.is_constant(v)}
    outputs = {**shown, **vectors}
    got: dict[str, np.ndarray] = {}
    for start in range(0, len(outputs), 60):
        names = list(outputs)[start : start + 60]
        shown_graph.outputs = [outputs[name] for name in names]
        got.update(zip(names, execute(Session(Program(shown_graph), threads=1), [x], poison=True), strict=True))
    for node in nodes:
        operands = [
            None if v is None else graph.constant(v) if graph.is_constant(v) else got[v.name] for v in node.inputs
        ]
        for position in (0, 5):
            if position < len(operands) and operands[position] is not None:
                operands[position] = (operands[position].view(np.uint32) >> 16).astype(np.uint16)
        want = from_bfloat16(interpreter.evaluate(node, operands)[0])
        computed = node.computed if node.computed is not None else node.output.live
        mask = np.ones(1) if computed is None else got[computed.name]
        keep = np.broadcast_to(mask != 0, want.shape[:2])[:, :, None, None]
        have = got[node.output.name]
        scale = np.abs(want).max()
        np.testing.assert_allclose(have * keep, want * keep, rtol=2**-7, atol=1e-5 * scale, err_msg=node.name)


def test_values_are_near_the_float_program(pair):
    program, narrow = pair
    x = images(8, program.graph)
    exact, rounded = (Session(p, threads=1).run(x) for p in (program, narrow))
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (exact, rounded)), strict=True):
        if a.dtype == np.float32:
            assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)


def test_literal_skipping_of_the_reference_changes_nothing(pair):
    _, narrow = pair
    x = images(3, narrow.graph, seed=11)
    name = narrow.graph.inputs[0].name
    plain = interpreter.run(narrow.graph, {name: x})
    literal = interpreter.run(narrow.graph, {name: x}, honour_live=True)
    for a, b in zip(plain, literal, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_artifact_keeps_a_bf16_program_at_half_the_size(pair, tmp_path):
    program, narrow = pair
    program.save(tmp_path / "p.dpr")
    narrow.save(tmp_path / "n.dpr")
    loaded = Program.load(tmp_path / "n.dpr")
    x = images(2, narrow.graph)
    for a, b in zip(execute(Session(narrow, threads=1), [x]), execute(Session(loaded, threads=1), [x]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.report["quantization"]["dtype"] == "bf16"
    weights = [v for v in loaded.graph.constants.values() if v.dtype == np.uint16]
    assert weights and all(not w.flags.writeable for w in weights)


def test_every_isa_gives_the_same_bits(tmp_path):
    """The whole map, before any float operator whose rounding may differ."""
    graph = GRAPHS["map output"]()
    narrow = quantize(Program(graph), dtype="bf16")
    graph = narrow.graph
    graph.outputs = graph.outputs[:1]
    narrow.save(tmp_path / "n.dpr")
    np.save(tmp_path / "x.npy", images(3, graph))
    results = []
    for isa in dp.available_isas():
        code = (
            f"import numpy as np, dynprune_rt as dp; s = dp.load({str(tmp_path / 'n.dpr')!r}, threads=1);"
            f"np.save({str(tmp_path / 'y.npy')!r}, s.run(np.load({str(tmp_path / 'x.npy')!r})))"
        )
        environment = {**os.environ, "DYNPRUNE_RT_ISA": isa}
        done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
        assert done.stderr.count("bf16 layers run in portable code") == (isa != "avx512_bf16"), done.stderr
        results.append(np.load(tmp_path / "y.npy"))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_report_and_kept_layers():
    graph = gated_resnet(9)
    x = images(8, graph)
    labels = Session(Program(graph), threads=1).run(x).argmax(1)
    report = quantize(Program(graph), [x], "bf16", keep=["layer1.0.*"], labels=[labels]).report["quantization"]
    kept = {row["name"]: row["why"] for row in report["layers"] if row["kind"] == "float32"}
    assert kept == dict.fromkeys(("layer1.0.conv1", "layer1.0.conv2", "layer1.0.shortcut"), "kept by name")
    assert report["output_error"] < 0.02 and report["accuracy_bf16"] == report["same_largest_output"]
    silent = quantize(Program(graph), dtype="bf16").report["quantization"]
    assert silent["images"] == 0 and "output_error" not in silent


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_large_linear_layers_keep_weights_in_bf16(dtype, tmp_path):
    net = Network(15)
    x = net.relu(net.conv(net.x, 40, "stem"))
    graph = net.finish(net.relu(net.conv(x, 130, "wide", stride=2)), classes=150)
    batches = [images(4, graph)]
    for keep, expected in (((), "bf16"), (("fc",), "f32")):
        narrow = quantize(Program(graph), batches, dtype, keep=keep)
        narrow.save(tmp_path / "n.dpr")
        loaded = Program.load(tmp_path / "n.dpr").graph
        fc = next(n for n in loaded.nodes if n.name == "fc")
        assert fc.inputs[1].type.dtype == expected
        want = interpreter.run(loaded, {loaded.inputs[0].name: batches[0]})[0]
        for threads in (1, 2):
            have = Session(Program(loaded), threads=threads).run(batches[0])
            np.testing.assert_allclose(have, want, rtol=0, atol=0.02 * np.abs(want).max())


def test_bad_input_is_refused():
    net = Network(14)
    graph = net.finish(net.relu(net.conv(net.x, 5, "broken")))
    weight = next(n for n in graph.nodes if n.name == "broken").inputs[1]
    for value, message in ((np.nan, "not finite"), (3.4e38, "leave the range")):
        array = graph.constants[weight.name].copy()
        array[2, 0, 0, 0] = value
        graph.constants[weight.name] = array
        with pytest.raises(dp.QuantizationError, match=f"'broken'.*{message}"):
            quantize(Program(graph), dtype="bf16")
        graph.constants[weight.name] = np.ones_like(array)
    narrow = quantize(Program(graph), dtype="bf16")
    for dtype in ("bf16", "int8"):
        with pytest.raises(dp.QuantizationError, match="quantized already"):
            quantize(narrow, [images(2, graph)], dtype)
    with pytest.raises(dp.QuantizationError, match="at least one"):
        quantize(Program(graph), dtype="int8")
    with pytest.raises(dp.InputError, match="calibration batch 0"):
        quantize(Program(graph), [images(2, graph)[:, :1]], "bf16")
