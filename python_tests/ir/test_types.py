from __future__ import annotations

import pytest

from dynprune_rt.ir.types import BATCH, MAX_ELEMENTS, TensorType


def test_a_feature_map():
    t = TensorType("f32", (BATCH, 3, 4, 5))
    assert t.batched and t.is_map and t.rank == 4 and t.channels == 3 and t.elements == 60
    assert str(t) == "f32[N, 3, 4, 5]"


def test_a_scalar():
    t = TensorType("i64", ())
    assert not t.batched and not t.is_map and t.elements == 1 and str(t) == "i64[]"
    with pytest.raises(ValueError, match="no channel dimension"):
        _ = t.channels


@pytest.mark.parametrize("shape", [(), (BATCH,), (3,), (BATCH, MAX_ELEMENTS), (1,) * 8])
def test_legal(shape):
    TensorType("f32", shape).check()


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("f16", (3,), "unknown element type"),
        ("f32", (1,) * 9, "rank 9; at most 8"),
        ("f32", (3, BATCH), "the batch outside dimension 0"),
        ("f32", (BATCH, 0), "empty dimension"),
        ("f32", (-2,), "empty dimension"),
        ("f32", (BATCH, MAX_ELEMENTS + 1), "elements per image; at most"),
    ],
)
def test_illegal(dtype, shape, message):
    with pytest.raises(ValueError, match=message):
        TensorType(dtype, shape).check()
