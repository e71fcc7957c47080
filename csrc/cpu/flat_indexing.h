// Flat operators with index operands. An index outside its dimension never touches memory: what it
// would read is NaN, what it would write is dropped.
#pragma once

#include "flat_shape.h"

namespace dynprune::cpu {
namespace {

// Position of an index in [0, size), or -1; false for NaN.
DYNPRUNE_INLINE int64_t checked_index(float index, int64_t size) {
  return index >= 0.0f && index < static_cast<float>(size) ? static_cast<int64_t>(index) : -1;
}

// ints: size and stride of the indexed dimension in x, loop nest of x (stride 0 in that dimension), index.
void flat_gather(const FlatCall& call) {
  IntReader ints(call);
  const int64_t size = ints.next(), step = ints.next();
  const LoopNest<2> nest(ints);
  float* y = call.out[0].data;
  for_each_inner(nest, [&](const int64_t (&offset)[2]) {
    for (int64_t i = 0; i < nest.inner_size(); ++i) {
      const int64_t at = checked_index(call.in[1].data[offset[1] + i * nest.inner_stride(1)], size);
      *y++ = at < 0 ? __builtin_nanf("") : call.in[0].data[offset[0] + i * nest.inner_stride(0) + at * step];
    }
  });
}

// y = x, then y[.., index[..], ..] = source[..]; of several entries for one place the last wins.
// ints: n of x, size and stride of the indexed dimension, loop nest of y (stride 0 in that
// dimension), index, source.
void flat_scatter(const FlatCall& call) {
  IntReader ints(call);
  const int64_t n = ints.next(), size = ints.next(), step = ints.next();
  const LoopNest<3> nest(ints);
  float* y = call.out[0].data;
  copy_floats(n, call.in[0].data, y);
  for_each_inner(nest, [&](const int64_t (&offset)[3]) {
    for (int64_t i = 0; i < nest.inner_size(); ++i) {
      const int64_t at = checked_index(call.in[1].data[offset[1] + i * nest.inner_stride(1)], size);
      if (at < 0) continue;
      y[offset[0] + i * nest.inner_stride(0) + at * step] = call.in[2].data[offset[2] + i * nest.inner_stride(2)];
    }
  });
}

// x[outer][size][inner], index[n] -> y[outer][n][inner]. ints: outer, size, inner, n.
void flat_index_select(const FlatCall& call) {
  const int64_t outer = call.ints[0], size = call.ints[1], inner = call.ints[2], n = call.ints[3];
  const float* index = call.in[1].data;
  float* y = call.out[0].data;
  for (int64_t o = 0; o < outer; ++o) {
    const float* x = call.in[0].data + o * size * inner;
    for (int64_t i = 0; i < n; ++i, y += inner) {
      const int64_t at = checked_index(index[i], size);
      if (at < 0) {
        fill_floats(inner, __builtin_nanf(""), y);
      } else if (inner == 1) {
        *y = x[at];
      } else {
        copy_floats(inner, x + at * inner, y);
      }
    }
  }
}

// ints: n, classes.
void flat_one_hot(const FlatCall& call) {
  const int64_t n = call.ints[0], classes = call.ints[1];
  float* y = call.out[0].data;
  fill_floats(n * classes, 0.0f, y);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = checked_index(call.in[0].data[i], classes);
    if (at >= 0) y[i * classes + at] = 1.0f;
  }
}

}  // namespace
}  // namespace dynprune::cpu
