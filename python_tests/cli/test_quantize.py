"""dynprune quantize."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dynprune_rt.cli import main
from dynprune_rt.program import Program
from dynprune_rt.session import Session
from python_tests.quantization.networks import gated_resnet, images


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A float program and calibration images."""
    folder = tmp_path_factory.mktemp("quantize")
    graph = gated_resnet()
    Program(graph).save(folder / "net.dpr")
    np.save(folder / "x.npy", images(20, graph))
    return folder


def test_writes_a_program_that_runs(files, capsys):
    target = files / "q.dpr"
    assert main(["quantize", str(files / "net.dpr"), str(files / "x.npy"), "-o", str(target)]) == 0
    text = capsys.readouterr().out
    assert "layer1.0.shortcut" in text and "output error" in text and "20 images" in text
    quantized = Program.load(target)
    x = np.load(files / "x.npy")
    exact, rounded = Session(Program.load(files / "net.dpr"), threads=1).run(x), Session(quantized, threads=1).run(x)
    assert np.linalg.norm(exact - rounded) < 0.3 * np.linalg.norm(exact)


def test_options_and_json(files, capsys):
    arguments = ["quantize", str(files / "net.dpr"), str(files / "x.npy"), "-o", str(files / "k.dpr"), "--json"]
    assert main([*arguments, "--method", "mse", "--keep", "layer0.*", "--images", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "mse" and report["images"] == 4
    kept = [row["name"] for row in report["layers"] if row["kind"] == "float32"]
    assert kept and all(name.startswith("layer0.") for name in kept)


def test_mixed_widths_and_what_inspect_says_of_them(files, capsys):
    np.save(files / "y.npy", np.arange(20) % 10)
    target = files / "mixed.dpr"
    arguments = ["quantize", str(files / "net.dpr"), str(files / "x.npy"), "-o", str(target)]
    narrow = ["--weight-bytes", "6000", "--bits-by", "information", "--labels", str(files / "y.npy")]
    assert main([*arguments, *narrow]) == 0
    text = capsys.readouterr().out
    assert "channels at 8/4/2 bits" in text and "bits each on average" in text
    assert main(["inspect", str(target), "--json"]) == 0
    layers = [layer for layer in json.loads(capsys.readouterr().out)["layers"] if layer["op"] == "quantized_conv2d"]
    assert 5000 < sum(layer["weight_bytes"] for layer in layers) <= 6000
    assert any(layer["channels_by_weight_bits"]["2"] for layer in layers)
    assert main(["inspect", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "x2 bits)" in shown and "bits_by information" in shown
    assert main([*arguments, "--weight-bits", "4", "--bits-by", "information"]) == 1
    assert "need labels" in capsys.readouterr().err
    np.save(files / "short.npy", np.arange(3))
    assert main([*arguments, "--labels", str(files / "short.npy")]) == 1
    assert "a class number for each of the 20 images" in capsys.readouterr().err


def test_errors_are_explained(files, capsys):
    arguments = ["quantize", str(files / "net.dpr"), str(files / "x.npy"), "-o", str(files / "e.dpr")]
    assert main([*arguments, "--keep", "layer7"]) == 1
    assert "no convolution or linear layer is called 'layer7'" in capsys.readouterr().err
    assert not (files / "e.dpr").exists()
