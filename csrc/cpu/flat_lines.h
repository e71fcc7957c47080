// Flat operators along one dimension of x[outer][n][inner]: softmax, log_softmax, cumsum. Sums are
// double. ints: outer, n, inner. scratch: 2 n floats.
#pragma once

#include "kernels.h"
#include "vec_math.h"

namespace dynprune::cpu {
namespace {

// Calls body(x, y) with the first element of every line; elements are `inner` apart.
template <class Body>
DYNPRUNE_INLINE void for_each_line(const FlatCall& call, Body body) {
  const int64_t outer = call.ints[0], n = call.ints[1], inner = call.ints[2];
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t k = 0; k < inner; ++k) {
      const int64_t at = o * n * inner + k;
      body(call.in[0].data + at, call.out[0].data + at);
    }
  }
}

// line[i] = x[i * step] - maximum; returns the sum of exp(line[i]), which go to `exponential` (may be `line`).
DYNPRUNE_INLINE double shifted_exponentials(int64_t n, const float* x, int64_t step, float* line, float* exponential) {
  float top = x[0];
  for (int64_t i = 1; i < n; ++i) {
    if (x[i * step] > top) top = x[i * step];
  }
  for (int64_t i = 0; i < n; ++i) line[i] = x[i * step] - top;
  double sum = 0.0;
  for (int64_t i = 0; i < n; i += kLanes) {
    store_first(exponential + i, n - i, vec_exp(load_first(line + i, n - i)));
  }
  for (int64_t i = 0; i < n; ++i) sum += exponential[i];
  return sum;
}

void flat_softmax(const FlatCall& call) {
  const int64_t n = call.ints[1], step = call.ints[2];
  float* line = call.scratch;
  for_each_line(call, [=](const float* x, float* y) {
    const double sum = shifted_exponentials(n, x, step, line, line);
    for (int64_t i = 0; i < n; ++i) y[i * step] = static_cast<float>(line[i] / sum);
  });
}

void flat_log_softmax(const FlatCall& call) {
  const int64_t n = call.ints[1], step = call.ints[2];
  float* line = call.scratch;
  for_each_line(call, [=](const float* x, float* y) {
    const double log_sum = log(shifted_exponentials(n, x, step, line, line + n));
    for (int64_t i = 0; i < n; ++i) y[i * step] = static_cast<float>(line[i] - log_sum);
  });
}

void flat_cumsum(const FlatCall& call) {
  const int64_t n = call.ints[1], step = call.ints[2];
  for_each_line(call, [=](const float* x, float* y) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      sum += x[i * step];
      y[i * step] = static_cast<float>(sum);
    }
  });
}

}  // namespace
}  // namespace dynprune::cpu
