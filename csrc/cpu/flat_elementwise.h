// Flat elementwise operators. Operands broadcast through strides; the innermost stride is 0 or 1.
#pragma once

#include "elementwise_ops.h"
#include "strided_loop.h"

namespace dynprune::cpu {
namespace {

// One operand along the innermost dimension: n values, or one value for all.
struct Run {
  const float* data;
  bool constant;
  Vec value;

  DYNPRUNE_INLINE Run(const float* p, int64_t stride) : data(p), constant(stride == 0), value(broadcast(*p)) {}
  DYNPRUNE_INLINE Vec full(int64_t i) const { return constant ? value : load(data + i); }
  DYNPRUNE_INLINE Vec first(int64_t i, int64_t n) const { return constant ? value : load_first(data + i, n); }
};

// ints: kind, n. floats: a, b.
void flat_unary(const FlatCall& call) {
  const int64_t n = call.ints[1];
  const float* x = call.in[0].data;
  float* y = call.out[0].data;
  with_unary(static_cast<Unary>(call.ints[0]), call.floats[0], call.floats[1], [=](auto f, bool) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(x + i)));
    if (i < n) store_first(y + i, n - i, f(load_first(x + i, n - i)));
  });
}

// ints: kind, loop nest of a, b (the result is contiguous).
void flat_binary(const FlatCall& call) {
  IntReader ints(call);
  const Binary kind = static_cast<Binary>(ints.next());
  const LoopNest<2> nest(ints);
  const int64_t n = nest.inner_size();
  with_binary(kind, [&](auto f, bool) {
    float* y = call.out[0].data;
    for_each_inner(nest, [&](const int64_t (&offset)[2]) {
      const Run a(call.in[0].data + offset[0], nest.inner_stride(0));
      const Run b(call.in[1].data + offset[1], nest.inner_stride(1));
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) store(y + i, f(a.full(i), b.full(i)));
      if (i < n) store_first(y + i, n - i, f(a.first(i, n - i), b.first(i, n - i)));
      y += n;
    });
  });
}

// ints: loop nest of condition, a, b.
void flat_where(const FlatCall& call) {
  IntReader ints(call);
  const LoopNest<3> nest(ints);
  const int64_t n = nest.inner_size();
  float* y = call.out[0].data;
  for_each_inner(nest, [&](const int64_t (&offset)[3]) {
    const Run condition(call.in[0].data + offset[0], nest.inner_stride(0));
    const Run a(call.in[1].data + offset[1], nest.inner_stride(1));
    const Run b(call.in[2].data + offset[2], nest.inner_stride(2));
    for (int64_t i = 0; i < n; i += kLanes) {
      const Vec c = condition.first(i, n - i);
      store_first(y + i, n - i, select(not_equal(c, zero()), a.first(i, n - i), b.first(i, n - i)));
    }
    y += n;
  });
}

// x[C][inner] * scale[C] + shift[C]. ints: C, inner.
void flat_affine(const FlatCall& call) {
  const int64_t channels = call.ints[0], inner = call.ints[1];
  const float *x = call.in[0].data, *scale = call.in[1].data, *shift = call.in[2].data;
  float* y = call.out[0].data;
  if (inner == 1) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t left = channels - c;
      const Vec product = mul(load_first(x + c, left), load_first(scale + c, left));
      store_first(y + c, left, add(product, load_first(shift + c, left)));
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c, x += inner, y += inner) {
    for (int64_t i = 0; i < inner; i += kLanes) {
      const Vec product = mul(load_first(x + i, inner - i), broadcast(scale[c]));
      store_first(y + i, inner - i, add(product, broadcast(shift[c])));
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
