"""Every subcommand end to end, in process and as a user starts it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import dynprune_rt
from dynprune_rt import models
from dynprune_rt.cli import COMMANDS, main

NORMALIZATION = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]


@pytest.fixture(scope="module")
def network():
    return models.create("cifar_resnet20", "random", seed=1)


@pytest.fixture(scope="module")
def program(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "net.dpr"
    dynprune_rt.convert(network, models.synthetic_images(2, 32)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "x.npy"
    np.save(path, models.synthetic_images(5, 32, seed=3).numpy())
    return str(path)


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 8


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run"])
    assert stop.value.code == 2


def test_run_writes_what_torch_computes(program, images, network, tmp_path, capsys):
    output = tmp_path / "y.npy"
    code, _, _ = run(capsys, "run", program, images, "-o", str(output), "--batch", "2", "--threads", "1")
    assert code == 0
    with torch.no_grad():
        expected = network(torch.from_numpy(np.load(images))).numpy()
    np.testing.assert_allclose(np.load(output), expected, atol=1e-4 * np.abs(expected).max())


def test_an_empty_batch_gives_no_rows(program, tmp_path, capsys):
    path = tmp_path / "none.npy"
    np.save(path, np.zeros((0, 3, 32, 32), np.float32))
    assert run(capsys, "run", program, str(path), "--json")[:2] == (0, "[]\n")


def test_run_prints_the_best_classes(program, images, network, capsys):
    code, out, _ = run(capsys, "run", program, images, "--top", "2", "--json")
    assert code == 0
    with torch.no_grad():
        best = network(torch.from_numpy(np.load(images))).argmax(1).tolist()
    assert [row["classes"][0] for row in json.loads(out)] == best
    code, out, _ = run(capsys, "run", program, images, "--top", "1", "--no-skip")
    assert [int(line.split(":")[1].split()[0]) for line in out.splitlines()] == best


def test_run_takes_uint8_images(program, tmp_path, capsys):
    path = tmp_path / "x.npz"
    np.savez(path, images=np.zeros((2, 32, 32, 3), np.uint8), labels=np.zeros(2))
    code, out, _ = run(capsys, "run", program, str(path), "--key", "images", *NORMALIZATION)
    assert code == 0
    assert len(out.splitlines()) == 2


def test_inspect_shows_layers_and_skips(program, capsys):
    code, out, _ = run(capsys, "inspect", program)
    assert code == 0
    assert "layer1.0.conv1" in out
    code, out, _ = run(capsys, "inspect", program, "--json")
    layers = {layer["name"]: layer for layer in json.loads(out)["layers"]}
    assert layers["layer1.0.conv1"]["skips_outputs_by"]
    assert layers["layer1.0.conv2"]["skips_inputs_by"]
    assert not layers["conv1"]["skips_outputs_by"]
    code, out, _ = run(capsys, "inspect", program, "--graph")
    assert "conv2d" in out


def test_profile_compares_with_a_dense_run(program, images, capsys):
    code, out, _ = run(capsys, "profile", program, images, "--repeats", "2")
    assert code == 0
    assert "efficiency" in out
    code, out, _ = run(capsys, "profile", program, images, "--repeats", "1", "--no-dense", "--json", "--images", "3")
    data = json.loads(out)
    assert data["batch"] == 3
    assert data["macs"] < data["dense_macs"]


def test_bench_of_a_program(program, images, tmp_path, capsys):
    result = tmp_path / "r.json"
    arguments = ["--peers", "none", "--rounds", "1", "--no-pin", "--input", images, "--json", str(result)]
    code, out, _ = run(capsys, "bench", program, *arguments)
    assert code == 0
    assert "efficiency" in out
    assert json.loads(result.read_text())["bit_identical"] is True


def test_env_is_a_bug_report(capsys):
    code, out, _ = run(capsys, "env", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["isa"] in facts["isas"]
    assert set(facts["cuda"]) == {"built", "usable", "kernels", "reason"}
    code, out, _ = run(capsys, "env")
    assert "versions" in out


def test_convert_a_network_of_the_zoo(tmp_path, capsys):
    path = tmp_path / "z.dpr"
    code, out, _ = run(capsys, "convert", "cifar_resnet20", "--gate", "kth", "--share", "0.25", "-o", str(path))
    assert code == 0
    assert str(path) in out
    assert dynprune_rt.Program.load(path).inputs


def test_convert_a_model_of_ones_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "mynet.py").write_text(
        "import torch\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    code, _, _ = run(capsys, "convert", "mynet:build", "--input-shape", "1,3,6,6")
    assert code == 0
    assert (tmp_path / "build.dpr").is_file()
    code, _, _ = run(capsys, "convert", f"{tmp_path}/mynet.py:build", "--input-shape", "1,3,6,6", "-o", "other.dpr")
    assert code == 0
    for arguments, message in (
        (["mynet:build"], "needs --input-shape"),
        (["mynet:wrong", "--input-shape", "1,3,6,6"], "returned int"),
        (["mynet:missing", "--input-shape", "1,3,6,6"], "has no attribute"),
        (["nowhere:build", "--input-shape", "1,3,6,6"], "No module named"),
        (["sub/nowhere.py:build", "--input-shape", "1,3,6,6"], "No such file"),
    ):
        code, _, err = run(capsys, "convert", *arguments)
        assert code == 1
        assert message in err


def test_convert_lists_the_zoo(capsys):
    code, out, _ = run(capsys, "convert", "--list")
    assert code == 0
    assert "resnet50" in out
    assert "manidp" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.dpr", "x.npy"], "missing.dpr"),
        (["inspect", "missing.dpr"], "missing.dpr"),
        (["convert"], "which model?"),
        (["convert", "resnet19"], "did you mean"),
        (["convert", "resnet18", "-o", "no/such/folder/x.dpr"], "there is no folder"),
        (["bench", "resnet19"], "did you mean"),
        (["bench", "cifar_resnet20", "--onnx", "x.onnx"], "are for .dpr files"),
        (["bench", "x.dpr", "--refcheck"], "needs the torch model"),
    ],
)
def test_errors_are_one_message_without_a_traceback(arguments, message, capsys):
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert out == ""
    assert message in err
    assert err.startswith(f"dynprune {arguments[0]}: error: ")
    assert "Traceback" not in err


def test_traceback_on_request():
    with pytest.raises(dynprune_rt.DynpruneError):
        main(["--traceback", "inspect", "missing.dpr"])


@pytest.mark.parametrize("arguments", [["env"], ["inspect", "{program}"], ["run", "{program}", "{images}"]])
def test_run_time_commands_import_no_torch(arguments, program, images):
    arguments = [a.format(program=program, images=images) for a in arguments]
    code = (
        "import sys\n"
        "from dynprune_rt.cli import main\n"
        f"code = main({arguments!r})\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early_is_no_error(program):
    command = f"{sys.executable} -m dynprune_rt.cli inspect {program} --graph | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("graph(")
    assert done.stderr == ""
