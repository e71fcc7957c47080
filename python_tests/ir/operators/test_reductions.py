from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.types import TensorType
from python_tests.ir.operators.case import Case, booleans, check_against_torch, integers, random

X = random(3, 4, 5)
NAN = X.copy()
NAN[0, 1, 2] = np.nan
DISTINCT = np.random.default_rng(0).permutation(60).reshape(3, 4, 5)


def reduce(kind, function, x=X, dims=(1,), keepdim=False, label=""):
    attrs = {"kind": kind, "dims": dims, "keepdim": keepdim}
    return Case("reduce", [x], lambda t: function(t, dims, keepdim), attrs, label=f"{kind} {label or dims}", atol=1e-5)


def norm(order):
    return lambda x, dims, keepdim: torch.linalg.vector_norm(x, order, dims, keepdim)


def prod(x, dims, keepdim):
    return x.prod(dims[0], keepdim)


FLOAT_KINDS = {
    "sum": torch.sum,
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
    "prod": prod,
    "l1": norm(1),
    "l2": norm(2),
}
CASES = [
    *(reduce(kind, function) for kind, function in FLOAT_KINDS.items()),
    *(reduce(kind, FLOAT_KINDS[kind], dims=(2, 1), keepdim=True) for kind in ("sum", "mean", "max", "l2")),
    *(reduce(kind, FLOAT_KINDS[kind], NAN, label="nan") for kind in ("max", "min", "sum")),
    *(reduce(kind, FLOAT_KINDS[kind], DISTINCT, label="i64") for kind in ("sum", "max", "min", "prod")),
    reduce("any", torch.any, booleans(3, 4, 5)),
    reduce("all", torch.all, booleans(3, 4, 5), dims=(1, 2)),
    *(
        Case(op, [x], lambda t, f=f, k=keepdim: f(t, 2, k), {"dim": 2, "keepdim": keepdim}, label=f"{label} {keepdim}")
        for op, f in (("argmax", torch.argmax), ("argmin", torch.argmin))
        for label, x in (("", X), ("nan", NAN), ("ties", integers(2, 3, 4, 5)))
        for keepdim in (False, True)
    ),
    Case("softmax", [X], lambda x: x.softmax(1), {"dim": 1}),
    Case("softmax", [200 * X], lambda x: x.softmax(2), {"dim": 2}, label="large"),
    Case("log_softmax", [X], lambda x: x.log_softmax(1), {"dim": 1}),
    Case("log_softmax", [200 * X], lambda x: x.log_softmax(2), {"dim": 2}, label="large", rtol=1e-5),
    Case("cumsum", [X], lambda x: x.cumsum(1), {"dim": 1}),
    Case("cumsum", [DISTINCT], lambda x: x.cumsum(2), {"dim": 2}, label="i64"),
    *(
        Case("topk", [x], lambda t, g=g: t.topk(3, 2, g), {"k": 3, "dim": 2, "largest": g}, label=f"{label} {g}")
        for label, x in (("f32", X), ("nan", NAN), ("i64", DISTINCT))
        for g in (True, False)
    ),
    *(
        Case("sort", [x], lambda t, d=d: t.sort(1, d), {"dim": 1, "descending": d}, label=f"{label} {d}")
        for label, x in (("f32", X), ("nan", NAN), ("i64", DISTINCT))
        for d in (True, False)
    ),
    *(
        Case("kthvalue", [x], lambda t, k=k: t.kthvalue(k, 2), {"k": k, "dim": 2}, label=f"{label} {k}")
        for label, x in (("f32", X), ("nan", NAN))
        for k in (1, 3, 5)
    ),
    Case("kthvalue", [X], lambda t: t.kthvalue(2, 1, True), {"k": 2, "dim": 1, "keepdim": True}, label="keepdim"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case):
    check_against_torch(case)


#: Few distinct values, so that most elements have an equal.
TIED = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, np.nan]), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(row=TIED, descending=st.booleans())
def test_sort_is_stable_as_torch_is(row, descending):
    x = np.array([row], np.float32)
    values, indices = OPERATORS["sort"].compute([x], {"dim": 1, "descending": descending})
    expected = torch.sort(torch.from_numpy(x), dim=1, descending=descending, stable=True)
    np.testing.assert_array_equal(values, expected.values.numpy())
    np.testing.assert_array_equal(indices, expected.indices.numpy())


@settings(max_examples=60, deadline=None)
@given(row=TIED, largest=st.booleans(), data=st.data())
def test_ties_of_topk_and_kthvalue(row, largest, data):
    """The values are torch's; of equal elements the earlier position is taken."""
    k = data.draw(st.integers(1, len(row)))
    x = np.array([row], np.float32)
    values, indices = OPERATORS["topk"].compute([x], {"k": k, "dim": 1, "largest": largest})
    np.testing.assert_array_equal(values, torch.from_numpy(x).topk(k, 1, largest).values.numpy())
    np.testing.assert_array_equal(np.take_along_axis(x, indices, 1), values)
    for first, second, a, b in zip(indices[0], indices[0][1:], values[0], values[0][1:], strict=False):
        assert first < second or not (a == b or (np.isnan(a) and np.isnan(b)))
    value, index = OPERATORS["kthvalue"].compute([x], {"k": k, "dim": 1})
    np.testing.assert_array_equal(value, torch.from_numpy(x).kthvalue(k, 1).values.numpy())
    np.testing.assert_array_equal(x[0, index], value)


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("reduce", {"kind": "sum", "dims": (0,)}, "is the batch, which no operator may change"),
        ("reduce", {"kind": "sum", "dims": (3,)}, "dimension 3 does not exist"),
        ("reduce", {"kind": "sum", "dims": (-1,)}, "expected an integer in"),
        ("reduce", {"kind": "sum", "dims": ()}, "must name each dimension"),
        ("reduce", {"kind": "sum", "dims": (1, 1)}, "must name each dimension"),
        ("reduce", {"kind": "sum", "dims": tuple(range(9))}, "at most 8 integers"),
        ("reduce", {"kind": "any", "dims": (1,)}, "expected bool"),
        ("argmax", {"dim": 0}, "is the batch"),
        ("softmax", {"dim": 0}, "is the batch"),
        ("cumsum", {"dim": 0}, "is the batch"),
        ("sort", {"dim": 0}, "is the batch"),
        ("topk", {"k": 6, "dim": 2}, "exceeds the 5 elements"),
        ("topk", {"k": 0, "dim": 2}, "expected an integer in"),
        ("kthvalue", {"k": 6, "dim": 2}, "exceeds the 5 elements"),
    ],
)
def test_refuses(op, attrs, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS[op].infer_types([TensorType("f32", (-1, 4, 5))], attrs)
