// exp, expm1, tanh, sigmoid and erf on `Vec`, accurate to a few units in the last place. Each lane is
// computed alone, so a value's result does not depend on its position. The polynomials are minimax
// fits over the stated intervals.
#pragma once

#include "vec_select.h"

namespace dynprune::cpu {
namespace {

// x = n ln 2 + r with |r| <= ln(2) / 2; gives n and exp(r) - 1.
DYNPRUNE_INLINE Vec exp_reduced_minus_one(Vec x, Vec& n) {
  n = round_even(mul(x, broadcast(1.44269504f)));
  // ln 2 in two parts; n times the first is exact, with or without a fused multiply-add.
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec q = broadcast(1.3950475e-3f);
  q = fma(q, r, broadcast(8.368882e-3f));
  q = fma(q, r, broadcast(4.1666206e-2f));
  q = fma(q, r, broadcast(1.666652e-1f));
  q = fma(q, r, broadcast(0.5f));
  return fma(mul(r, r), q, r);
}

// Below -104 the result is 0, above 89 it is infinite; NaN passes.
DYNPRUNE_INLINE Vec vec_exp(Vec x) {
  Vec n;
  const Vec p = exp_reduced_minus_one(clamp(broadcast(-104.0f), broadcast(89.0f), x), n);
  return scale_by_power(add(p, broadcast(1.0f)), n);
}

DYNPRUNE_INLINE Vec vec_expm1(Vec x) {
  Vec n;
  const Vec p = exp_reduced_minus_one(clamp(broadcast(-30.0f), broadcast(89.0f), x), n);
  const Vec power = scale_by_power(broadcast(1.0f), n);
  return select(less(broadcast(88.0f), x), vec_exp(x), fma(p, power, sub(power, broadcast(1.0f))));
}

DYNPRUNE_INLINE Vec negate(Vec x) { return sub(broadcast(-0.0f), x); }

DYNPRUNE_INLINE Vec vec_sigmoid(Vec x) {
  const Vec one = broadcast(1.0f);
  return div(one, add(one, vec_exp(negate(x))));
}

DYNPRUNE_INLINE Vec vec_tanh(Vec x) {
  const Vec t = abs(x), z = mul(x, x), one = broadcast(1.0f);
  Vec p = broadcast(-5.906341e-3f);  // |x| <= 0.6
  p = fma(p, z, broadcast(2.0805825e-2f));
  p = fma(p, z, broadcast(-5.378683e-2f));
  p = fma(p, z, broadcast(1.333196e-1f));
  p = fma(p, z, broadcast(-3.33333e-1f));
  const Vec small = fma(mul(p, z), x, x);
  const Vec large = sub(one, div(broadcast(2.0f), add(vec_exp(add(t, t)), one)));
  return select(less(t, broadcast(0.6f)), small, select(less(x, zero()), negate(large), large));
}

DYNPRUNE_INLINE Vec vec_erf(Vec x) {
  const Vec t = abs(x), z = mul(x, x);
  Vec p = broadcast(7.8891215e-5f);  // erf(x) / x for |x| <= 1
  p = fma(p, z, broadcast(-8.020842e-4f));
  p = fma(p, z, broadcast(5.189535e-3f));
  p = fma(p, z, broadcast(-2.6854444e-2f));
  p = fma(p, z, broadcast(1.12836e-1f));
  p = fma(p, z, broadcast(-3.7612626e-1f));
  p = fma(p, z, broadcast(1.1283791f));
  const Vec s = min(broadcast(4.0f), t);
  Vec q = broadcast(1.959376e-4f);  // log(erfc(t)) for 0.92 <= t <= 4; erf(4) rounds to 1
  q = fma(q, s, broadcast(-3.0432206e-3f));
  q = fma(q, s, broadcast(2.2226933e-2f));
  q = fma(q, s, broadcast(-1.0393162e-1f));
  q = fma(q, s, broadcast(-6.3718224e-1f));
  q = fma(q, s, broadcast(-1.1276757f));
  q = fma(q, s, broadcast(-1.9567243e-4f));
  const Vec large = sub(broadcast(1.0f), vec_exp(q));
  return select(less(t, broadcast(1.0f)), mul(p, x), select(less(x, zero()), negate(large), large));
}

}  // namespace
}  // namespace dynprune::cpu
