// Winograd transforms F(4, 4): four outputs of a filter with four taps from seven inputs, in one dimension.
//
// Points 0, 1, -1, 2, -2, 1/2 and infinity (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015;
// the matrices follow from the points by Lagrange interpolation). Their rounding error is that of F(4, 3) on
// 0, 1, -1, 2, -2 and infinity.
#pragma once

#include "vec.h"

namespace dynprune::cpu {
namespace {

constexpr int kStemTaps = 4;
constexpr int kStemOutputs = 4;
constexpr int kStemElements = kStemTaps + kStemOutputs - 1;

// out = B^T d; elements of d are `step` apart.
DYNPRUNE_INLINE void transform_stem_input(const Vec* d, int step, Vec* out) {
  const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step],
            d6 = d[6 * step];
  const Vec half = broadcast(0.5f), two = broadcast(2.0f), four = broadcast(4.0f), five = broadcast(5.0f);
  // N(x) = x (x^2 - 1) (x^2 - 4) (x - 1/2); a row is N without the factor of its point.
  const Vec outer = fma(four, d1, fnma(five, d3, d5));    // x (x^2 - 1) (x^2 - 4)
  const Vec inner = fma(four, d0, fnma(five, d2, d4));    // (x^2 - 1) (x^2 - 4)
  const Vec shifted = fma(four, d2, fnma(five, d4, d6));  // x^2 (x^2 - 1) (x^2 - 4)
  const Vec a = fnma(half, d3, d4), b = fnma(half, d1, d2), c = fnma(half, d4, d5), e = fnma(half, d2, d3);
  const Vec one = fnma(four, b, a), one_x = fnma(four, e, c);  // x (x^2 - 4) (x - 1/2), and times x
  const Vec far = sub(a, b), far_x = sub(c, e);                // x (x^2 - 1) (x - 1/2), and times x
  out[0] = fnma(half, inner, outer);
  out[1] = add(one_x, one);
  out[2] = sub(one_x, one);
  out[3] = fma(two, far, far_x);
  out[4] = fnma(two, far, far_x);
  out[5] = outer;
  out[6] = fnma(half, outer, shifted);
}

// out = A^T m; out `out_step` apart.
DYNPRUNE_INLINE void transform_stem_output(const Vec* m, Vec* out, int out_step) {
  const Vec sum12 = add(m[1], m[2]), difference12 = sub(m[1], m[2]);
  const Vec sum34 = add(m[3], m[4]), difference34 = sub(m[3], m[4]);
  out[0] = add(add(m[0], m[5]), add(sum12, sum34));
  out[out_step] = fma(broadcast(2.0f), difference34, fma(broadcast(0.5f), m[5], difference12));
  out[2 * out_step] = fma(broadcast(4.0f), sum34, fma(broadcast(0.25f), m[5], sum12));
  out[3 * out_step] = fma(broadcast(8.0f), difference34, add(m[6], fma(broadcast(0.125f), m[5], difference12)));
}

// out = G g for four taps.
inline void transform_stem_filter(const double* g, int step, double* out, int out_step) {
  constexpr double kPoint[] = {0, 1, -1, 2, -2, 0.5};
  constexpr double kScale[] = {-1.0 / 2, -1.0 / 3, 1.0 / 9, 1.0 / 36, -1.0 / 60, 32.0 / 45};  // 1 / N'(point)
  for (int i = 0; i < 6; ++i) {
    const double p = kPoint[i];
    out[i * out_step] = kScale[i] * (g[0] + p * (g[step] + p * (g[2 * step] + p * g[3 * step])));
  }
  out[6 * out_step] = g[3 * step];
}

}  // namespace
}  // namespace dynprune::cpu
