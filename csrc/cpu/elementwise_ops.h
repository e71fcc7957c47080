// The element functions behind `Unary` and `Binary`, shared by the planar and the flat kernels, so that
// both give the same bits. `keeps_zero`: f(0) or f(0, 0) is +0, so pads need no mask.
#pragma once

#include "kernels.h"
#include "vec_math.h"

namespace dynprune::cpu {
namespace {

constexpr float kInfinity = __builtin_inff();

DYNPRUNE_INLINE Vec vec_square(Vec x) { return mul(x, x); }
DYNPRUNE_INLINE Vec vec_sign(Vec x) {
  return sub(as_float(less(zero(), x)), as_float(less(x, zero())));  // 0 for NaN, as torch
}
DYNPRUNE_INLINE Vec vec_hard_gate(Vec x) { return clamp(zero(), broadcast(6.0f), add(x, broadcast(3.0f))); }
DYNPRUNE_INLINE Vec vec_silu(Vec x) { return div(x, add(broadcast(1.0f), vec_exp(negate(x)))); }
// x * tanh(log(1 + e^x)) without the logarithm: with n = e^x (e^x + 2) it is x * n / (n + 2).
DYNPRUNE_INLINE Vec vec_mish(Vec x) {
  const Vec limit = broadcast(20.0f), two = broadcast(2.0f);
  const Vec e = vec_exp(min(limit, x));
  const Vec n = mul(e, add(e, two));
  return select(less(limit, x), x, mul(x, div(n, add(n, two))));
}
DYNPRUNE_INLINE Vec vec_softplus(Vec x) {
  const Vec limit = broadcast(20.0f);
  return select(less(limit, x), x, map_lanes(vec_exp(min(limit, x)), log1pf));
}
DYNPRUNE_INLINE Vec vec_gelu(Vec x) {
  return mul(mul(broadcast(0.5f), x), add(broadcast(1.0f), vec_erf(mul(x, broadcast(0.70710678f)))));
}
DYNPRUNE_INLINE Vec vec_gelu_tanh(Vec x) {
  const Vec cube = mul(mul(x, x), x);
  const Vec inner = mul(broadcast(0.79788456f), add(x, mul(broadcast(0.044715f), cube)));
  return mul(mul(broadcast(0.5f), x), add(broadcast(1.0f), vec_tanh(inner)));
}

float pow_scalar(float x, float y) { return powf(x, y); }

// Python's modulo: the sign of the divisor.
float remainder_scalar(float a, float b) {
  const float r = fmodf(a, b);
  return r != 0.0f && (r < 0.0f) != (b < 0.0f) ? r + b : r;
}

// Python's floor division, with torch's results for zero and infinite divisors.
float floor_divide_scalar(float a, float b) {
  if (b == 0.0f) return a / b;
  const float mod = fmodf(a, b);
  float quotient = (a - mod) / b;
  if (mod != 0.0f && (b < 0.0f) != (mod < 0.0f)) quotient -= 1.0f;
  if (quotient == 0.0f) return copysignf(0.0f, a / b);
  const float whole = floorf(quotient);
  return quotient - whole > 0.5f ? whole + 1.0f : whole;
}

// Calls body(f, keeps_zero) with the function object of `op`; f maps Vec to Vec.
template <class Body>
DYNPRUNE_INLINE void with_unary(Unary op, float a, float b, Body body) {
  const Vec va = broadcast(a), vb = broadcast(b);
  switch (op) {
    case Unary::kRelu:
      return body([](Vec x) { return max(zero(), x); }, true);
    case Unary::kClamp:
      return body([=](Vec x) { return clamp(va, vb, x); }, a <= 0.0f && b >= 0.0f);
    case Unary::kLeakyRelu:
      return body([=](Vec x) { return select(less(zero(), x), x, mul(va, x)); }, false);
    case Unary::kSigmoid:
      return body([](Vec x) { return vec_sigmoid(x); }, false);
    case Unary::kTanh:
      return body([](Vec x) { return vec_tanh(x); }, true);
    case Unary::kSilu:
      return body([](Vec x) { return vec_silu(x); }, true);
    case Unary::kHardswish:
      return body([](Vec x) { return mul(x, mul(vec_hard_gate(x), broadcast(1.0f / 6.0f))); }, true);
    case Unary::kHardsigmoid:
      return body([](Vec x) { return div(vec_hard_gate(x), broadcast(6.0f)); }, false);
    case Unary::kMish:
      return body([](Vec x) { return vec_mish(x); }, true);
    case Unary::kSoftplus:
      return body([](Vec x) { return vec_softplus(x); }, false);
    case Unary::kElu:
      return body([=](Vec x) { return select(less(x, zero()), mul(va, vec_expm1(x)), x); }, true);
    case Unary::kGelu:
      return body([](Vec x) { return vec_gelu(x); }, true);
    case Unary::kGeluTanh:
      return body([](Vec x) { return vec_gelu_tanh(x); }, true);
    case Unary::kNeg:
      return body([](Vec x) { return negate(x); }, false);
    case Unary::kAbs:
      return body([](Vec x) { return abs(x); }, true);
    case Unary::kSqrt:
      return body([](Vec x) { return vec_sqrt(x); }, true);
    case Unary::kRsqrt:
      return body([](Vec x) { return div(broadcast(1.0f), vec_sqrt(x)); }, false);
    case Unary::kExp:
      return body([](Vec x) { return vec_exp(x); }, false);
    case Unary::kLog:
      return body([](Vec x) { return map_lanes(x, logf); }, false);
    case Unary::kReciprocal:
      return body([](Vec x) { return div(broadcast(1.0f), x); }, false);
    case Unary::kRound:
      return body([](Vec x) { return round_even(x); }, true);
    case Unary::kFloor:
      return body([](Vec x) { return round_down(x); }, true);
    case Unary::kCeil:
      return body([](Vec x) { return round_up(x); }, true);
    case Unary::kTrunc:
    case Unary::kCastInt:
      return body([](Vec x) { return round_to_zero(x); }, true);
    case Unary::kSign:
      return body([](Vec x) { return vec_sign(x); }, true);
    case Unary::kNot:
      return body([](Vec x) { return as_float(equal(x, zero())); }, false);
    case Unary::kIsNan:
      return body([](Vec x) { return as_float(is_nan(x)); }, true);
    case Unary::kErf:
      return body([](Vec x) { return vec_erf(x); }, true);
    case Unary::kSquare:
      return body([](Vec x) { return vec_square(x); }, true);
    case Unary::kSin:
      return body([](Vec x) { return map_lanes(x, sinf); }, true);
    case Unary::kCos:
      return body([](Vec x) { return map_lanes(x, cosf); }, false);
    case Unary::kPowScalar:
      if (a == 2.0f) return body([](Vec x) { return vec_square(x); }, true);
      return body([=](Vec x) { return map_lanes(x, va, pow_scalar); }, false);
    case Unary::kAffine:
      return body([=](Vec x) { return add(mul(x, va), vb); }, false);
    case Unary::kCastBool:
      return body([](Vec x) { return as_float(not_equal(x, zero())); }, true);
  }
}

// Calls body(f, keeps_zero) with the function object of `op`; f maps two Vec to Vec.
template <class Body>
DYNPRUNE_INLINE void with_binary(Binary op, Body body) {
  switch (op) {
    case Binary::kAdd:
      return body([](Vec x, Vec y) { return add(x, y); }, true);
    case Binary::kSub:
      return body([](Vec x, Vec y) { return sub(x, y); }, true);
    case Binary::kMul:
      return body([](Vec x, Vec y) { return mul(x, y); }, true);
    case Binary::kDiv:
      return body([](Vec x, Vec y) { return div(x, y); }, false);
    case Binary::kMaximum:
      return body([](Vec x, Vec y) { return max_or_nan(x, y); }, true);
    case Binary::kMinimum:
      return body([](Vec x, Vec y) { return min_or_nan(x, y); }, true);
    case Binary::kPow:
      return body([](Vec x, Vec y) { return map_lanes(x, y, pow_scalar); }, false);
    case Binary::kRemainder:
      return body([](Vec x, Vec y) { return map_lanes(x, y, remainder_scalar); }, false);
    case Binary::kFloorDivide:
      return body([](Vec x, Vec y) { return map_lanes(x, y, floor_divide_scalar); }, false);
    case Binary::kEq:
      return body([](Vec x, Vec y) { return as_float(equal(x, y)); }, false);
    case Binary::kNe:
      return body([](Vec x, Vec y) { return as_float(not_equal(x, y)); }, true);
    case Binary::kLt:
      return body([](Vec x, Vec y) { return as_float(less(x, y)); }, true);
    case Binary::kLe:
      return body([](Vec x, Vec y) { return as_float(less_equal(x, y)); }, false);
    case Binary::kGt:
      return body([](Vec x, Vec y) { return as_float(less(y, x)); }, true);
    case Binary::kGe:
      return body([](Vec x, Vec y) { return as_float(less_equal(y, x)); }, false);
    case Binary::kAnd:
      return body([](Vec x, Vec y) { return as_float(mask_and(not_equal(x, zero()), not_equal(y, zero()))); }, true);
    case Binary::kOr:
      return body([](Vec x, Vec y) { return as_float(mask_or(not_equal(x, zero()), not_equal(y, zero()))); }, true);
    case Binary::kXor:
      return body([](Vec x, Vec y) { return as_float(mask_xor(not_equal(x, zero()), not_equal(y, zero()))); }, true);
  }
}

}  // namespace
}  // namespace dynprune::cpu
