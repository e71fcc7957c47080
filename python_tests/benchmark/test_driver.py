"""The driver end to end on a small network: rows, work, checks, refusals."""

import dataclasses

import numpy as np
import pytest

from dynprune_rt.benchmark import BenchmarkOptions, program_case, run_benchmark, zoo_case
from dynprune_rt.errors import DynpruneError

QUICK = BenchmarkOptions(rounds=1, slot_ms=0.0, peers=("torch-eager",), cores=(), refcheck=True)


@pytest.fixture(scope="module")
def case():
    return zoo_case("cifar_resnet20", gate="random", share=0.5, images=2, onnx=False)


def test_rows_and_ratios(case):
    seen = []
    report = run_benchmark(case, QUICK, lambda done, total, what: seen.append((done, total, what)))
    assert [row.name for row in report.rows] == ["gated", "gated, skip=False", "dense", "torch-eager"]
    assert all(row.median_ms > 0 and row.error < 1e-4 for row in report.rows)
    assert report.bit_identical
    assert report.dense_macs == case.dense.dense_macs
    assert 0.5 < report.live_inputs < 0.9  # only inputs between the convolutions of a block are masked
    assert 0.5 < report.live_outputs < 0.6
    assert report.ideal > 2  # half of the inputs and half of the outputs of most convolutions
    assert report.efficiency > 0
    assert seen[-1] == (4, 4, "measuring")


def test_a_peer_that_cannot_run_is_a_row_with_a_reason(case):
    options = dataclasses.replace(QUICK, peers=("onnxruntime",), refcheck=False)
    row = run_benchmark(case, options).row("onnxruntime")
    assert row.median_ms is None
    assert row.skipped


def test_a_failing_peer_does_not_end_the_run(case, monkeypatch):
    from dynprune_rt.benchmark.peers import PEERS

    def fail(*arguments):
        raise RuntimeError("out of luck\nsecond line")

    monkeypatch.setattr(PEERS["torch-eager"], "prepare", fail)
    assert run_benchmark(case, QUICK).row("torch-eager").skipped == "RuntimeError: out of luck"


def test_refcheck_refuses_wrong_outputs(case):
    wrong = dataclasses.replace(case, reference=[y + 1 for y in case.reference])
    with pytest.raises(DynpruneError, match="deviates from torch"):
        run_benchmark(wrong, QUICK)


def test_a_program_file_brings_its_own_rows(case, tmp_path):
    case.program.save(tmp_path / "net.dpr")
    report = run_benchmark(
        program_case(tmp_path / "net.dpr", images=1), dataclasses.replace(QUICK, peers=("openvino",), refcheck=False)
    )
    assert report.row("dense") is None
    assert report.row("openvino").skipped
    assert report.realised > 0


def test_given_inputs_are_used(case, tmp_path):
    case.program.save(tmp_path / "net.dpr")
    x = np.ones((3, 3, 32, 32), np.float32)
    made = program_case(tmp_path / "net.dpr", inputs=[x])
    assert made.facts["inputs"] == "given"
    assert made.facts["batch"] == 3
    assert made.inputs[0] is x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": ("tvm",)}, "unknown peers tvm"),
        ({"cores": (9999,)}, "cannot pin"),
        ({"threads": 2, "cores": (0,)}, "need as many cores"),
    ],
)
def test_bad_options(case, options, message):
    with pytest.raises(DynpruneError, match=message):
        run_benchmark(case, dataclasses.replace(QUICK, **options))


def test_missing_onnx_file(case, tmp_path):
    case.program.save(tmp_path / "net.dpr")
    with pytest.raises(DynpruneError, match=r"cannot read .*none\.onnx"):
        program_case(tmp_path / "net.dpr", onnx=tmp_path / "none.onnx")
