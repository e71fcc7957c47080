"""From the command line to a .dpr file, on real images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dynprune_rt
from dynprune_rt import models
from dynprune_rt.cli import main
from dynprune_rt.cli.train import METHOD_NAMES, parse_option
from dynprune_rt.errors import DynpruneError
from dynprune_rt.methods import METHODS, Settings
from dynprune_rt.methods.data import Cifar10
from dynprune_rt.recipes.training_run import Place, Recipe, run
from python_tests.methods import real_data
from python_tests.methods.networks import coloured, settle


def arguments(tmp_path, *more):
    return ["train", "--method", "di", "--arch", "cifar_resnet20", "--weights", str(real_data.WEIGHTS),
            "--data", str(real_data.FOLDER), "--out", str(tmp_path / "net.dpr"), *more]  # fmt: skip


@real_data.needs_data
def test_train_command(tmp_path, capsys):
    small = ("--epochs", "1", "--batch", "64", "--train-images", "640", "--target", "0.7", "--json", "--lr", "0.01")
    assert main([*arguments(tmp_path), *small, "--folder", str(tmp_path / "run"), "--option", "minimum=0.2"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["activity"]["macs_left"] == pytest.approx(0.7, abs=0.02)
    assert row["executed_macs"] <= row["program_macs"]
    assert row["parity_same_class"] >= 0.999
    assert row["test_images"] == 10000
    assert row["test_accuracy"] > 0.6
    assert row["options"] == {"minimum": 0.2}
    session = dynprune_rt.load(tmp_path / "net.dpr")
    assert session.run(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


def test_skipping_on_top_of_a_pruned_network(tmp_path):
    """One recipe starts from another's finished network; its figures are relative to the dense one."""
    images = coloured(160, classes=10, size=32)
    torch.manual_seed(0)
    save_file(settle(models.create("cifar_resnet20"), size=32).state_dict(), str(tmp_path / "w.safetensors"))
    settings = Settings(epochs=1, learning_rate=0.01, warmup_steps=1)
    first = Recipe("cifar_resnet20", "di", 0.5, "w.safetensors", settings=settings, batch=64)
    second = replace(first, method="is", target=0.9, base="first")
    data = Cifar10(images.part(0, 128), images.part(128, 160), images)
    place = Place(data, tmp_path, tmp_path / "second", tmp_path / "first", tmp_path / "teacher")
    row = run(second, place, first).row
    assert (row["epochs"], row["epochs_before"], row["start"]) == (1, 1, "first")
    activity = row["activity"]
    assert activity["macs_left"] == pytest.approx(0.45, abs=0.03)
    assert activity["static_cut"] >= 0.49
    assert 0.9 < activity["static_share"] <= 1.0
    assert row["executed_macs"] == pytest.approx(activity["macs_left"] * 40.55e6, rel=0.06)
    assert row["parity_same_class"] >= 0.98
    # Both runs drew the same batches, so the teacher was asked once.
    assert len(list((tmp_path / "teacher").glob("*/epoch_0000.npz"))) == 1


def test_missing_data_is_explained(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DYNPRUNE_RT_DATA", raising=False)
    code = main(["train", "--method", "fbs", "--arch", "cifar_resnet20", "--weights", "w.safetensors",
                 "--data", str(tmp_path), "--out", "x.dpr"])  # fmt: skip
    assert code == 1
    assert "holds no CIFAR-10" in capsys.readouterr().err


def test_options_of_methods():
    assert parse_option("rule=threshold") == ("rule", "threshold")
    assert parse_option("end=0.5") == ("end", 0.5)
    assert parse_option("inner_only=true") == ("inner_only", True)
    with pytest.raises(DynpruneError, match="KEY=VALUE"):
        parse_option("rule")


def test_the_command_line_knows_every_method():
    assert set(METHOD_NAMES) == set(METHODS)
