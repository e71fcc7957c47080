// One number per lane out of a plane: sums, norms and extremes, in an order that depends on the plane alone.
#pragma once

#include "kernels.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

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

// What fold_block_sums needs of a finished plane, to sums[0, kBlock).
DYNPRUNE_INLINE void sum_blocks(const PlaneShape& shape, const float* x, float* sums) {
  Vec result[kVecsPerBlock];
  reduce_plane<false>(shape, x, 0.0f, [](Vec v) { return v; }, [](Vec a, Vec b) { return add(a, b); }, result);
  for (int v = 0; v < kVecsPerBlock; ++v) store(sums + v * kLanes, result[v]);
}

}  // namespace
}  // namespace dynprune::cpu
