"""Operators that act element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dynprune_rt.ir.bfloat16 import from_bfloat16, to_bfloat16
from dynprune_rt.ir.operators import rules
from dynprune_rt.ir.operators.attributes import Attribute, choice, number
from dynprune_rt.ir.operators.registry import Arrays, Attrs, Channels, Operator, Types, register
from dynprune_rt.ir.types import DTYPES, TensorType

# ---- affine -----------------------------------------------------------------------------------


def _infer_affine(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, scale, shift = (rules.operand(types, i) for i in range(3))
    rules.require_dtype(x, rules.FLOAT, "the input")
    rules.require_vector(scale, x.channels, "the scale")
    rules.require_vector(shift, x.channels, "the shift")
    return (x,)


def _affine(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, scale, shift = arrays
    assert x is not None and scale is not None and shift is not None
    per_channel = (-1, *[1] * (x.ndim - 2))
    return (x * scale.reshape(per_channel) + shift.reshape(per_channel),)


register(Operator("affine", (3, 3), _infer_affine, _affine, Channels.POINTWISE, constant_operands=frozenset({1, 2})))

# ---- unary ------------------------------------------------------------------------------------

Function = Callable[[np.ndarray], np.ndarray]


def _unary(
    name: str,
    function: Callable[[np.ndarray, Attrs], np.ndarray],
    zero: bool | Callable[[Attrs], bool],
    dtypes: Sequence[str] = rules.FLOAT,
    result: str | None = None,
    attrs: dict[str, Attribute] | None = None,
) -> None:
    """Register f(x), of x's type or of dtype ``result``."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        x = rules.operand(types, 0)
        rules.require_dtype(x, dtypes)
        return (TensorType(result or x.dtype, x.shape),)

    def reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        (x,) = arrays
        assert x is not None
        return (np.asarray(function(x, attrs)).astype(DTYPES[result] if result else x.dtype),)

    register(Operator(name, (1, 1), infer, reference, Channels.POINTWISE, zero, attrs or {}))


def _double(function: Function) -> Callable[[np.ndarray, Attrs], np.ndarray]:
    """Evaluate in float64, so that the float32 result is the correctly rounded one."""
    return lambda x, attrs: function(x.astype(np.float64))


def _exactly(function: Function) -> Callable[[np.ndarray, Attrs], np.ndarray]:
    """Evaluate in the operand's own type: the function is exact or correctly rounded there."""
    return lambda x, attrs: function(x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _softplus(x: np.ndarray) -> np.ndarray:
    """torch's softplus with beta 1 and threshold 20."""
    return np.where(x > 20.0, x, np.log1p(np.exp(np.minimum(x, 20.0))))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _relu6(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(x, 0.0, 6.0))


def _gelu(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    x = x.astype(np.float64)
    if attrs["approximate"] == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _sign(x: np.ndarray) -> np.ndarray:
    return np.subtract(x > 0, x < 0, dtype=x.dtype)  # NaN gives 0, as in torch


def _clamp(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    low, high = attrs["lo"], attrs["hi"]
    if x.dtype == np.int64:  # stay in integers: float64 does not hold all of them
        limits = np.iinfo(np.int64)
        lowest = limits.min if low <= limits.min else math.ceil(min(low, limits.max))
        highest = limits.max if high >= limits.max else math.floor(max(high, limits.min))
        return np.asarray(np.minimum(np.maximum(x, lowest), highest), np.int64)
    return np.asarray(np.clip(x, np.float32(low), np.float32(high)))


_unary("relu", _exactly(lambda x: np.maximum(x, x.dtype.type(0))), True, rules.NUMERIC)
_unary("neg", _exactly(np.negative), True, rules.NUMERIC)
_unary("abs", _exactly(np.abs), True, rules.NUMERIC)
_unary("sign", _exactly(_sign), True, rules.NUMERIC)
_unary("square", _exactly(np.square), True, rules.NUMERIC)
_unary("sqrt", _exactly(np.sqrt), True)
_unary("rsqrt", _double(lambda x: 1.0 / np.sqrt(x)), False)
_unary("exp", _double(np.exp), False)
_unary("log", _double(np.log), False)
_unary("reciprocal", _double(lambda x: 1.0 / x), False)
_unary("sigmoid", _double(_sigmoid), False)
_unary("tanh", _double(np.tanh), True)
_unary("silu", _double(lambda x: x * _sigmoid(x)), True)
_unary("hardswish", _double(lambda x: x * _relu6(x + 3.0) / 6.0), True)
_unary("hardsigmoid", _double(lambda x: _relu6(x + 3.0) / 6.0), False)
_unary("mish", _double(lambda x: x * np.tanh(_softplus(x))), True)
_unary("softplus", _double(_softplus), False)
_unary("erf", _double(_erf), True)
_unary("sin", _double(np.sin), True)
_unary("cos", _double(np.cos), False)
_unary("round", _exactly(np.rint), True)  # half to even
_unary("floor", _exactly(np.floor), True)
_unary("ceil", _exactly(np.ceil), True)
_unary("trunc", _exactly(np.trunc), True)
_unary("logical_not", _exactly(np.logical_not), False, rules.BOOL)
_unary("isnan", _exactly(np.isnan), True, result="bool")

_unary(
    "clamp",
    _clamp,
    lambda attrs: attrs["lo"] <= 0.0 <= attrs["hi"],
    rules.NUMERIC,
    attrs={"lo": Attribute(number(finite=False), -math.inf), "hi": Attribute(number(finite=False), math.inf)},
)
_unary(
    "leaky_relu",
    lambda x, attrs: np.where(x > 0, x, x * np.float32(attrs["slope"])),
    True,
    attrs={"slope": Attribute(number(), 0.01)},
)
_unary(
    "elu",
    lambda x, attrs: np.where(x > 0, x, attrs["alpha"] * np.expm1(np.minimum(x, 0), dtype=np.float64)),
    True,
    attrs={"alpha": Attribute(number(), 1.0)},
)
_unary("gelu", _gelu, True, attrs={"approximate": Attribute(choice("none", "tanh"), "none")})
_unary(
    "pow_scalar",
    lambda x, attrs: np.power(x.astype(np.float64), attrs["exponent"]),
    lambda attrs: attrs["exponent"] > 0,
    attrs={"exponent": Attribute(number())},
)


def _infer_cast(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = rules.operand(types, 0)
    if "bf16" in (x.dtype, attrs["dtype"]):
        rules.require_map_of(x, ("f32",) if attrs["dtype"] == "bf16" else ("bf16",))
        rules.require_dtype(TensorType(attrs["dtype"], x.shape), ("f32", "bf16"), "the result")
    else:
        rules.require_dtype(x, rules.ANY)
    return (TensorType(attrs["dtype"], x.shape),)


def _cast(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """f32 to i64 truncates; anything to bool is ``!= 0`` (NaN is true); maps only become bf16, and f32 again."""
    (x,) = arrays
    assert x is not None
    if attrs["dtype"] == "bf16":
        return (to_bfloat16(x),)
    if x.dtype == DTYPES["bf16"]:
        return (from_bfloat16(x),)
    return (x.astype(DTYPES[attrs["dtype"]]),)


register(
    Operator(
        "cast",
        (1, 1),
        _infer_cast,
        _cast,
        Channels.POINTWISE,
        True,
        attrs={"dtype": Attribute(choice(*rules.ANY, "bf16"))},
    )
)

# ---- binary -----------------------------------------------------------------------------------


def _binary(
    name: str,
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    zero: bool,
    dtypes: Sequence[str],
    result: str | None = None,
) -> None:
    """Register f(a, b) with broadcasting, of the operands' dtype or of dtype ``result``."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        a, b = rules.operand(types, 0), rules.operand(types, 1)
        rules.require_dtype(a, dtypes, "the first operand")
        rules.require_dtype(b, (a.dtype,), "the second operand")
        return (TensorType(result or a.dtype, rules.broadcast([a, b])),)

    def reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        a, b = arrays
        assert a is not None and b is not None
        return (np.asarray(function(a, b)).astype(DTYPES[result] if result else a.dtype),)

    register(Operator(name, (2, 2), infer, reference, Channels.POINTWISE, zero))


_binary("add", np.add, True, rules.NUMERIC)
_binary("sub", np.subtract, True, rules.NUMERIC)
_binary("mul", np.multiply, True, rules.NUMERIC)
_binary("div", np.divide, False, rules.FLOAT)  # 0 / 0 is NaN
_binary("maximum", np.maximum, True, rules.NUMERIC)
_binary("minimum", np.minimum, True, rules.NUMERIC)
_binary("pow", lambda a, b: np.power(a.astype(np.float64), b.astype(np.float64)), False, rules.FLOAT)
_binary("remainder", np.remainder, False, rules.NUMERIC)  # sign of the divisor
_binary("floor_divide", np.floor_divide, False, rules.NUMERIC)
_binary("eq", np.equal, False, rules.ANY, "bool")
_binary("ne", np.not_equal, True, rules.ANY, "bool")
_binary("lt", np.less, True, rules.ANY, "bool")
_binary("le", np.less_equal, False, rules.ANY, "bool")
_binary("gt", np.greater, True, rules.ANY, "bool")
_binary("ge", np.greater_equal, False, rules.ANY, "bool")
_binary("logical_and", np.logical_and, True, rules.BOOL)
_binary("logical_or", np.logical_or, True, rules.BOOL)
_binary("logical_xor", np.logical_xor, True, rules.BOOL)

# ---- selection --------------------------------------------------------------------------------


def _infer_where(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    condition, a, b = (rules.operand(types, i) for i in range(3))
    rules.require_dtype(condition, rules.BOOL, "the condition")
    rules.require_dtype(b, (a.dtype,), "the last operand")
    return (TensorType(a.dtype, rules.broadcast([condition, a, b])),)


def _where(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    condition, a, b = arrays
    assert condition is not None and a is not None and b is not None
    return (np.where(condition, a, b),)


register(Operator("where", (3, 3), _infer_where, _where, Channels.POINTWISE, zero_preserving=True))
