// Dot products of one vector with rows of a matrix.
#pragma once

#include "kernels.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

constexpr int kRows = kLanes == 16 ? 8 : 4;  // outputs at once: enough independent sums to hide the FMA latency

// kN dot products of x with the rows at w. Lane l sums the c with c mod 16 == l, ascending, so the
// result of a row does not depend on kN.
template <int kN>
DYNPRUNE_INLINE void dot_rows(int32_t n, const float* w, const float* bias, const float* x, Clamp limits, float* y) {
  Vec acc[kN][kVecsPerBlock];
  DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
    DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) acc[r][v] = zero();
  }
  int32_t c = 0;
  for (; c + kBlock <= n; c += kBlock) {
    DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) {
      const Vec xv = load(x + c + v * kLanes);
      DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
        acc[r][v] = fma(load(w + int64_t{r} * n + c + v * kLanes), xv, acc[r][v]);
      }
    }
  }
  if (c < n) {
    DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) {
      const int32_t at = c + v * kLanes, left = n - at;
      if (left <= 0) break;
      const Vec xv = load_first(x + at, left);
      DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
        acc[r][v] = fma(load_first(w + int64_t{r} * n + at, left), xv, acc[r][v]);
      }
    }
  }
  DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
    float sum = fold_block(acc[r], [](Vec a, Vec b) { return add(a, b); });
    if (bias) sum += bias[r];
    sum = sum < limits.lo ? limits.lo : sum;
    y[r] = sum > limits.hi ? limits.hi : sum;
  }
}

DYNPRUNE_INLINE void matrix_vector(int32_t out_features, int32_t in_features, const float* weights, const float* bias,
                                   const float* x, Clamp limits, float* y) {
  int32_t k = 0;
  for (; k + kRows <= out_features; k += kRows) {
    dot_rows<kRows>(in_features, weights + int64_t{k} * in_features, bias ? bias + k : nullptr, x, limits, y + k);
  }
  for (; k < out_features; ++k) {
    dot_rows<1>(in_features, weights + int64_t{k} * in_features, bias ? bias + k : nullptr, x, limits, y + k);
  }
}

}  // namespace
}  // namespace dynprune::cpu
