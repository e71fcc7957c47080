"""Reading CIFAR-10 in its common forms, and batches that repeat exactly."""

import pickle

import numpy as np
import pytest
import torch

from dynprune_rt.demo.cifar10 import MEAN, STD
from dynprune_rt.errors import DataError
from dynprune_rt.methods.data import Batches, ImageSet, data_folder, load_cifar10
from python_tests.methods.networks import coloured

NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
R = np.random.default_rng(0)


def original(folder, count=8):
    """The layout of the original archive: rows of 1024 red, 1024 green, 1024 blue bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in NAMES:
        data = R.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = R.integers(0, 10, count).tolist()
        rows[name] = (data, labels)
        content = {b"batch_label": b"x", b"labels": labels, b"data": data, b"filenames": [b"a.png"] * count}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return rows


def test_python_batches(tmp_path):
    rows = original(tmp_path / "cifar-10-batches-py")
    data = load_cifar10(tmp_path, validation=8)
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 8, 8)
    pixels, labels = rows["data_batch_1"]
    np.testing.assert_array_equal(data.train.images[0].numpy(), pixels[0].reshape(3, 32, 32))
    assert data.train.labels[:8].tolist() == labels
    assert data.validation.labels.tolist() == rows["data_batch_5"][1]
    assert data.test.labels.tolist() == rows["test_batch"][1]


def test_binary_batches_equal_python_batches(tmp_path):
    for name, (pixels, labels) in original(tmp_path / "py").items():
        record = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
        (tmp_path / f"{name}.bin").write_bytes(record.tobytes())
    one, other = load_cifar10(tmp_path, 4), load_cifar10(tmp_path / "py", 4)
    assert torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.test.labels, other.test.labels)


def test_npz_files(tmp_path):
    images = R.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    for name in ("cifar10_train_a", "cifar10_train_b", "cifar10_test"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(10))
    data = load_cifar10(tmp_path, 2)
    assert len(data.train) == 18
    np.testing.assert_array_equal(data.test.images.numpy(), images.transpose(0, 3, 1, 2))


def test_missing_and_broken_files(tmp_path, monkeypatch):
    monkeypatch.delenv("DYNPRUNE_RT_DATA", raising=False)
    with pytest.raises(DataError, match="DYNPRUNE_RT_DATA"):
        load_cifar10()
    with pytest.raises(DataError, match="not a folder"):
        load_cifar10(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no CIFAR-10"):
        load_cifar10(tmp_path)
    original(tmp_path)
    with pytest.raises(DataError, match="validation=40"):
        load_cifar10(tmp_path, validation=40)
    (tmp_path / "data_batch_3").write_bytes(b"\x80\x02nonsense")
    with pytest.raises(DataError, match=r"data_batch_3 is not a CIFAR-10 batch"):
        load_cifar10(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3 is missing"):
        load_cifar10(tmp_path)


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_batch_that_wants_to_run_code_is_refused(tmp_path, capsys):
    original(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({b"data": Hostile(), b"labels": []}))
    with pytest.raises(DataError, match="does not belong"):
        load_cifar10(tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_labels_out_of_range(tmp_path):
    rows = original(tmp_path)
    content = {b"data": rows["test_batch"][0], b"labels": [11] * 8}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=r"labels lie in 11\.\.11"):
        load_cifar10(tmp_path, 4)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNPRUNE_RT_DATA", str(tmp_path))
    assert data_folder() == tmp_path


def test_plain_batches_are_normalised_and_complete():
    data = coloured(10)
    batches = list(Batches(data, 4))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    x = batches[0][0]
    expected = (data.images[:4].double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_is_the_same_whenever_it_is_drawn():
    data = coloured(64)
    one, other = Batches(data, 16, augment=True, seed=3), Batches(data, 16, augment=True, seed=3)
    list(one)
    one.set_epoch(5)
    other.set_epoch(5)
    for (x, y), (u, v) in zip(one, other, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    other.set_epoch(6)
    assert not torch.equal(next(iter(one))[0], next(iter(other))[0])


def test_seeds_and_epochs_draw_different_orders():
    data, drawn = coloured(64), set()
    for seed in (0, 1, 2):
        batches = Batches(data, 64, augment=True, seed=seed)
        for epoch in (0, 1, 2):
            batches.set_epoch(epoch)
            ((images, _),) = batches
            drawn.add(images.numpy().tobytes())
    assert len(drawn) == 9


def test_augmented_images_are_shifted_or_mirrored_copies():
    data = coloured(6, size=12)
    batches = Batches(data, 6, augment=True, shift=2)
    x, labels = next(iter(batches))
    pixels = ((x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255).round()
    padded = torch.nn.functional.pad(data.images.float(), (2,) * 4)
    views = {}
    for i in range(6):
        for dy in range(5):
            for dx in range(5):
                view = padded[i, :, dy : dy + 12, dx : dx + 12]
                views[view.numpy().tobytes()] = views[view.flip(2).contiguous().numpy().tobytes()] = i
    found = [views[p.contiguous().numpy().tobytes()] for p in pixels]
    assert sorted(found) == list(range(6))
    assert data.labels[found].tolist() == labels.tolist()


def test_bad_sets():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match="uint8"):
        ImageSet(images.float(), torch.zeros(4, dtype=torch.long), 2)
    with pytest.raises(DataError, match="4 images but 3 labels"):
        ImageSet(images, torch.zeros(3, dtype=torch.long), 2)
    with pytest.raises(DataError, match="batch size 9"):
        Batches(ImageSet(images, torch.zeros(4, dtype=torch.long), 2), 9)
