from __future__ import annotations

import pytest
import torch.nn.functional as F

from dynprune_rt.errors import VerificationError
from dynprune_rt.ir.operators import OPERATORS
from dynprune_rt.ir.types import TensorType
from python_tests.ir.operators.case import Case, check_against_torch, constants, random

X = random(2, 6, 3, 4)


def group_norm(groups, eps=1e-5):
    return lambda x, weight=None, bias=None: F.group_norm(x, groups, weight, bias, eps)


def layer_norm(shape, eps=1e-5):
    return lambda x, weight=None, bias=None: F.layer_norm(x, shape, weight, bias, eps)


CASES = [
    Case("group_norm", [X], group_norm(3), {"groups": 3}),
    Case("group_norm", [X, random(6), random(6, seed=1)], group_norm(2), {"groups": 2}, constants(1, 2), "affine"),
    Case("group_norm", [X, None, random(6)], group_norm(6, 0.1), {"groups": 6, "eps": 0.1}, constants(2), "instance"),
    Case("layer_norm", [X], layer_norm((4,)), {"dims": (3,)}),
    Case(
        "layer_norm",
        [X, random(6, 3, 4), random(6, 3, 4, seed=1)],
        layer_norm((6, 3, 4), 0.1),
        {"dims": (1, 2, 3), "eps": 0.1},
        constants(1, 2),
        "affine",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case):
    check_against_torch(case)


VECTOR = TensorType("f32", (5,))


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "message"),
    [
        ("group_norm", [], {"groups": 4}, "6 channels do not divide into 4 groups"),
        ("group_norm", [VECTOR], {"groups": 3}, "the weight is"),
        ("group_norm", [None, VECTOR], {"groups": 3}, "the bias is"),
        ("layer_norm", [], {"dims": (1,)}, "must be the last dimensions"),
        ("layer_norm", [], {"dims": ()}, "must be the last dimensions"),
        ("layer_norm", [], {"dims": (0, 1, 2, 3)}, "is the batch"),
        ("layer_norm", [VECTOR], {"dims": (3,)}, "the weight is"),
    ],
)
def test_refuses(op, operands, attrs, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS[op].infer_types([TensorType("f32", (-1, 6, 3, 4)), *operands], attrs)
