// Reducing a map to one number per channel, in one order wherever it is done.
//
// An image's pixels are taken in groups of 32. Eight chains take every eighth pixel of a group, in order, and are
// combined in pairs of neighbours. The tensor-core convolution makes the results of groups (ConvParams::group_results)
// while a tile's values are at hand; spatial_reduce_kernel makes the same bits of a finished map.
#pragma once
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace dynprune::cuda {

constexpr int kGroupChains = 8;

// Takes the larger value; NaN wins over everything.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float smaller(float a, float b) { return a < b || a != a ? a : b; }

// What a kind of reduction does with values; dividing by the pixels and square roots come at the very end.
struct Reduction {
  bool maximum, minimum, absolute, squared;

  __device__ __forceinline__ explicit Reduction(SpatialKind kind)
      : maximum(kind == SpatialKind::kMax || kind == SpatialKind::kMaxAbs),
        minimum(kind == SpatialKind::kMin),
        absolute(kind == SpatialKind::kMeanAbs || kind == SpatialKind::kSumAbs || kind == SpatialKind::kMaxAbs),
        squared(kind == SpatialKind::kSumSquares || kind == SpatialKind::kL2) {}

  __device__ __forceinline__ float start() const { return maximum ? -INFINITY : minimum ? INFINITY : 0.0f; }
  __device__ __forceinline__ float value(float v) const { return absolute ? fabsf(v) : squared ? v * v : v; }
  __device__ __forceinline__ float combine(float a, float b) const {
    return maximum ? larger(b, a) : minimum ? smaller(b, a) : a + b;
  }
};

// The result of one group, of which `left` pixels exist. `load(pixel)`: the value of one of its pixels.
template <typename Load>
__device__ __forceinline__ float reduce_group(Reduction reduction, int left, Load load) {
  float chain[kGroupChains];
#pragma unroll
  for (int i = 0; i < kGroupChains; ++i) chain[i] = reduction.start();
#pragma unroll 1
  for (int first = 0; first < kGroupPixels; first += kGroupChains) {
#pragma unroll
    for (int i = 0; i < kGroupChains; ++i) {
      if (first + i < left) chain[i] = reduction.combine(chain[i], reduction.value(load(first + i)));
    }
  }
#pragma unroll
  for (int step = 1; step < kGroupChains; step <<= 1) {
#pragma unroll
    for (int i = 0; i < kGroupChains; i += 2 * step) chain[i] = reduction.combine(chain[i], chain[i + step]);
  }
  return chain[0];
}

}  // namespace dynprune::cuda
