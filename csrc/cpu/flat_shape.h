// Flat operators that move elements: every reshape, permute, expand, repeat, slice and pad is one
// strided copy; cat is its own.
#pragma once

#include "strided_loop.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

DYNPRUNE_INLINE void fill_floats(int64_t n, float value, float* y) {
  const Vec v = broadcast(value);
  for (int64_t i = 0; i < n; i += kLanes) store_first(y + i, n - i, v);
}

DYNPRUNE_INLINE void copy_floats(int64_t n, const float* x, float* y) {
  for (int64_t i = 0; i < n; i += kLanes) store_first(y + i, n - i, load_first(x + i, n - i));
}

// Copies x to y through strides. ints: n of y to fill first (0 = none), offset into x, offset into y,
// loop nest of x, y. floats: the fill value.
void flat_copy(const FlatCall& call) {
  IntReader ints(call);
  const int64_t to_fill = ints.next();
  if (to_fill > 0) fill_floats(to_fill, call.floats[0], call.out[0].data);
  const float* x = call.in[0].data + ints.next();
  float* y = call.out[0].data + ints.next();
  const LoopNest<2> nest(ints);
  const int64_t n = nest.inner_size(), x_step = nest.inner_stride(0), y_step = nest.inner_stride(1);
  for_each_inner(nest, [&](const int64_t (&offset)[2]) {
    const float* source = x + offset[0];
    float* target = y + offset[1];
    if (x_step == 1 && y_step == 1) return copy_floats(n, source, target);
    for (int64_t i = 0; i < n; ++i) target[i * y_step] = source[i * x_step];
  });
}

// ints: outer, then per operand the contiguous floats of one outer index.
void flat_cat(const FlatCall& call) {
  const int64_t outer = call.ints[0];
  float* y = call.out[0].data;
  for (int64_t i = 0; i < outer; ++i) {
    for (int32_t k = 0; k < call.n_in; ++k) {
      const int64_t n = call.ints[1 + k];
      copy_floats(n, call.in[k].data + i * n, y);
      y += n;
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
