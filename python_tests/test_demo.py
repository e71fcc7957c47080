"""The demo from the files of the package, and its loader of CIFAR-10."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dynprune_rt.cli import main
from dynprune_rt.cli.demo import bars
from dynprune_rt.demo import IMAGES, MODELS, try_model
from dynprune_rt.demo.cifar10 import CLASSES, MEAN, STD, load_images, normalize
from dynprune_rt.errors import DynpruneError


@pytest.fixture(scope="module")
def images():
    return load_images(IMAGES)


def test_files_are_there_and_small():
    for model in MODELS:
        for path in (model.program, model.dense_onnx):
            assert 0 < path.stat().st_size < 4 * 2**20, path


def test_images_are_balanced_real_ones(images):
    pixels, labels = images
    assert pixels.shape == (400, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [40] * len(CLASSES)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.program.stem)
def test_models_classify(model, images):
    pixels, labels = images[0][100:200], images[1][100:200]
    seen = []
    trial = try_model(model, normalize(pixels), labels, rounds=1, progress=lambda done, total: seen.append(done))
    assert trial.accuracy(labels) > 0.85
    assert trial.bit_identical
    assert (trial.macs < trial.dense_macs).all()
    assert trial.layer_shares.shape[0] == 100
    assert set(trial.latency_ms) >= {"skipping", "without skipping"}
    assert seen == list(range(1, 101))


def test_instance_wise_sparsity_differs_between_images(images):
    trial = try_model(MODELS[1], normalize(images[0][:50]), images[1][:50], rounds=1)
    assert len(set(trial.macs.tolist())) > 40


def test_command_prints_text_and_json(capsys):
    assert main(["demo", "--limit", "20"]) == 0
    text = capsys.readouterr().out
    for part in ("20 CIFAR-10 test images", "accuracy", "MMACs per image", "without skipping", "least work"):
        assert part in text
    assert main(["demo", "--limit", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in rows] == [model.title for model in MODELS]
    assert all(row["macs"]["mean"] < row["dense_macs"] for row in rows)


def test_command_imports_no_torch():
    code = "import sys; from dynprune_rt.cli import main; main(['demo', '--limit', '2']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_missing_images_say_what_to_do(capsys, tmp_path):
    assert main(["demo", "--images", str(tmp_path / "none.npz")]) == 1
    assert "test_batch.bin" in capsys.readouterr().err


def test_bars_are_proportional():
    assert bars(np.array([0.0, 0.5, 1.0])) == "▁▅█"


def test_normalisation():
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    pixels[0, 3, 4] = (255, 0, 51)
    x = normalize(pixels)
    assert x.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(x[0, :, 3, 4], (np.array([1, 0, 0.2]) - MEAN) / STD, rtol=1e-5)


def test_binary_records(tmp_path):
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (3, 3073), dtype=np.uint8)
    records[:, 0] = (7, 1, 9)
    path = tmp_path / "test_batch.bin"
    records.tofile(path)
    pixels, labels = load_images(path, limit=2)
    assert labels.tolist() == [7, 1]
    assert pixels.shape == (2, 32, 32, 3)
    assert pixels[1, 5, 6].tolist() == [int(records[1, 1 + c * 1024 + 5 * 32 + 6]) for c in range(3)]


def test_picture_sheets(tmp_path):
    tiles = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    sheet = tiles.reshape(2, 2, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(64, 64, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    blob = np.frombuffer(buffer.getvalue(), np.uint8)
    np.savez(tmp_path / "x.npz", blob=blob, offset=np.array([0, blob.size]), y=np.arange(4, dtype=np.uint8))
    pixels, labels = load_images(tmp_path / "x.npz", limit=3)
    assert np.array_equal(pixels, tiles[:3])
    assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.bin", b"12"), ("a.npz", b"no"), ("b.npz", b"PK\x03\x04"), ("a.npy", b""), ("missing.npz", None)],
)
def test_files_that_are_not_cifar(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DynpruneError, match=name):
        load_images(tmp_path / name)


def test_other_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with pytest.raises(DynpruneError, match="expected a CIFAR-10"):
        load_images(tmp_path / "a.npz")
