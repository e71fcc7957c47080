"""The report's ratios, text and JSON."""

import json

import pytest

from dynprune_rt.benchmark.report import Report, Row


def measured(name, ms, **more):
    return Row(name, "settings", median_ms=ms, p99_ms=2 * ms, spread=0.01, calls=9, **more)


@pytest.fixture
def report():
    return Report(
        facts={"model": "net", "batch": 1, "input_size": None},
        machine={"cpu": "Some CPU"},
        command="dynprune bench net",
        settings={"threads": 1},
        macs=25e6,
        dense_macs=100e6,
        live_inputs=0.25,
        live_outputs=0.5,
        rows=[
            measured("gated", 1.0, error=1e-7),
            measured("gated, skip=False", 2.5),
            measured("dense", 2.0),
            Row("openvino", skipped="openvino is not installed"),
        ],
        bit_identical=True,
    )


def test_ratios_use_the_dense_network_of_the_same_engine(report):
    assert report.ideal == 4.0
    assert report.realised == 2.0
    assert report.efficiency == 0.5


def test_without_a_dense_network_the_run_without_skipping_stands_in(report):
    report.rows = report.rows[:2]
    assert report.realised == 2.5


def test_text_holds_what_a_reader_needs(report):
    text = str(report)
    for part in (
        "model net, batch 1\n",
        "Some CPU; threads 1",
        "openvino: skipped, openvino is not installed",
        "25.00 of 100.00 MMACs per image, 25% of the inputs and 50% of the outputs live",
        "ideal speed-up 4.00x, realised 2.00x, efficiency 50%",
        "the same bits",
        "1.0e-07",
    ):
        assert part in text
    dense = next(line for line in text.splitlines() if line.startswith("dense"))
    assert dense.split()[-4:] == ["2.000", "4.000", "1.0%", "2.00x"]


def test_different_bits_are_shouted_about(report):
    report.bit_identical = False
    assert "DIFFERENT" in str(report)


def test_json_holds_rows_ratios_and_circumstances(report):
    data = json.loads(report.to_json())
    assert data["efficiency"] == 0.5
    assert data["command"] == "dynprune bench net"
    assert data["machine"] == {"cpu": "Some CPU"}
    assert [row["name"] for row in data["rows"]] == ["gated", "gated, skip=False", "dense", "openvino"]
