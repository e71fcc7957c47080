from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.types import TensorType
from python_tests.ir.operators.case import Case, booleans, check_against_torch, constants, integers, random

X = random(2, 5, 3)
DISTINCT = np.argsort(random(2, 5, 3), axis=1)[:, :2]
ONE = np.float32(1.0)


def scatter(dim):
    return lambda x, index, source: x.scatter(dim, index, source.expand(index.shape))


CASES = [
    Case("gather", [X, integers(5, 2, 7, 3)], lambda x, i: x.gather(1, i), {"dim": 1}),
    Case("gather", [X, integers(3, 2, 2, 4)], lambda x, i: x.gather(2, i), {"dim": 2}, label="covers less"),
    Case("gather", [booleans(2, 5), integers(5, 2, 3)], lambda x, i: x.gather(1, i), {"dim": 1}, label="bool"),
    Case(
        "gather",
        [X[:1], integers(5, 2, 7, 3)],
        lambda x, i: x.expand(2, -1, -1).gather(1, i),
        {"dim": 1},
        constants(0),
        "constant table",
    ),
    Case("scatter", [X, DISTINCT, random(2, 2, 3)], scatter(1), {"dim": 1}),
    Case("scatter", [X, DISTINCT, ONE], scatter(1), {"dim": 1}, constants(2), "scalar"),
    Case("scatter", [X, DISTINCT[:, :, :2], random(2, 2, 2)], scatter(1), {"dim": 1}, label="covers less"),
    Case(
        "scatter",
        [np.zeros((1, 5, 3), np.float32), DISTINCT, ONE],
        lambda x, i, s: x.repeat(2, 1, 1).scatter(1, i, 1.0),
        {"dim": 1},
        constants(0, 2),
        "mask of topk",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case):
    check_against_torch(case)


def test_the_last_of_several_writes_wins():
    x, index = np.zeros((1, 3), np.float32), np.array([[1, 1, 1]])
    source = np.array([[1, 2, 3]], np.float32)
    (out,) = OPERATORS["scatter"].compute([x, index, source], {"dim": 1})
    np.testing.assert_array_equal(out, [[0, 3, 0]])
    np.testing.assert_array_equal(x, 0)


@settings(max_examples=40, deadline=None)
@given(rank=st.integers(2, 4), data=st.data())
def test_gather_undoes_scatter(rank, data):
    shape = [data.draw(st.integers(1, 4)) for _ in range(rank)]
    dim = data.draw(st.integers(1, rank - 1))
    x = random(*shape)
    index = np.argsort(random(*shape, seed=1), axis=dim)
    (written,) = OPERATORS["scatter"].compute([np.zeros_like(x), index, x], {"dim": dim})
    (back,) = OPERATORS["gather"].compute([written, index], {"dim": dim})
    np.testing.assert_array_equal(back, x)
    expected = torch.zeros(shape).scatter(dim, torch.from_numpy(index), torch.from_numpy(x))
    np.testing.assert_array_equal(written, expected.numpy())


@pytest.mark.parametrize("position", [-1, 5])
def test_an_index_out_of_range_is_an_error(position):
    with pytest.raises(ValueError, match="an index leaves dimension 1 of size 5"):
        OPERATORS["gather"].compute([X, np.full((2, 1, 3), position)], {"dim": 1})


@pytest.mark.parametrize(
    ("index", "dim", "message"),
    [
        (("f32", (-1, 2, 3)), 1, "the index is"),
        (("i64", (-1, 2)), 1, "has rank 2, the operand rank 3"),
        (("i64", (-1, 2, 3)), 0, "is the batch"),
        (("i64", (-1, 2, 3)), 3, "does not exist"),
        (("i64", (2, 2, 3)), 1, "batch of the index"),
        (("i64", (-1, 2, 4)), 1, "exceeds"),
    ],
)
def test_refuses(index, dim, message):
    x = TensorType("f32", (-1, 5, 3))
    for op, operands in (("gather", []), ("scatter", [TensorType("f32", ())])):
        with pytest.raises(VerificationError, match=message):
            OPERATORS[op].infer_types([x, TensorType(*index), *operands], {"dim": dim})


@pytest.mark.parametrize(
    ("source", "message"),
    [(("i64", ()), "the source is"), (("f32", (-1, 5, 3)), "broadcast")],
)
def test_scatter_refuses_sources(source, message):
    types = [TensorType("f32", (-1, 5, 3)), TensorType("i64", (-1, 2, 3)), TensorType(*source)]
    with pytest.raises(VerificationError, match=message):
        OPERATORS["scatter"].infer_types(types, {"dim": 1})
