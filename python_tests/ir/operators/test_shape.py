from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.types import TensorType
from python_tests.ir.operators.case import Case, booleans, check_against_torch, constants, integers, random

X = random(2, 3, 4, 5)

CASES = [
    Case("reshape", [X], lambda x: x.flatten(1), {"shape": (-1, 60)}, label="flatten"),
    Case("reshape", [X], lambda x: x.view(-1, 3, 2, 2, 5, 1), {"shape": (-1, 3, 2, 2, 5, 1)}, label="split"),
    Case("reshape", [X[0]], lambda x: x.reshape(60), {"shape": (60,)}, constants(0), "constant"),
    Case("reshape", [booleans(2, 1)], lambda x: x.reshape(-1), {"shape": (-1,)}, label="squeeze"),
    Case("expand", [random(2, 3, 1, 1)], lambda x: x.expand(-1, 3, 4, 5), {"shape": (-1, 3, 4, 5)}),
    Case("expand", [random(3, 1)], lambda x: x.expand(2, 3, 4), {"shape": (2, 3, 4)}, constants(0), "constant"),
    Case("permute", [X], lambda x: x.permute(0, 2, 3, 1), {"dims": (0, 2, 3, 1)}),
    Case("permute", [X[0]], lambda x: x.permute(2, 0, 1), {"dims": (2, 0, 1)}, constants(0), "constant"),
    Case("slice", [X], lambda x: x[:, 1:3], {"dim": 1, "start": 1, "stop": 3}),
    Case("slice", [X], lambda x: x[..., 0:5:2], {"dim": 3, "start": 0, "stop": 5, "step": 2}, label="step"),
    Case("slice", [integers(9, 4)], lambda x: x[2:4], {"dim": 0, "start": 2, "stop": 4}, constants(0), "constant"),
    Case("pad", [X], lambda x: F.pad(x, (1, 2, 0, 3)), {"low": (0, 0, 0, 1), "high": (0, 0, 3, 2)}),
    Case(
        "pad",
        [X],
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 0), value=-np.inf),
        {"low": (0, 1, 0, 0), "high": (0, 0, 0, 0), "value": -np.inf},
        label="channels",
    ),
    Case("repeat", [X], lambda x: x.repeat(1, 2, 1, 3), {"repeats": (1, 2, 1, 3)}),
    Case("cat", [X, random(2, 2, 4, 5), X], lambda *x: torch.cat(x, 1), {"dim": 1}),
    Case("cat", [booleans(2, 3), booleans(2, 3, seed=1)], lambda *x: torch.cat(x, 1), {"dim": 1}, label="bool"),
    Case("cat", [X], lambda x: x, {"dim": 3}, label="one"),
    Case(
        "index_select",
        [X, np.array([2, 0, 0, 1])],
        lambda x, i: x.index_select(1, i),
        {"dim": 1},
        constants(1),
        "channels",
    ),
    Case("index_select", [X, np.array([4, 1])], lambda x, i: x.index_select(3, i), {"dim": 3}, constants(1)),
    Case("one_hot", [integers(4, 2, 3)], lambda x: F.one_hot(x, 4), {"classes": 4}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case):
    check_against_torch(case)


def test_channel_shuffle_is_an_index_select():
    x = random(2, 6, 3, 3)
    index = np.arange(6).reshape(2, 3).T.reshape(-1)
    (out,) = OPERATORS["index_select"].compute([x, index], {"dim": 1})
    np.testing.assert_array_equal(out, F.channel_shuffle(torch.from_numpy(x), 2).numpy())


def test_one_hot_of_a_class_out_of_range_is_zero():
    (out,) = OPERATORS["one_hot"].compute([np.array([-1, 0, 3])], {"classes": 3})
    np.testing.assert_array_equal(out, [[0, 0, 0], [1, 0, 0], [0, 0, 0]])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_slice_and_pad(data):
    size = data.draw(st.integers(1, 6))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    step = data.draw(st.integers(1, 3))
    low, high = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    x = random(2, size)
    attrs = {"dim": 1, "start": start, "stop": stop, "step": step}
    check_against_torch(Case("slice", [x], lambda t: t[:, start:stop:step], attrs))
    check_against_torch(Case("pad", [x], lambda t: F.pad(t, (low, high)), {"low": (0, low), "high": (0, high)}))


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("reshape", {"shape": (2, 60)}, "must start with -1"),
        ("reshape", {"shape": (-1, -1)}, "positive elsewhere"),
        ("reshape", {"shape": (-1, 0)}, "positive elsewhere"),
        ("reshape", {"shape": (-1, 61)}, "60 elements do not fit"),
        ("reshape", {"shape": (-1, 60, *[1] * 7)}, "at most 8 integers"),
        ("expand", {"shape": (2, 3, 4, 5)}, "must start with -1"),
        ("expand", {"shape": (-1, 6, 4, 5)}, "do not broadcast"),
        ("expand", {"shape": (-1, 1, 4, 5)}, "does not expand"),
        ("permute", {"dims": (1, 0, 2, 3)}, "batch has to stay"),
        ("permute", {"dims": (0, 1, 2)}, "not a permutation"),
        ("permute", {"dims": (0, 1, 2, 2)}, "not a permutation"),
        ("slice", {"dim": 0, "start": 0, "stop": 1}, "is the batch"),
        ("slice", {"dim": 1, "start": 2, "stop": 2}, "is empty or leaves"),
        ("slice", {"dim": 1, "start": 0, "stop": 4}, "is empty or leaves"),
        ("slice", {"dim": 1, "start": 0, "stop": 2, "step": 0}, "expected an integer in"),
        ("pad", {"low": (1, 0, 0, 0), "high": (0, 0, 0, 0)}, "batch may not be padded"),
        ("pad", {"low": (0, 0, 0), "high": (0, 0, 0, 0)}, "low has 3 entries for rank 4"),
        ("repeat", {"repeats": (2, 1, 1, 1)}, "batch may not be repeated"),
        ("repeat", {"repeats": (1, 2)}, "has 2 entries for rank 4"),
        ("repeat", {"repeats": (1, 2**20, 2**20, 1)}, "elements per image; at most"),
        ("cat", {"dim": 0}, "is the batch"),
        ("cat", {}, "needs attribute 'dim'"),
    ],
)
def test_refuses(op, attrs, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS[op].infer_types([TensorType("f32", (-1, 3, 4, 5))], attrs)


@pytest.mark.parametrize(
    ("op", "types", "attrs", "message"),
    [
        ("cat", [("f32", (-1, 3)), ("f32", (-1, 3, 1))], {"dim": 1}, "do not match outside"),
        ("cat", [("f32", (-1, 3)), ("i64", (-1, 3))], {"dim": 1}, "do not match outside"),
        ("cat", [("f32", (-1, 3)), ("f32", (1, 3))], {"dim": 1}, "do not match outside"),
        ("cat", [], {"dim": 1}, "at least 1 operands, got 0"),
        ("index_select", [("f32", (-1, 3)), ("f32", (2,))], {"dim": 1}, "expected a constant vector"),
        ("index_select", [("f32", (-1, 3)), ("i64", (-1,))], {"dim": 1}, "expected a constant vector"),
        ("one_hot", [("f32", (-1, 3))], {"classes": 3}, "expected i64"),
        ("reshape", [("f32", (4,))], {"shape": (-1, 4)}, "must not start with -1"),
    ],
)
def test_refuses_operands(op, types, attrs, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS[op].infer_types([TensorType(*t) for t in types], attrs)


def test_a_missing_part_of_a_cat_is_named():
    with pytest.raises(VerificationError, match="operand 1 is missing"):
        OPERATORS["cat"].infer_types([TensorType("f32", (-1, 3)), None], {"dim": 1})
