from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from dynprune_rt import artifact
from dynprune_rt.errors import ArtifactError, VerificationError
from dynprune_rt.ir.build import Builder
from dynprune_rt.ir.interpreter import run
from dynprune_rt.ir.printer import format_graph
from dynprune_rt.ir.types import BATCH, TensorType
from dynprune_rt.ir.verifier import verify
from python_tests.ir.gated_graph import gated_residual_graph, sample
from python_tests.ir.operators.case import random

REPORT = {"dropped outputs": ["aux"], "ratio": 0.5, "note": "naïve 通道"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.dpr"


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "model.dpr"
    artifact.save(path, gated_residual_graph(), REPORT)
    return path.read_bytes()


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, graph and tensor bytes of a file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["graph"]), data[8 + length :]


def join(header: Any, graph: Any, tensors: bytes) -> bytes:
    """A file out of its parts; ``graph`` as text is stored as it is."""
    if graph is not None:
        header["__metadata__"]["graph"] = graph if isinstance(graph, str) else json.dumps(graph)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text + tensors


def load_bytes(path, data: bytes):
    path.write_bytes(data)
    return artifact.load(path)


def survives(path, data: bytes) -> bool:
    """Whether these bytes load; if not they have to fail with ArtifactError, and nothing else."""
    try:
        graph, report = load_bytes(path, data)
    except ArtifactError as error:
        assert "onvert the model again" in str(error)
        return False
    verify(graph)
    assert isinstance(report, dict)
    return True


# ---- round trip -------------------------------------------------------------------------------


def test_round_trip(path):
    graph = gated_residual_graph()
    artifact.save(path, graph, REPORT)
    loaded, report = artifact.load(path)
    assert report == REPORT
    assert format_graph(loaded) == format_graph(graph)
    for before, after in zip(graph.nodes, loaded.nodes, strict=True):
        assert after.attrs == before.attrs
    data = {"x": sample()}
    for expected, actual in zip(run(graph, data), run(loaded, data), strict=True):
        np.testing.assert_array_equal(actual, expected)
    artifact.save(path, loaded, report)
    assert format_graph(artifact.load(path)[0]) == format_graph(graph)


def test_infinite_attributes_and_all_dtypes_survive(path):
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 3)))
    y = b.op("clamp", x, lo=-math.inf, hi=0.1)
    mask = b.op(
        "logical_and", b.op("ne", y, b.constant("zero", 0.0)), b.constant("mask", np.array([[True, False, True]]))
    )
    picked = b.op("index_select", y, b.constant("index", np.array([2, 0])), dim=1)
    b.graph.outputs = [b.op("where", mask, y, x), picked]
    artifact.save(path, b.graph)
    loaded, report = artifact.load(path)
    assert report == {}
    assert loaded.nodes[0].attrs == {"lo": -math.inf, "hi": 0.1}
    assert {c.dtype.kind for c in loaded.constants.values()} == {"f", "i", "b"}
    data = {"x": random(2, 3)}
    for expected, actual in zip(run(b.graph, data), run(loaded, data), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_constants_are_read_only_views_of_the_file(path):
    artifact.save(path, gated_residual_graph())
    loaded, _ = artifact.load(path)
    for array in loaded.constants.values():
        assert not array.flags.writeable and not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_loading_does_not_read_the_weights(path):
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 4096)))
    b.graph.outputs = [b.op("linear", x, b.constant("w", np.zeros((4096, 4096), np.float32)))]
    artifact.save(path, b.graph)
    tracemalloc.start()
    artifact.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_official_library_opens_the_file(path):
    graph = gated_residual_graph()
    artifact.save(path, graph, REPORT)
    tensors = load_file(path)
    assert set(tensors) == set(graph.constants)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, graph.constants[name])


def test_tensors_are_aligned(path):
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 16)))
    y = b.op("linear", x, b.constant("odd", random(3, 16)), b.constant("odd bias", random(3)))
    z = b.op("linear", x, b.constant("even", random(4, 16)))
    picked = b.op("index_select", y, b.constant("index", np.array([1])), dim=1)
    masked = b.op("where", b.constant("mask", np.array([True])), picked, picked)
    b.graph.outputs = [z, masked]
    artifact.save(path, b.graph)
    header, _, tensors = parts(path.read_bytes())
    base = path.stat().st_size - len(tensors)
    assert base % 64 == 0
    for name in ("odd", "even"):
        assert (base + header[name]["data_offsets"][0]) % 64 == 0
    assert all(array.flags.aligned for array in artifact.load(path)[0].constants.values())


PACKED_ROWS = [[1, -2, 0, 1, -1], [7, -8, 1, 0, 0], [-128, 127, 0, 1, 2]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    """A file whose weights take 8, 4 and 2 bits."""
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 5, 4, 4)))
    rows = np.array(PACKED_ROWS, np.int8).reshape(3, 5, 1, 1)
    ones = np.ones(3, np.float32)
    integers = b.op("quantize", x, scale=0.1, dtype="s8")
    constants = [b.constant("weight", rows), b.constant("scale", ones), b.constant("bias", ones)]
    y = b.op("quantized_conv2d", integers, *constants, dtype="s8")
    b.graph.outputs = [b.op("dequantize", y, scale=0.1)]
    path = tmp_path_factory.mktemp("packed") / "model.dpr"
    artifact.save(path, b.graph)
    return path.read_bytes()


def test_narrow_weights_are_packed_and_expanded(path, packed):
    graph, _ = load_bytes(path, packed)
    assert graph.constants["weight"].reshape(3, 5).tolist() == PACKED_ROWS
    header = parts(packed)[0]
    assert header["weight"]["dtype"] == "U8" and header["weight"]["shape"] == [3 + 2 + 3 + 5]
    again = path.with_name("again.dpr")
    artifact.save(again, graph)
    assert again.read_bytes() == packed
    assert artifact.digest(graph) == artifact.digest(artifact.load(again)[0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "weight"),
        (["weight", "weight"], "twice"),
        (["weight", "nothing"], "does not exist"),
        (["weight", "scale"], "expected bytes for s8 weights"),
        (["weight", "x"], "does not exist"),
        ([7], "does not exist"),
        ({"weight": 1}, "expected list"),
        ("weight", "expected list"),
    ],
)
def test_a_wrong_list_of_packed_tensors(path, packed, names, message):
    header, graph, tensors = parts(packed)
    header["__metadata__"]["packed"] = json.dumps(names)
    with pytest.raises(ArtifactError, match=message):
        load_bytes(path, join(header, graph, tensors))


@pytest.mark.parametrize(
    ("offset", "value", "message"), [(0, 3, "3 bits"), (0, 4, "bytes, expected"), (4, 0x80, "beyond its weights")]
)
def test_damaged_packed_weights(path, packed, offset, value, message):
    header, graph, tensors = parts(packed)
    begin = header["weight"]["data_offsets"][0] + offset
    with pytest.raises(ArtifactError, match=message):
        load_bytes(path, join(header, graph, tensors[:begin] + bytes([value]) + tensors[begin + 1 :]))


@pytest.mark.parametrize("shape", [[3, 5, 1], [4, 5, 1, 1], [3, 1 << 20, 1, 1], [1 << 30, 1, 1, 1]])
def test_packed_weights_of_another_shape(path, packed, shape):
    header, graph, tensors = parts(packed)
    graph["values"]["weight"][1] = shape
    assert not survives(path, join(header, graph, tensors))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=3))
def test_flipped_bytes_of_packed_files(path, packed, edits):
    data = bytearray(packed)
    for position, value in edits:
        data[position % len(data)] = value
    survives(path, bytes(data))


def test_unused_constants_are_not_stored(path):
    graph = gated_residual_graph()
    graph.add_constant("unused", np.zeros(1000, np.float32))
    artifact.save(path, graph)
    assert "unused" not in artifact.load(path)[0].constants


# ---- saving -----------------------------------------------------------------------------------


def test_saving_is_atomic(path, monkeypatch):
    artifact.save(path, gated_residual_graph(), {"first": True})

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact.os, "fsync", fail)
    with pytest.raises(ArtifactError, match=r"cannot write .*No space left on device"):
        artifact.save(path, gated_residual_graph(), {"first": False})
    assert artifact.load(path)[1] == {"first": True}
    assert [p.name for p in path.parent.iterdir()] == ["model.dpr"]


def test_saving_over_a_loaded_file_leaves_its_arrays_alone(path):
    artifact.save(path, gated_residual_graph())
    loaded, _ = artifact.load(path)
    before = {name: array.copy() for name, array in loaded.constants.items()}
    other = gated_residual_graph()
    other.constants["head.weight"] = other.constants["head.weight"] + 1
    artifact.save(path, other)
    for name, array in loaded.constants.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_broken_graph_is_not_saved(path):
    graph = gated_residual_graph()
    graph.outputs = []
    with pytest.raises(VerificationError):
        artifact.save(path, graph)
    assert not path.exists()


@pytest.mark.parametrize("report", [{"a": math.nan}, {"a": object()}, {"a": "\ud800"}])
def test_a_report_that_is_not_json_is_refused(path, report):
    with pytest.raises(ArtifactError, match="cannot be stored as JSON"):
        artifact.save(path, gated_residual_graph(), report)
    assert not path.exists()


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ArtifactError, match="cannot write"):
        artifact.save(tmp_path / "no" / "model.dpr", gated_residual_graph())


# ---- damaged and hostile files ----------------------------------------------------------------


def test_a_missing_file(path):
    with pytest.raises(ArtifactError, match=r"cannot open .*model.dpr': No such file"):
        artifact.load(path)


def test_a_folder(tmp_path):
    with pytest.raises(ArtifactError, match="cannot open"):
        artifact.load(tmp_path)


def test_another_safetensors_file(path):
    with pytest.raises(ArtifactError, match="__metadata__"):
        load_bytes(path, join({}, None, b""))
    with pytest.raises(ArtifactError, match="its format is 'pt'"):
        load_bytes(path, join({"__metadata__": {"format": "pt"}}, None, b""))


def test_a_file_of_another_kind(path):
    with pytest.raises(ArtifactError, match="is not a valid dynprune-rt program: the header claims"):
        load_bytes(path, b"PK\x03\x04" + bytes(100))


def set_at(tree: Any, keys: tuple[Any, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


W = "head.weight"
HEADER_EDITS = [
    (("__metadata__", "version"), "2", "its version is '2'; this release reads version 1"),
    (("__metadata__", "graph"), None, "the graph is None, expected str"),
    (("__metadata__", "graph"), "{", "the graph is not valid JSON"),
    (("__metadata__",), [], "expected dict"),
    ((W,), {"dtype": "F32"}, "has the keys"),
    ((W,), 3, "expected dict"),
    ((W, "dtype"), "F16", "has element type 'F16'"),
    ((W, "dtype"), ["F32"], "has element type"),
    ((W, "shape"), [4, -6], "empty dimension"),
    ((W, "shape"), [-1, 6], "has the shape"),
    ((W, "shape"), [4, 6.0], "expected int"),
    ((W, "shape"), [4, True], "expected int"),
    ((W, "shape"), [1] * 9, "has 9 dimensions; at most 8"),
    ((W, "shape"), [2**31, 2**31], "elements per image; at most"),
    ((W, "shape"), [4, 7], "claims the bytes"),
    ((W, "data_offsets"), [0], "expected .begin, end."),
    ((W, "data_offsets"), [-96, 0], "claims the bytes -96 to 0"),
    ((W, "data_offsets"), [10**12, 10**12 + 96], "claims the bytes"),
    ((W, "data_offsets"), [1, 97], "starts at byte"),
    (("extra",), {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "starts at byte 0, expected 4|starts at byte"),
]


@pytest.mark.parametrize(("keys", "value", "message"), HEADER_EDITS, ids=str)
def test_an_edited_header(path, valid, keys, value, message):
    header, _, tensors = parts(valid)
    set_at(header, keys, value)
    with pytest.raises(ArtifactError, match=message):
        load_bytes(path, join(header, None, tensors))


GRAPH_EDITS = [
    ((), [], "the graph is .*, expected dict"),
    (("values",), [], "the list of values"),
    (("values", "x"), ["f32", [-1, 6, 5, 5]], "expected .dtype, shape, mask."),
    (("values", "x", 0), "f16", "unknown element type"),
    (("values", "x", 0), 7, "expected str"),
    (("values", "x", 1), [-1, 0], "empty dimension"),
    (("values", "x", 1, 1), 10**30, "which is out of range"),
    (("values", "x", 2), "ghost", "names the unknown value 'ghost'"),
    (("values", "block.gate1", 2), "head", "reads 'head', which is not defined"),
    (("values", "ghost"), ["f32", [1], None], "'ghost' is declared but not part of the graph"),
    (("values", ""), ["f32", [1], None], "illegal name"),
    (("values", "n" * 2000), ["f32", [1], None], "illegal name"),
    (("values", W, 1), [6, 4], "its array is"),
    (("inputs",), [["x", "f32", [-1, 6, 5, 6]]], "declared with two types"),
    (("inputs",), ["x"], "expected .name, dtype, shape."),
    (("inputs",), [], "at least one input"),
    (("outputs",), [["head"]], "unknown value"),
    (("outputs",), None, "expected list"),
    (("nodes",), {}, "expected list"),
    (("nodes", 0), {}, "has the keys"),
    (("nodes", 0, "op"), "gate", "unknown operator 'gate'"),
    (("nodes", 0, "op"), None, "expected str"),
    (("nodes", 0, "name"), "", "illegal name"),
    (("nodes", 0, "in"), ["ghost"], "node 0 .* names the unknown value 'ghost'"),
    (("nodes", 0, "in"), ["head"], "reads 'head', which is not defined before it"),
    (("nodes", 0, "in"), ["x"] * 20_000, "has 20000 operands; at most"),
    (("nodes", 0, "in"), [], "takes 1 operands, got 0"),
    (("nodes", 0, "out"), [], "outputs are"),
    (("nodes", 0, "out"), ["x"], "input 'x' may not have a producer"),
    (("nodes", 0, "out"), ["head"], "outputs are"),
    (("nodes", 0, "attrs"), [], "expected dict"),
    (("nodes", 0, "attrs"), {"kind": "median"}, "expected one of"),
    (("nodes", 0, "attrs"), {"kind": [["mean"]]}, "expected one of"),
    (("nodes", 0, "attrs"), {}, "needs attribute 'kind'"),
    (("nodes", 0, "attrs", "more"), 1, "has no attribute 'more'"),
    (("nodes", 0, "computed"), "block.gate1.live", "is not defined|only conv2d"),
    (("nodes", 0, "note"), 3, "expected str"),
    (("nodes", 0, "origin"), "n" * 200_000, "has 200000 characters"),
    (("report",), [], "the report"),
]


@pytest.mark.parametrize(("keys", "value", "message"), GRAPH_EDITS, ids=lambda p: str(p)[:50])
def test_an_edited_graph(path, valid, keys, value, message):
    header, graph, tensors = parts(valid)
    if keys:
        set_at(graph, keys, value)
    else:
        graph = value
    with pytest.raises(ArtifactError, match=message):
        load_bytes(path, join(header, graph, tensors))


TEXTS = [
    ('{"report": {}, "report": {}}', "holds the key 'report' twice"),
    ('{"a": NaN}', "holds NaN, which is not JSON"),
    ('{"a": -Infinity}', "holds -Infinity"),
    ('{"a": 1e999}', "holds the number 1e999, which is out of range"),
    ('{"a": ' + "9" * 5000 + "}", "holds the integer 9999"),
    ("[" * 100_000, "nested too deeply|not valid JSON"),
    ("[" * 40 + "]" * 40, "nested more than 32 levels"),
    ('{"a": "\\ud800"}', "not valid UTF-8"),
    ('{"\\ud800": 1}', "not valid UTF-8"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS, ids=lambda p: p[:30])
def test_strict_json(path, valid, text, message):
    header, _, tensors = parts(valid)
    with pytest.raises(ArtifactError, match=message):
        load_bytes(path, join(header, text, tensors))
    with pytest.raises(ArtifactError, match=message):
        load_bytes(path, join(text.encode(), None, tensors))


def test_bad_utf8(path):
    with pytest.raises(ArtifactError, match="the header is not valid UTF-8"):
        load_bytes(path, join(b'{"\xff": 1}', None, b""))


def test_trailing_bytes(path, valid):
    with pytest.raises(ArtifactError, match="the tensors end at byte"):
        load_bytes(path, valid + b"\0")


def test_bytes_that_are_no_booleans(path):
    b = Builder()
    x = b.graph.add_input("x", TensorType("bool", (BATCH, 2)))
    b.graph.outputs = [b.op("logical_and", x, b.constant("mask", np.array([True, True])))]
    artifact.save(path, b.graph)
    with pytest.raises(ArtifactError, match="neither true nor false"):
        load_bytes(path, path.read_bytes()[:-1] + b"\2")


def test_tensors_that_are_not_aligned(path, valid):
    length = int.from_bytes(valid[:8], "little")
    with pytest.raises(ArtifactError, match="not aligned to its element size"):
        load_bytes(path, (length + 2).to_bytes(8, "little") + valid[8 : 8 + length] + b"  " + valid[8 + length :])


def test_a_huge_header_is_refused_before_it_is_read(path):
    for claim in (2**24 + 1, 2**63, 2**64 - 1):
        with pytest.raises(ArtifactError, match="the header claims"):
            load_bytes(path, claim.to_bytes(8, "little") + bytes(100))


def test_many_selections_by_one_long_index_are_checked_once(path):
    """A small file must not make the loader work for long."""
    b = Builder()
    x = b.graph.add_input("x", TensorType("f32", (BATCH, 2)))
    index = b.constant("index", np.zeros(2**20, np.int64))
    for _ in range(2000):
        y = b.op("index_select", x, index, dim=1)
    b.graph.outputs = [y]
    artifact.save(path, b.graph)
    assert len(artifact.load(path)[0].nodes) == 2000


# ---- fuzzing ----------------------------------------------------------------------------------

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.data())
def test_truncation(path, valid, data):
    """Anywhere: in the length, the header, its padding and the tensors."""
    length = int.from_bytes(valid[:8], "little")
    region = data.draw(
        st.sampled_from([(0, 8), (8, 8 + length), (8 + length - 70, 8 + length + 1), (0, len(valid) - 1)])
    )
    cut = data.draw(st.integers(*region))
    assert not survives(path, valid[:cut])


@FUZZ
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits(path, valid, flips):
    data = bytearray(valid)
    for where, bit in flips:
        data[int(where * len(data))] ^= 1 << bit
    survives(path, bytes(data))


@FUZZ
@given(st.data())
def test_flipped_bits_in_the_header(path, valid, data):
    length = int.from_bytes(valid[:8], "little")
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, 7 + length))] ^= 1 << data.draw(st.integers(0, 7))
    survives(path, bytes(changed))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.sampled_from(["", "x", "head", "inf", "-inf", "f32", "conv2d", "block.gate1.live", "\ud800", "\0"])
    | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=8,
)


def mutate(data, tree: Any) -> None:
    """Replace, delete or move one entry somewhere in a JSON tree, in place."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = data.draw(st.sampled_from(keys))
        child = tree[key]
        if isinstance(child, (dict, list)) and child and data.draw(st.integers(0, 3)):
            tree = child
            continue
        action = data.draw(st.sampled_from(["replace", "nudge", "delete", "copy"]))
        if action == "delete":
            del tree[key]
        elif action == "copy":
            tree[key] = tree[data.draw(st.sampled_from(keys))]
        elif action == "nudge" and isinstance(child, int):
            tree[key] = child + data.draw(st.integers(-3, 3))
        else:
            tree[key] = data.draw(JSON)
        return


@settings(FUZZ, max_examples=400)
@given(st.data())
def test_mutated_json(path, valid, data):
    header, graph, tensors = parts(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from([header, graph, graph]))
        if target:
            mutate(data, target)
    metadata = header.get("__metadata__")
    survives(path, join(header, graph if isinstance(metadata, dict) else None, tensors))


@FUZZ
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes(path, data, with_length):
    assert not survives(path, len(data).to_bytes(8, "little") + data if with_length else data)


def test_the_package_needs_no_safetensors_library():
    """The loader, and all that it imports, live on numpy and the standard library."""
    code = (
        "import sys, dynprune_rt.artifact, dynprune_rt.program\n"
        "heavy = {'torch', 'safetensors', 'scipy', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
