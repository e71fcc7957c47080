"""ATen operators that act element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dynprune_rt.frontend.operands import BatchIndex, Known
from dynprune_rt.frontend.promotion import TORCH_DTYPES, dtype_of, promoted
from dynprune_rt.frontend.registry import Handler, Unsupported, aten
from dynprune_rt.ir.graph import Value

if TYPE_CHECKING:
    from dynprune_rt.frontend.translate import Translation

# ---- unary ------------------------------------------------------------------------------------

_FLOAT_UNARY = (
    *("sqrt", "rsqrt", "exp", "log", "reciprocal", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "mish"),
    *("erf", "sin", "cos", "round", "floor", "ceil", "trunc"),
)
_NUMERIC_UNARY = ("relu", "neg", "abs", "sign", "square")


def _float_unary(op: str) -> Handler:
    def handler(t: Translation, x: Value) -> Value:
        if op in ("round", "floor", "ceil", "trunc") and x.type.dtype == "i64":
            return x
        return t.op(op, t.value(x, "f32"))

    return handler


def _numeric_unary(op: str) -> Handler:
    return lambda t, x: t.op(op, x)


for _op in _FLOAT_UNARY:
    aten(f"{_op}.default")(_float_unary(_op))
for _op in _NUMERIC_UNARY:
    aten(f"{_op}.default")(_numeric_unary(_op))
aten("sgn.default")(_numeric_unary("sign"))


@aten("isnan.default")
def _isnan(t: Translation, x: Value) -> Value:
    return t.op("isnan", t.value(x, "f32"))


@aten("isinf.default")
def _isinf(t: Translation, x: Value) -> Value:
    return t.op("eq", t.op("abs", t.value(x, "f32")), t.constant(math.inf))


@aten("logical_not.default")
def _logical_not(t: Translation, x: Value) -> Value:
    return t.op("logical_not", t.value(x, "bool"))


@aten("bitwise_not.default")
def _bitwise_not(t: Translation, x: Value) -> Value:
    _require_bool(x)
    return t.op("logical_not", x)


def clamped(t: Translation, x: Value, low: float, high: float) -> Value:
    """clamp, or relu where it is one. As in torch, bounds that cross give the upper one everywhere."""
    if (low, high) == (0.0, math.inf):
        return t.op("relu", x)
    if (low, high) == (-math.inf, math.inf):
        return x
    return t.op("clamp", x, lo=min(float(low), float(high)), hi=float(high))


@aten("clamp.default")
def _clamp(t: Translation, x: Value, low: Any = None, high: Any = None) -> Value:
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    return clamped(t, t.value(x, t.result.dtype), low, high)


@aten("clamp.Tensor")
def _clamp_tensor(t: Translation, x: Value, low: Any = None, high: Any = None) -> Value:
    dtype = t.result.dtype
    x = t.value(x, dtype)
    if low is not None:
        x = t.op("maximum", x, t.value(low, dtype))
    return x if high is None else t.op("minimum", x, t.value(high, dtype))


@aten("clamp_min.default")
def _clamp_min(t: Translation, x: Value, low: float) -> Value:
    return _clamp(t, x, low, None)


@aten("clamp_max.default")
def _clamp_max(t: Translation, x: Value, high: float) -> Value:
    return _clamp(t, x, None, high)


@aten("clamp_min.Tensor")
def _clamp_min_tensor(t: Translation, x: Value, low: Any) -> Value:
    return _clamp_tensor(t, x, low, None)


@aten("clamp_max.Tensor")
def _clamp_max_tensor(t: Translation, x: Value, high: Any) -> Value:
    return _clamp_tensor(t, x, None, high)


@aten("hardtanh.default")
def _hardtanh(t: Translation, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return clamped(t, x, low, high)


@aten("relu6.default")
def _relu6(t: Translation, x: Value) -> Value:
    return clamped(t, x, 0.0, 6.0)


@aten("leaky_relu.default")
def _leaky_relu(t: Translation, x: Value, slope: float = 0.01) -> Value:
    return t.op("leaky_relu", x, slope=float(slope))


@aten("elu.default")
def _elu(t: Translation, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if input_scale != 1:
        raise Unsupported(f"has input_scale {input_scale}; only 1 is supported")
    y = t.op("elu", x, alpha=float(alpha))
    return y if scale == 1 else t.op("mul", y, t.constant(scale))


@aten("selu.default")
def _selu(t: Translation, x: Value) -> Value:
    return _elu(t, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@aten("celu.default")
def _celu(t: Translation, x: Value, alpha: float = 1.0) -> Value:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1)) = alpha * elu(x / alpha)."""
    if alpha == 1:
        return t.op("elu", x, alpha=1.0)
    return t.op("mul", t.op("elu", t.op("div", x, t.constant(alpha)), alpha=1.0), t.constant(alpha))


@aten("gelu.default")
def _gelu(t: Translation, x: Value, approximate: str = "none") -> Value:
    return t.op("gelu", x, approximate=approximate)


@aten("softplus.default")
def _softplus(t: Translation, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if threshold != 20:
        raise Unsupported(f"has threshold {threshold}; only torch's default 20 is supported")
    if beta == 1:
        return t.op("softplus", x)
    return t.op("div", t.op("softplus", t.op("mul", x, t.constant(beta))), t.constant(beta))


@aten("threshold.default")
def _threshold(t: Translation, x: Value, threshold: float, value: float) -> Value:
    if threshold == 0 and value == 0:
        return t.op("relu", x)
    dtype = x.type.dtype
    return t.op("where", t.op("le", x, t.constant(threshold, dtype)), t.constant(value, dtype), x)


@aten("prelu.default")
def _prelu(t: Translation, x: Value, weight: Any) -> Value:
    slope = t.weight(weight, "slope")
    assert slope is not None
    if slope.size > 1:
        slope = slope.reshape(-1, *[1] * (x.type.rank - 2))
    negative = t.op("mul", t.op("clamp", x, hi=0.0), t.constant(slope if slope.size > 1 else slope.item()))
    return t.op("add", t.op("relu", x), negative)


# ---- identities and casts ---------------------------------------------------------------------


@aten("alias.default", "detach.default", "clone.default", "contiguous.default", "lift_fresh_copy.default")
@aten("lift_fresh.default", "dropout.default", "feature_dropout.default", "alpha_dropout.default", "detach_.default")
def _identity(t: Translation, x: Any, *rest: Any, **kwargs: Any) -> Any:
    """Dropout arrives here in eval mode only: in training mode it draws random numbers, which is refused."""
    return x


@aten("native_dropout.default")
def _native_dropout(t: Translation, x: Value, *rest: Any) -> tuple[Any, ...]:
    return x, None


@aten("_to_copy.default", "to.dtype")
def _to_copy(t: Translation, x: Any, *rest: Any, **kwargs: Any) -> Any:
    return x if isinstance(x, BatchIndex) else t.value(x, t.result.dtype)


@aten("copy.default")
def _copy(t: Translation, x: Any, source: Any, non_blocking: bool = False) -> Any:
    """The value of ``source`` in the type and shape of ``x``."""
    result = t.result
    if isinstance(source, Known):
        tensor = source.tensor.to(TORCH_DTYPES[result.dtype])
        return Known(tensor.expand(1, *result.shape[1:]), batched=True)
    y = t.value(source, result.dtype)
    return y if y.type == result else t.op("expand", y, shape=result.shape)


# ---- binary -----------------------------------------------------------------------------------


def _arithmetic(op: str, on_bool: str | None = None) -> Handler:
    def handler(t: Translation, a: Any, b: Any, *, alpha: Any = 1) -> Value:
        if alpha != 1:
            dtype = promoted(b, alpha)
            b = t.op("mul", t.value(b, dtype), t.value(alpha, dtype))
        dtype = promoted(a, b)
        if dtype == "bool":
            if on_bool is None:
                raise Unsupported("is not defined on bool operands")
            return t.op(on_bool, t.value(a), t.value(b))
        return t.op(op, t.value(a, dtype), t.value(b, dtype))

    return handler


for _op, _on_bool in (("add", "logical_or"), ("sub", None), ("mul", "logical_and")):
    aten(f"{_op}.Tensor", f"{_op}.Scalar")(_arithmetic(_op, _on_bool))
for _op, _on_bool in (("maximum", "logical_or"), ("minimum", "logical_and")):
    aten(f"{_op}.default")(_arithmetic(_op, _on_bool))
for _op in ("remainder", "floor_divide"):
    aten(f"{_op}.Tensor", f"{_op}.Scalar", f"{_op}.default")(_arithmetic(_op))
aten("max.other")(_arithmetic("maximum", "logical_or"))
aten("min.other")(_arithmetic("minimum", "logical_and"))


@aten("rsub.Scalar", "rsub.Tensor")
def _rsub(t: Translation, a: Any, b: Any, alpha: Any = 1) -> Value:
    return _arithmetic("sub")(t, b, a, alpha=alpha)  # type: ignore[no-any-return]


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor")
def _div(t: Translation, a: Any, b: Any) -> Value:
    return t.op("div", t.value(a, "f32"), t.value(b, "f32"))


@aten("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(t: Translation, a: Any, b: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return _div(t, a, b)
    dtype = t.result.dtype
    if rounding_mode == "floor":
        return t.op("floor_divide", t.value(a, dtype), t.value(b, dtype))
    if dtype != "f32":
        raise Unsupported("divides integers with rounding_mode='trunc'; use 'floor'")
    return t.op("trunc", _div(t, a, b))


@aten("pow.Tensor_Scalar")
def _pow_scalar(t: Translation, x: Value, exponent: float) -> Value:
    if exponent == 2:
        return t.op("square", t.value(x, t.result.dtype))
    x = t.value(x, t.result.dtype)
    if x.type.dtype != "f32":
        raise Unsupported("raises integers to a power; cast to float first")
    if exponent == 1:
        return x
    if exponent in (0.5, -0.5, -1):
        return t.op({0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}[exponent], x)
    return t.op("pow_scalar", x, exponent=float(exponent))


@aten("pow.Tensor_Tensor", "pow.Scalar")
def _pow(t: Translation, base: Any, exponent: Any) -> Value:
    if isinstance(exponent, Known) and exponent.scalar is not None and not exponent.batched:
        return _pow_scalar(t, base, float(exponent.scalar))
    if t.result.dtype != "f32":
        raise Unsupported("raises integers to a power; cast to float first")
    return t.op("pow", t.value(base, "f32"), t.value(exponent, "f32"))


def _comparison(op: str) -> Handler:
    def handler(t: Translation, a: Any, b: Any) -> Value:
        dtype = promoted(a, b)
        return t.op(op, t.value(a, dtype), t.value(b, dtype))

    return handler


for _op in ("eq", "ne", "lt", "le", "gt", "ge"):
    aten(f"{_op}.Tensor", f"{_op}.Scalar")(_comparison(_op))


def _logical(op: str) -> Handler:
    return lambda t, a, b: t.op(op, t.value(a, "bool"), t.value(b, "bool"))


def _bitwise(op: str) -> Handler:
    def handler(t: Translation, a: Any, b: Any) -> Value:
        _require_bool(a)
        _require_bool(b)
        return t.op(op, t.value(a), t.value(b))

    return handler


def _require_bool(operand: Any) -> None:
    if dtype_of(operand) != "bool":
        raise Unsupported("is supported on bool operands only")


for _op in ("and", "or", "xor"):
    aten(f"logical_{_op}.default")(_logical(f"logical_{_op}"))
    aten(f"bitwise_{_op}.Tensor", f"bitwise_{_op}.Scalar")(_bitwise(f"logical_{_op}"))


# ---- three operands ---------------------------------------------------------------------------


@aten("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(t: Translation, condition: Any, a: Any, b: Any) -> Value:
    dtype = t.result.dtype
    return t.op("where", t.value(condition, "bool"), t.value(a, dtype), t.value(b, dtype))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(t: Translation, x: Any, mask: Any, value: Any) -> Value:
    return _where(t, mask, value, x)


@aten("addcmul.default")
def _addcmul(t: Translation, x: Any, a: Any, b: Any, *, value: Any = 1) -> Value:
    product = _arithmetic("mul")(t, a, b)
    return _arithmetic("add")(t, x, product, alpha=value)  # type: ignore[no-any-return]


@aten("addcdiv.default")
def _addcdiv(t: Translation, x: Any, a: Any, b: Any, *, value: Any = 1) -> Value:
    return _arithmetic("add")(t, x, _div(t, a, b), alpha=value)  # type: ignore[no-any-return]


@aten("lerp.Scalar", "lerp.Tensor")
def _lerp(t: Translation, a: Any, b: Any, weight: Any) -> Value:
    """a + weight * (b - a)."""
    step = _arithmetic("sub")(t, b, a)
    return _arithmetic("add")(t, a, _arithmetic("mul")(t, step, weight))  # type: ignore[no-any-return]
