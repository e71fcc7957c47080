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

// Combines f(x) of all pixels: block b goes to accumulator b mod 4, which hides the latency of the
// combination; then the four are combined, then the lanes, halving. Non-pixels count as `identity`
// when `masked`, else as f(0).
template <bool kMasked, class F, class Combine>
DYNPRUNE_INLINE float reduce_plane(const PlaneShape& shape, const float* x, float identity, F f, Combine combine) {
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
    acc[0][v] = combine(combine(acc[0][v], acc[1][v]), combine(acc[2][v], acc[3][v]));
  }
  return fold_block(acc[0], combine);
}

float plane_reduce(Reduce kind, const PlaneShape& shape, const float* x) {
  const auto itself = [](Vec v) { return v; };
  const auto magnitude = [](Vec v) { return abs(v); };
  const auto square = [](Vec v) { return mul(v, v); };
  const auto plus = [](Vec a, Vec b) { return add(a, b); };
  const auto maximum = [](Vec a, Vec b) { return max_or_nan(a, b); };
  const auto minimum = [](Vec a, Vec b) { return min_or_nan(a, b); };
  const float pixels = static_cast<float>(int64_t{shape.height} * shape.width);
  switch (kind) {
    case Reduce::kSum:
      return reduce_plane<false>(shape, x, 0.0f, itself, plus);
    case Reduce::kMean:
      return reduce_plane<false>(shape, x, 0.0f, itself, plus) / pixels;
    case Reduce::kSumAbs:
      return reduce_plane<false>(shape, x, 0.0f, magnitude, plus);
    case Reduce::kMeanAbs:
      return reduce_plane<false>(shape, x, 0.0f, magnitude, plus) / pixels;
    case Reduce::kSumSquares:
      return reduce_plane<false>(shape, x, 0.0f, square, plus);
    case Reduce::kL2:
      return sqrtf(reduce_plane<false>(shape, x, 0.0f, square, plus));
    case Reduce::kMaxAbs:
      return reduce_plane<false>(shape, x, 0.0f, magnitude, maximum);
    case Reduce::kMax:
      return reduce_plane<true>(shape, x, -kInfinity, itself, maximum);
    case Reduce::kMin:
      return reduce_plane<true>(shape, x, kInfinity, itself, minimum);
  }
  return 0.0f;
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_plane_elementwise)(KernelTable& table) {
  table.plane_unary = plane_unary;
  table.plane_binary = plane_binary;
  table.plane_fill = plane_fill;
  table.plane_reduce = plane_reduce;
}

}  // namespace dynprune::cpu
