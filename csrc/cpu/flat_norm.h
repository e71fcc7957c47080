// Normalizations with statistics of each image, in double precision.
#pragma once

#include <math.h>

#include "kernels.h"
#include "vec.h"

namespace dynprune::cpu {
namespace {

struct Moments {
  double mean, scale;  // scale = 1 / sqrt(variance + eps), biased variance
};

DYNPRUNE_INLINE Moments moments(int64_t n, const float* x, double eps) {
  double sum = 0.0, squares = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  const double mean = sum / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, 1.0 / sqrt(squares / static_cast<double>(n) + eps)};
}

// x[C][inner]; weight[C] and bias[C] if present. ints: groups, C, inner, has weight, has bias. floats: eps.
void flat_group_norm(const FlatCall& call) {
  const int64_t groups = call.ints[0], channels = call.ints[1], inner = call.ints[2];
  const float* weight = call.ints[3] ? call.in[1].data : nullptr;
  const float* bias = call.ints[4] ? call.in[call.ints[3] ? 2 : 1].data : nullptr;
  const int64_t per_group = channels / groups;
  for (int64_t g = 0; g < groups; ++g) {
    const float* x = call.in[0].data + g * per_group * inner;
    float* y = call.out[0].data + g * per_group * inner;
    const Moments m = moments(per_group * inner, x, call.floats[0]);
    for (int64_t i = 0; i < per_group; ++i) {
      const int64_t c = g * per_group + i;
      const double scale = m.scale * (weight ? weight[c] : 1.0), shift = bias ? bias[c] : 0.0;
      for (int64_t p = i * inner; p < (i + 1) * inner; ++p) {
        y[p] = static_cast<float>((x[p] - m.mean) * scale + shift);
      }
    }
  }
}

// x[rows][n]; weight[n] and bias[n] if present. ints: rows, n, has weight, has bias. floats: eps.
void flat_layer_norm(const FlatCall& call) {
  const int64_t rows = call.ints[0], n = call.ints[1];
  const float* weight = call.ints[2] ? call.in[1].data : nullptr;
  const float* bias = call.ints[3] ? call.in[call.ints[2] ? 2 : 1].data : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = call.in[0].data + r * n;
    float* y = call.out[0].data + r * n;
    const Moments m = moments(n, x, call.floats[0]);
    for (int64_t i = 0; i < n; ++i) {
      const double normal = (x[i] - m.mean) * m.scale;
      y[i] = static_cast<float>(normal * (weight ? weight[i] : 1.0) + (bias ? bias[i] : 0.0));
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
