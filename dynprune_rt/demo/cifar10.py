"""Reading CIFAR-10 and normalising it as the published ResNet weights expect."""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from dynprune_rt.errors import DynpruneError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_RECORD = 1 + 3 * 32 * 32


def load_images(path: str | Path, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first ``limit`` images u8[N, 32, 32, 3] and labels i64[N] of a file.

    Takes the binary version of the data set (``test_batch.bin``: one label byte and 3072 pixel bytes per image),
    ``.npz`` with ``images`` and ``labels``, and ``.npz`` with ``blob``, ``offset`` and ``y``, in which sheet i, bytes
    ``offset[i]:offset[i + 1]`` of the blob, is a lossless picture of 25 rows of 40 images (needs Pillow).
    Raises DynpruneError for anything else.
    """
    path = Path(path)
    try:
        if path.suffix == ".bin":
            return _from_records(np.fromfile(path, np.uint8), limit)
        if path.suffix != ".npz":
            raise ValueError("neither .bin nor .npz")
        with np.load(path, allow_pickle=False) as data:
            if {"images", "labels"} <= set(data.files):
                return data["images"][:limit], data["labels"][:limit].astype(np.int64)
            if {"blob", "offset", "y"} <= set(data.files):
                images = _from_sheets(data["blob"], data["offset"], limit)
                return images, data["y"][: len(images)].astype(np.int64)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DynpruneError(f"cannot read {path}: {error}") from None
    raise DynpruneError(f"{path}: expected a CIFAR-10 .bin file, or .npz with images, labels or blob, offset, y")


def normalize(images: np.ndarray) -> np.ndarray:
    """u8[N, 32, 32, 3] -> f32[N, 3, 32, 32]: (pixel / 255 - MEAN) / STD."""
    scaled = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    mean, std = (np.asarray(values, np.float32).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return np.ascontiguousarray((scaled - mean) / std)


def _from_records(raw: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    if raw.size % _RECORD:
        raise ValueError(f"{raw.size} bytes are not whole records of {_RECORD}")
    records = raw.reshape(-1, _RECORD)[:limit]
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), records[:, 0].astype(np.int64)


def _from_sheets(blob: np.ndarray, offset: np.ndarray, limit: int | None) -> np.ndarray:
    from PIL import Image

    images: list[np.ndarray] = []
    count = 0
    for start, stop in pairwise(offset):
        sheet = np.asarray(Image.open(io.BytesIO(blob[start:stop].tobytes())).convert("RGB"))
        rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
        tiles = sheet.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
        images.append(tiles)
        count += len(tiles)
        if limit is not None and count >= limit:
            break
    return np.concatenate(images)[:limit]
