from __future__ import annotations

import math

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

# Includes zeros, halves (rounding), large values (saturation) and the special numbers.
SPECIAL = np.array([[0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -2.5, 30.0, -30.0, np.inf, -np.inf, np.nan]], np.float32)
VALUES = np.concatenate([SPECIAL, 3 * random(2, 12)])
FINITE = np.concatenate([SPECIAL[:, :9], 3 * random(2, 9)])
WHOLE = np.array([[-7, -2, -1, 0, 1, 2, 9]])

UNARY = {
    "relu": torch.relu,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "exp": torch.exp,
    "log": torch.log,
    "reciprocal": torch.reciprocal,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "erf": torch.erf,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "isnan": torch.isnan,
}
# torch and the definition differ in how they treat infinities here (x * tanh(..), inf - inf).
UNARY_FINITE = {
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
    "sin": torch.sin,
    "cos": torch.cos,
}
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "pow": torch.pow,
    "remainder": torch.remainder,
    "floor_divide": torch.floor_divide,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
}
LOGICAL = {
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}
BATCHED_B = random(3, 12, seed=1)

CASES = [
    *(Case(op, [VALUES], function) for op, function in UNARY.items()),
    *(Case(op, [FINITE], function) for op, function in UNARY_FINITE.items()),
    *(Case(op, [WHOLE], UNARY[op], label="i64") for op in ("relu", "neg", "abs", "sign", "square")),
    Case("logical_not", [booleans(2, 5)], torch.logical_not),
    Case("clamp", [VALUES], lambda x: x.clamp(0, 6), {"lo": 0.0, "hi": 6.0}),
    Case("clamp", [VALUES], lambda x: x.clamp(min=0.25), {"lo": 0.25}, label="one side"),
    Case("clamp", [WHOLE], lambda x: x.clamp(max=1), {"hi": 1.0}, label="i64"),
    Case("leaky_relu", [VALUES], lambda x: F.leaky_relu(x, 0.2), {"slope": 0.2}),
    Case("elu", [VALUES], lambda x: F.elu(x, 0.7), {"alpha": 0.7}),
    Case("gelu", [FINITE], F.gelu),
    Case("gelu", [FINITE], lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}, label="tanh"),
    *(
        Case("pow_scalar", [VALUES], lambda x, e=e: torch.pow(x, e), {"exponent": e}, label=str(e))
        for e in (2.0, 0.5, -1.0, 3.0, 0.0)
    ),
    Case("cast", [FINITE], lambda x: x.to(torch.int64), {"dtype": "i64"}, label="f32 to i64"),
    Case("cast", [VALUES], lambda x: x.to(torch.bool), {"dtype": "bool"}, label="f32 to bool"),
    Case("cast", [booleans(2, 5)], lambda x: x.to(torch.float32), {"dtype": "f32"}, label="bool to f32"),
    Case("cast", [WHOLE], lambda x: x.to(torch.float32), {"dtype": "f32"}, label="i64 to f32"),
    *(Case(op, [VALUES, BATCHED_B], function) for op, function in BINARY.items()),
    *(Case(op, [VALUES, VALUES[:, ::-1]], function, label="special") for op, function in BINARY.items()),
    *(
        Case(op, [WHOLE, WHOLE[:, ::-1] * 2 + 1], BINARY[op], label="i64")
        for op in ("add", "sub", "mul", "maximum", "minimum", "remainder", "floor_divide", "eq", "ne", "lt", "le")
    ),
    *(Case(op, [booleans(3, 8), booleans(3, 8, seed=1)], function) for op, function in LOGICAL.items()),
    Case("eq", [booleans(3, 8), booleans(3, 8, seed=1)], torch.eq, label="bool"),
    Case("mul", [random(2, 3, 4, 5), random(2, 3, 1, 1)], torch.mul, label="gate"),
    Case("add", [random(2, 3, 4), np.float32(2.0)], torch.add, {}, constants(1), "scalar"),
    Case("sub", [random(5), random(2, 3, 5)], torch.sub, {}, constants(0), "constant first"),
    Case(
        "where",
        [booleans(2, 3, 1, 1), random(2, 3, 4, 5), np.float32(0.0)],
        torch.where,
        {},
        constants(2),
        "masked_fill",
    ),
    Case("where", [VALUES > 0, VALUES, BATCHED_B], torch.where),
    Case("where", [WHOLE > 0, WHOLE, -WHOLE], torch.where, label="i64"),
    Case(
        "affine",
        [random(2, 3, 4, 5), random(3), random(3, seed=1)],
        lambda x, a, b: x * a[:, None, None] + b[:, None, None],
        {},
        constants(1, 2),
        "map",
    ),
    Case("affine", [random(2, 3), random(3), random(3, seed=1)], lambda x, a, b: x * a + b, {}, constants(1, 2)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case):
    check_against_torch(case)


def test_affine_is_an_evaluated_batch_norm():
    x, weight, bias, mean = random(2, 3, 4, 5), random(3), random(3, seed=1), random(3, seed=2)
    variance = np.square(random(3, seed=3)) + np.float32(0.1)
    scale = weight / np.sqrt(variance + np.float32(1e-5))
    (out,) = OPERATORS["affine"].compute([x, scale, bias - mean * scale], {})
    expected = F.batch_norm(*(torch.from_numpy(a) for a in (x, mean, variance, weight, bias)))
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    value=st.floats(width=32),
    other=st.floats(width=32),
    op=st.sampled_from([op for op in BINARY if op not in ("pow", "remainder", "floor_divide")]),
)
def test_binary_bits(value, other, op):
    """Basic arithmetic and comparison agree with torch on every pair of numbers, bit for bit."""
    a, b = np.array([value], np.float32), np.array([other], np.float32)
    (out,) = OPERATORS[op].compute([a, b], {})
    expected = BINARY[op](torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_array_equal(out, expected)


@settings(max_examples=60, deadline=None)
@given(a=st.integers(-1000, 1000), b=st.integers(-50, 50).filter(bool))
def test_integer_division_follows_the_divisor(a, b):
    operands = [np.array([a]), np.array([b])]
    assert OPERATORS["remainder"].compute(operands, {})[0][0] == a % b
    assert OPERATORS["floor_divide"].compute(operands, {})[0][0] == a // b


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_broadcasting(data):
    """Right-aligned, as numpy; the batch of either operand stays in front."""
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    other = [d if data.draw(st.booleans()) else 1 for d in shape]
    constant = other[data.draw(st.integers(1, len(shape))) :]
    batched = [2, *shape[1:]]
    check_against_torch(Case("add", [random(*batched), random(2, *other[1:], seed=1)], torch.add))
    check_against_torch(Case("add", [random(*batched), random(*constant, seed=1)], torch.add, {}, constants(1)))


@pytest.mark.parametrize(
    ("op", "types", "message"),
    [
        ("add", [("f32", (-1, 4, 2, 2)), ("f32", (-1, 4))], "the batch meets another dimension"),
        ("add", [("f32", (-1, 4)), ("f32", (-1, 3))], "sizes 4 and 3 differ"),
        ("add", [("f32", (-1, 4)), ("f32", (2, 4))], "the batch meets another dimension"),
        ("add", [("f32", (-1, 4)), ("f32", (1, 1, 4))], "batch would not be the first"),
        ("add", [("f32", (-1, 4)), ("i64", (-1, 4))], "the second operand is"),
        ("mul", [("bool", (-1, 4)), ("bool", (-1, 4))], r"expected f32 or i64 \(insert a cast\)"),
        ("logical_and", [("f32", (-1, 4)), ("bool", (-1, 4))], "expected bool"),
        ("div", [("i64", (-1, 4)), ("i64", (-1, 4))], "expected f32"),
        ("sigmoid", [("i64", (-1, 4))], "expected f32"),
        ("logical_not", [("f32", (-1, 4))], "expected bool"),
        ("where", [("f32", (-1, 4)), ("f32", (-1, 4)), ("f32", (-1, 4))], "the condition is"),
        ("where", [("bool", (-1, 4)), ("f32", (-1, 4)), ("i64", (-1, 4))], "the last operand is"),
        ("affine", [("f32", (-1, 4)), ("f32", (3,)), ("f32", (4,))], "the scale is"),
        ("affine", [("f32", (-1,)), ("f32", (1,)), ("f32", (1,))], "has no channel dimension"),
    ],
)
def test_refuses(op, types, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS[op].infer_types([TensorType(*t) for t in types], {})


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("clamp", {"lo": math.nan}, "expected a number, got nan"),
        ("clamp", {"lo": True}, "expected a number, got True"),
        ("clamp", {"lo": 10**400}, "out of range"),
        ("leaky_relu", {"slope": math.inf}, "expected a finite number"),
        ("gelu", {"approximate": "fast"}, "expected one of none, tanh"),
        ("cast", {"dtype": "f16"}, "expected one of f32, i64, bool"),
        ("pow_scalar", {}, "needs attribute 'exponent'"),
        ("relu", {"inplace": True}, "has no attribute 'inplace'; it has none"),
    ],
)
def test_refuses_attributes(op, attrs, message):
    with pytest.raises(VerificationError, match=message):
        OPERATORS[op].infer_types([TensorType("f32", (-1, 4))], attrs)


def test_integers_of_any_size_stay_exact():
    x = integers(9, 2, 5) + 2**60
    np.testing.assert_array_equal(OPERATORS["clamp"].compute([x], {"lo": 0.0})[0], x)
    np.testing.assert_array_equal(OPERATORS["clamp"].compute([-x], {"hi": -0.5})[0], -x)
