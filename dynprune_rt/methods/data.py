"""CIFAR-10 for training: finding the files, splitting, and augmented batches that a resumed run repeats exactly."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynprune_rt.demo.cifar10 import MEAN, STD, load_images
from dynprune_rt.errors import DataError, DynpruneError

#: Environment variable with the folder of the data sets.
DATA_VARIABLE = "DYNPRUNE_RT_DATA"

_TRAIN = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")


@dataclass(frozen=True)
class ImageSet:
    """Images u8 [N, 3, H, W] and labels i64 [N]."""

    images: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise DataError(f"images must be uint8 [N, C, H, W], got {self.images.dtype} {list(self.images.shape)}")
        if len(self.images) != len(self.labels) or len(self.labels) == 0:
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.classes:
            raise DataError(f"labels lie in {low}..{high}, expected 0..{self.classes - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int | None = None) -> ImageSet:
        return ImageSet(self.images[start:stop], self.labels[start:stop], self.classes)


@dataclass(frozen=True)
class Cifar10:
    """``train`` and ``validation`` are disjoint parts of the 50,000 training images; ``test`` only ends a run."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def data_folder(path: str | os.PathLike[str] | None = None) -> Path:
    """The given folder, or the one that DYNPRUNE_RT_DATA names. Raises DataError when there is none."""
    chosen = path if path is not None else os.environ.get(DATA_VARIABLE)
    if not chosen:
        raise DataError(f"no data folder: give a path, or set {DATA_VARIABLE} to a folder that holds CIFAR-10")
    folder = Path(chosen)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    return folder


def load_cifar10(path: str | os.PathLike[str] | None = None, validation: int = 5000) -> Cifar10:
    """Read CIFAR-10 from a folder.

    Takes the original Python batches (``data_batch_1`` ... ``test_batch``, also within ``cifar-10-batches-py``), the
    binary version (``*.bin``) and ``cifar10_train_a.npz``, ``cifar10_train_b.npz``, ``cifar10_test.npz``. The last
    ``validation`` training images are split off. Raises DataError naming what is missing or broken.
    """
    folder = data_folder(path)
    for inner in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        for names, test in (
            (_TRAIN, "test_batch"),
            (tuple(f"{name}.bin" for name in _TRAIN), "test_batch.bin"),
            (("cifar10_train_a.npz", "cifar10_train_b.npz"), "cifar10_test.npz"),
        ):
            if (inner / names[0]).is_file():
                train = _join([_read(inner / name) for name in names])
                if not 0 <= validation < len(train):
                    raise DataError(f"validation={validation}: the training set has {len(train)} images")
                cut = len(train) - validation
                held_out = train.part(cut) if validation else train.part(0, 1)
                return Cifar10(train.part(0, cut), held_out, _read(inner / test))
    raise DataError(f"{folder} holds no CIFAR-10: expected data_batch_1, data_batch_1.bin or cifar10_train_a.npz")


def _read(path: Path) -> ImageSet:
    if not path.is_file():
        raise DataError(f"{path} is missing")
    if path.suffix:
        try:
            images, labels = load_images(path)
        except DynpruneError as error:
            raise DataError(str(error)) from None
        return _image_set(images.transpose(0, 3, 1, 2), labels)
    try:
        batch = _BatchUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[b"labels"], np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not a CIFAR-10 batch: {type(error).__name__}: {error}") from None
    return _image_set(images, labels)


def _image_set(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels), 10)


def _join(parts: list[ImageSet]) -> ImageSet:
    return ImageSet(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]), parts[0].classes)


class _BatchUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers; anything else in the file is refused, not executed."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into an image batch")


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


class Batches:
    """Normalised batches of an `ImageSet`: (f32 [B, 3, H, W] channels_last, i64 [B]).

    With ``augment`` images are shuffled, shifted by up to ``shift`` pixels (black border) and mirrored; order and
    shifts depend on ``seed`` and the epoch alone. The last, smaller batch of an augmented epoch is left out.
    """

    def __init__(self, data: ImageSet, batch: int = 128, augment: bool = False, seed: int = 0, shift: int = 4) -> None:
        if not 1 <= batch <= len(data):
            raise DataError(f"batch size {batch} does not fit {len(data)} images")
        self.data, self.batch, self.augment, self.seed, self.shift = data, batch, augment, seed, shift
        self.epoch = 0
        self._mean = torch.tensor(MEAN).reshape(1, 3, 1, 1) * 255
        self._scale = 1 / (torch.tensor(STD).reshape(1, 3, 1, 1) * 255)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def plain(self, batch: int | None = None) -> Batches:
        """The same images in order, not augmented."""
        return Batches(self.data, min(batch or self.batch, len(self.data)))

    def __len__(self) -> int:
        count = len(self.data)
        return count // self.batch if self.augment else -(-count // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.augment:
            for start in range(0, len(self.data), self.batch):
                stop = start + self.batch
                yield self._normalise(self.data.images[start:stop]), self.data.labels[start:stop]
            return
        # The generator takes 32 bits; the factor keeps the streams of small seeds apart.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + self.epoch) % 2**32)
        order = torch.randperm(len(self.data), generator=generator)
        shifts = torch.randint(0, 2 * self.shift + 1, (len(order), 2), generator=generator)
        mirrored = torch.rand(len(order), generator=generator) < 0.5
        for step in range(len(self)):
            rows = slice(step * self.batch, (step + 1) * self.batch)
            index = order[rows]
            images = self._shifted(self.data.images[index], shifts[rows], mirrored[rows])
            yield self._normalise(images), self.data.labels[index]

    def _shifted(self, images: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded = torch.nn.functional.pad(images, (self.shift,) * 4)
        rows = shifts[:, :1] + torch.arange(height)
        columns = shifts[:, 1:] + torch.arange(width)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        picked = torch.arange(len(images))[:, None, None]
        return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _normalise(self, images: Tensor) -> Tensor:
        return ((images - self._mean) * self._scale).contiguous(memory_format=torch.channels_last)
