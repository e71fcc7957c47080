"""Reading numpy files and turning them into batches."""

import numpy as np
import pytest

from dynprune_rt.cli.arrays import as_batch, read_array, write_array
from dynprune_rt.errors import DynpruneError, InputError

SHAPE = (3, 4, 5)


def test_npy_round_trip(tmp_path):
    array = np.arange(6, dtype=np.float32)
    write_array(tmp_path / "a.npy", array)
    assert np.array_equal(read_array(tmp_path / "a.npy"), array)


def test_npz_with_one_array_needs_no_key(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    assert read_array(tmp_path / "a.npz").shape == (3,)


def test_npz_with_several_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3), y=np.ones(4))
    assert read_array(tmp_path / "a.npz", "y").shape == (4,)
    with pytest.raises(InputError, match="choose one with --key"):
        read_array(tmp_path / "a.npz")
    with pytest.raises(InputError, match="no array 'z'"):
        read_array(tmp_path / "a.npz", "z")


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot read"):
        read_array(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00", b"PK\x03\x04 broken"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_files(tmp_path, content, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_array(path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.png: expected a \.npy or \.npz"):
        read_array(tmp_path / "a.png")
    with pytest.raises(InputError, match="cannot read"):
        read_array(tmp_path / "missing.npy")


def test_unwritable_output(tmp_path):
    with pytest.raises(DynpruneError, match="cannot write"):
        write_array(tmp_path / "no" / "a.npy", np.ones(1))


def test_one_image_becomes_a_batch():
    assert as_batch(np.zeros(SHAPE), SHAPE).shape == (1, *SHAPE)
    assert as_batch(np.zeros((2, *SHAPE)), SHAPE).dtype == np.float32


def test_uint8_images_in_either_order_are_normalised():
    first = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (first / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(as_batch(first, SHAPE, mean, std), expected, atol=1e-6)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(as_batch(last, SHAPE, mean, std), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((2, 3, 4, 6)), {}, r"\[2, 3, 4, 6\]"),
        (np.zeros((2, *SHAPE), np.uint8), {}, "need --mean and --std"),
        (np.zeros((2, *SHAPE), np.uint8), {"mean": (1, 2), "std": (1,)}, "--mean has 2 values for 3 channels"),
        (np.zeros((2, *SHAPE), np.uint8), {"mean": (0,), "std": (1, 0, 1)}, "--std must be positive"),
        (np.zeros((2, *SHAPE), np.float32), {"mean": (0,), "std": (1,)}, "are for uint8"),
        (np.zeros((2, *SHAPE), np.int32), {}, "takes floats"),
    ],
)
def test_inputs_that_do_not_fit(array, options, message):
    with pytest.raises(InputError, match=message):
        as_batch(array, SHAPE, **options)
