"""The profile's totals, table and comparison with a dense run."""

import json

import pytest

from dynprune_rt.profile import Profile


def row(name, kernel, macs=0, dense=0, ms=1.0, live_in=4, live_out=2):
    return {
        "name": name, "kernel": kernel, "live_in": live_in, "total_in": 8, "live_out": live_out, "total_out": 8,
        "macs": macs, "dense_macs": dense, "ms": ms,
    }  # fmt: skip


@pytest.fixture
def profile():
    rows = [
        row("layer1.conv1", "direct", 2_000_000, 8_000_000, 2.0, live_in=4.5),
        row("relu", "elementwise", ms=0.25),
        row("relu_1", "elementwise", ms=0.75),
        row("fc", "linear", 1_000_000, 1_000_000, 0.5),
    ]
    return Profile(rows=rows, batch=2, threads=1, isa="avx2", skip=True)


def test_totals(profile):
    assert profile.macs == 3_000_000
    assert profile.dense_macs == 9_000_000
    assert profile.ms == 3.5
    assert [layer["name"] for layer in profile.layers] == ["layer1.conv1", "fc"]


def test_json_round_trip(profile):
    data = json.loads(profile.to_json())
    assert data["rows"] == profile.rows
    assert (data["batch"], data["isa"], data["skip"], data["macs"]) == (2, "avx2", True, 3_000_000)


def test_table_is_per_image_and_sums_other_steps_by_kernel(profile):
    lines = str(profile).splitlines()
    conv = next(line for line in lines if line.startswith("layer1.conv1")).split()
    assert conv == ["layer1.conv1", "direct", "4.5/8", "2/8", "1.000", "25%", "1.0000", "1.0"]
    other = next(line for line in lines if line.startswith("elementwise")).split()
    assert other == ["elementwise", "(2x)", "0.5000"]
    total = lines[-1].split()
    assert total[:4] == ["total", "1.500", "33%", "1.7500"]


def test_small_layers_are_summed_up_with_the_other_steps(profile):
    rows = [*profile.rows, row("gate1.fc", "linear", 500, 1000, 0.5), row("gate2.fc", "linear", 1000, 1000, 0.5)]
    text = str(Profile(rows, batch=2, threads=1, isa="avx2", skip=True))
    assert "gate1.fc" not in text
    line = next(line for line in text.splitlines() if line.startswith("linear (2x)")).split()
    assert line == ["linear", "(2x)", "0.001", "75%", "0.5000", "0.0"]


def test_efficiency_is_realised_over_ideal(profile):
    dense_rows = [{**r, "macs": r["dense_macs"], "ms": 2 * r["ms"]} for r in profile.rows]
    compared = profile.against(Profile(dense_rows, batch=2, threads=1, isa="avx2", skip=False))
    conv = next(line for line in str(compared).splitlines() if line.startswith("layer1.conv1")).split()
    assert conv[-3:] == ["2.0000", "2.00x", "50%"]  # a quarter of the work, half of the time


def test_a_dense_run_of_another_batch_size_is_scaled(profile):
    dense = Profile([{**r, "ms": 3 * r["ms"]} for r in profile.rows], batch=6, threads=1, isa="avx2", skip=False)
    assert [r["dense_ms"] for r in profile.against(dense).rows] == [r["ms"] for r in profile.rows]


def test_profiles_of_different_programs_do_not_compare(profile):
    other = Profile(profile.rows[1:], batch=2, threads=1, isa="avx2", skip=False)
    with pytest.raises(ValueError, match="different programs"):
        profile.against(other)
