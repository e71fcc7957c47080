// Elementwise functions, fills and reductions on planes.
#include "elementwise_ops.h"

namespace dynprune::cpu {
namespace {

// y = f(position) over all blocks; with `masked`, pads are forced to zero.
template <class F>
DYNPRUNE_INLINE void for_each_vector(const PlaneShape& shape, bool masked, float* y, F f) {
  if (masked) {
    for (int32_t b = 0; b < shape.blocks; ++b) {
      const uint32_t mask = shape.store_mask[b];
      DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) {
        const int64_t at = int64_t{b} * kBlock + v * kLanes;
        store(y + at, keep(mask >> (v * kLanes), f(at)));
      }
    }
  } else {
    for (int32_t b = 0; b < shape.blocks; ++b) {
      DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) {
        const int64_t at = int64_t{b} * kBlock + v * kLanes;
        store(y + at, f(at));
      }
    }
  }
}

void plane_unary(Unary op, float a, float b, const PlaneShape& shape, const float* x, float* y) {
  with_unary(op, a, b, [&](auto f, bool keeps_zero) {
    for_each_vector(shape, !keeps_zero, y, [=](int64_t at) { return f(load(x + at)); });
  });
}

void plane_binary(Binary op, Clamp limits, const PlaneShape& shape, const float* x0, const float* x1, float scalar,
                  float* y) {
  const Vec lo = broadcast(limits.lo), hi = broadcast(limits.hi);
  // A constant operand is one block that is read again and again.
  float constant[kBlock];
  for (float& c : constant) c = scalar;
  const int64_t step0 = x0 ? 1 : 0, step1 = x1 ? 1 : 0;
  const float* p0 = x0 ? x0 : constant;
  const float* p1 = x1 ? x1 : constant;
  const bool zero_pads = x0 && x1 && limits.lo <= 0.0f && limits.hi >= 0.0f;
  with_binary(op, [&](auto f, bool keeps_zero) {
    for_each_vector(shape, !(keeps_zero && zero_pads), y,
                    [=](int64_t at) { return clamp(lo, hi, f(load(p0 + at * step0), load(p1 + at * step1))); });
  });
}

void plane_fill(const PlaneShape& shape, float value, float* y) {
  const Vec v = broadcast(value);
  for_each_vector(shape, true, y, [=](int64_t) { return v; });
}

// Combines f(x) of all pixels to one block of values: block b goes to accumulator b mod 4, which hides the latency of
// the combination; then the four are combined. Non-pixels count as `identity` when `masked`, else as f(0).
template <bool kMasked, class F, class Combine>
DYNPRUNE_INLINE void reduce_plane(const PlaneShape& shape, const float* x, float identity, F f, Combine combine,
                                  Vec (&result)[kVecsPerBlock]) {
  constexpr int kChains = 4;
  Vec acc[kChains][kVecsPerBlock];
  for (int c = 0; c < kChains; ++c) {
    for (int v = 0; v < kVecsPerBlock; ++v) acc[c][v] = broadcast(identity);
  }
  const auto block = [&](int32_t b, int c) __attribute__((always_inline)) {
    DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) {
      Vec value = f(load(x + int64_t{b} * kBlock + v * kLanes));
      if (kMasked) {
        const Vec pixel = keep(static_cast<uint32_t>(shape.store_mask[b]) >> (v * kLanes), broadcast(1.0f));
        value = select(equal(pixel, zero()), broadcast(identity), value);
      }
      acc[c][v] = combine(acc[c][v], value);
    }
  };
  int32_t b = 0;
  for (; b + kChains <= shape.blocks; b += kChains) {
    DYNPRUNE_UNROLL for (int c = 0; c < kChains; ++c) block(b + c, c);
  }
  for (int c = 0; b + c < shape.blocks; ++c) block(b + c, c);

  for (int v = 0; v < kVecsPerBlock; ++v) {
    result[v] = combine(combine(acc[0][v], acc[1][v]), combine(acc[2][v], acc[3][v]));
  }
}

// y[p] = finish(the combination over plane x[p]). The lanes of kLanes planes are folded together.
template <bool kMasked, class F, class Combine, class Finish>
DYNPRUNE_INLINE void reduce_planes(const PlaneShape& shape, const float* const* x, int32_t n, float* y, float identity,
                                   F f, Combine combine, Finish finish) {
  for (int32_t first = 0; first < n; first += kLanes) {
    const int32_t count = n - first < kLanes ? n - first : kLanes;
    Vec block[kLanes][kVecsPerBlock];
    for (int32_t p = 0; p < kLanes; ++p) {  // surplus lanes repeat the last plane's
      if (p < count) {
        reduce_plane<kMasked>(shape, x[first + p], identity, f, combine, block[p]);
      } else {
        for (int v = 0; v < kVecsPerBlock; ++v) block[p][v] = block[count - 1][v];
      }
    }
    store_first(y + first, count, finish(fold_blocks(block, combine)));
  }
}

void plane_reduce(Reduce kind, const PlaneShape& shape, const float* const* x, int32_t n, float* y) {
  const auto itself = [](Vec v) { return v; };
  const auto magnitude = [](Vec v) { return abs(v); };
  const auto square = [](Vec v) { return mul(v, v); };
  const auto plus = [](Vec a, Vec b) { return add(a, b); };
  const auto maximum = [](Vec a, Vec b) { return max_or_nan(a, b); };
  const auto minimum = [](Vec a, Vec b) { return min_or_nan(a, b); };
  const Vec pixels = broadcast(static_cast<float>(int64_t{shape.height} * shape.width));
  const auto mean = [=](Vec v) { return div(v, pixels); };
  const auto root = [](Vec v) { return vec_sqrt(v); };
  switch (kind) {
    case Reduce::kSum:
      return reduce_planes<false>(shape, x, n, y, 0.0f, itself, plus, itself);
    case Reduce::kMean:
      return reduce_planes<false>(shape, x, n, y, 0.0f, itself, plus, mean);
    case Reduce::kSumAbs:
      return reduce_planes<false>(shape, x, n, y, 0.0f, magnitude, plus, itself);
    case Reduce::kMeanAbs:
      return reduce_planes<false>(shape, x, n, y, 0.0f, magnitude, plus, mean);
    case Reduce::kSumSquares:
      return reduce_planes<false>(shape, x, n, y, 0.0f, square, plus, itself);
    case Reduce::kL2:
      return reduce_planes<false>(shape, x, n, y, 0.0f, square, plus, root);
    case Reduce::kMaxAbs:
      return reduce_planes<false>(shape, x, n, y, 0.0f, magnitude, maximum, itself);
    case Reduce::kMax:
      return reduce_planes<true>(shape, x, n, y, -kInfinity, itself, maximum, itself);
    case Reduce::kMin:
      return reduce_planes<true>(shape, x, n, y, kInfinity, itself, minimum, itself);
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_plane_elementwise)(KernelTable& table) {
  table.plane_unary = plane_unary;
  table.plane_binary = plane_binary;
  table.plane_fill = plane_fill;
  table.plane_reduce = plane_reduce;
}

}  // namespace dynprune::cpu
