"""Reading and writing numpy files on the command line."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynprune_rt.errors import DynpruneError, InputError


def read_array(path: Path, key: str | None = None) -> np.ndarray:
    """The array of a ``.npy`` file, or the array ``key`` (or the only one) of a ``.npz`` file.

    Raises InputError for unreadable files, pickled data, other suffixes, and missing or ambiguous keys.
    """
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path}: expected a .npy or .npz file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if key is None and len(loaded.files) != 1:
                raise InputError(f"{path} holds {', '.join(loaded.files)}; choose one with --key")
            name = key if key is not None else loaded.files[0]
            if name not in loaded.files:
                raise InputError(f"{path} has no array {name!r}; it holds {', '.join(loaded.files)}")
            array: np.ndarray = loaded[name]
            return array
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy`` file. Raises DynpruneError if that fails."""
    try:
        with open(path, "wb") as file:
            np.save(file, array)
    except OSError as error:
        raise DynpruneError(f"cannot write {path}: {error.strerror}") from None


def as_batch(
    array: np.ndarray,
    image_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> np.ndarray:
    """f32[N, *image_shape] from an array of one image or of a batch.

    uint8 images may be channels-first or channels-last and need ``mean`` and ``std``. Raises InputError.
    """
    if array.dtype == np.uint8:
        array = _normalize(array, image_shape, mean, std)
    elif mean is not None or std is not None:
        raise InputError(f"--mean and --std are for uint8 images; the input is {array.dtype}")
    if array.ndim == len(image_shape):
        array = array[None]
    if array.shape[1:] != tuple(image_shape):
        expected = ", ".join(map(str, image_shape))
        raise InputError(f"the program takes [N, {expected}]; the input has the shape {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"the program takes floats; the input is {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _normalize(
    array: np.ndarray, image_shape: Sequence[int], mean: Sequence[float] | None, std: Sequence[float] | None
) -> np.ndarray:
    if mean is None or std is None:
        raise InputError(
            "uint8 images need --mean and --std, for example --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
        )
    if array.ndim == len(image_shape):
        array = array[None]
    channels = image_shape[0]
    if array.ndim == 4 and array.shape[1] != channels and array.shape[3] == channels:
        array = array.transpose(0, 3, 1, 2)
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} values for {channels} channels")
    if not min(std) > 0:
        raise InputError(f"--std must be positive, got {','.join(map(str, std))}")
    shape = (-1, 1, 1)
    scale = np.asarray(std, np.float32).reshape(shape)
    offset = np.asarray(mean, np.float32).reshape(shape)
    images: np.ndarray = (array.astype(np.float32) / np.float32(255) - offset) / scale
    return images


def add_input(parser: argparse.ArgumentParser, what: str = "images", optional: bool = False) -> None:
    """``INPUT`` and ``--key``."""
    text = f"{what}: .npy or .npz, [N, C, H, W] or one image"
    parser.add_argument("input", type=Path, metavar="INPUT", nargs="?" if optional else None, help=text)
    parser.add_argument("--key", help="name of the array in a .npz file with several")
