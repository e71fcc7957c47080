// Matrix products of flat tensors.
#pragma once

#include "dot_rows.h"
#include "strided_loop.h"

namespace dynprune::cpu {
namespace {

// x[rows][C] -> y[rows][K] with weight[K][C], bias[K] if present. ints: rows, C, K, has bias. floats: clamp.
void flat_linear(const FlatCall& call) {
  const int64_t rows = call.ints[0], in_features = call.ints[1], out_features = call.ints[2];
  const float* bias = call.ints[3] ? call.in[2].data : nullptr;
  const Clamp limits = {call.floats[0], call.floats[1]};
  for (int64_t r = 0; r < rows; ++r) {
    matrix_vector(static_cast<int32_t>(out_features), static_cast<int32_t>(in_features), call.in[1].data, bias,
                  call.in[0].data + r * in_features, limits, call.out[0].data + r * out_features);
  }
}

// y[m][n] = sum_k a[m][k] * b[k][n], k ascending, for every index of the leading dimensions.
// ints: M, K, N, loop nest of a, b over the leading dimensions.
void flat_matmul(const FlatCall& call) {
  IntReader ints(call);
  const int64_t rows = ints.next(), inner = ints.next(), columns = ints.next();
  const LoopNest<2> nest(ints);
  float* y = call.out[0].data;
  for_each_inner(nest, [&](const int64_t (&offset)[2]) {
    for (int64_t i = 0; i < nest.inner_size(); ++i) {
      const float* a = call.in[0].data + offset[0] + i * nest.inner_stride(0);
      const float* b = call.in[1].data + offset[1] + i * nest.inner_stride(1);
      for (int64_t m = 0; m < rows; ++m, y += columns) {
        for (int64_t n = 0; n < columns; n += kLanes) {
          Vec acc = zero();
          for (int64_t k = 0; k < inner; ++k) {
            acc = fma(broadcast(a[m * inner + k]), load_first(b + k * columns + n, columns - n), acc);
          }
          store_first(y + n, columns - n, acc);
        }
      }
    }
  });
}

}  // namespace
}  // namespace dynprune::cpu
