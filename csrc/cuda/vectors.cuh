// What gates compute on vectors: linear layers, reductions and sorting, in fp32 and in a fixed order.
#pragma once
#include "cuda/device.h"
#include "cuda/spatial_reduction.cuh"

namespace dynprune::cuda {

constexpr int kVectorWarps = 4;

// One warp per result: every lane takes every 32nd product, then a fixed tree over lanes.
__global__ void __launch_bounds__(kVectorWarps * 32) linear_kernel(const __grid_constant__ LinearParams p) {
  const int64_t result = static_cast<int64_t>(blockIdx.x) * kVectorWarps + (threadIdx.x >> 5);
  const int lane = threadIdx.x & 31;
  if (result >= static_cast<int64_t>(p.rows) * p.outputs) return;
  const int64_t row = result / p.outputs;
  const int output = static_cast<int>(result - row * p.outputs);
  const float* x = p.x + row * p.features;
  const float* weights = p.weights + static_cast<size_t>(output) * p.features;
  float sum = 0.0f;
  for (int i = lane; i < p.features; i += 32) sum = fmaf(x[i], weights[i], sum);
  for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(kWarp, sum, step);
  if (lane == 0) p.y[result] = clamp(sum + (p.bias ? p.bias[output] : 0.0f), p.low, p.high);
}

__device__ __forceinline__ float combine(ReduceKind kind, float a, float b) {
  switch (kind) {
    case ReduceKind::kMax:
      return larger(b, a);
    case ReduceKind::kMin:
      return smaller(b, a);
    case ReduceKind::kProd:
      return a * b;
    default:
      return a + b;
  }
}

__global__ void __launch_bounds__(kVectorWarps * 32) reduce_kernel(const __grid_constant__ ReduceParams p) {
  const int64_t result = static_cast<int64_t>(blockIdx.x) * kVectorWarps + (threadIdx.x >> 5);
  const int lane = threadIdx.x & 31;
  if (result >= static_cast<int64_t>(p.outer) * p.inner) return;
  const int64_t outer = result / p.inner;
  const float* x = p.x + outer * p.length * p.inner + (result - outer * p.inner);
  float total = p.kind == ReduceKind::kMax    ? -INFINITY
                : p.kind == ReduceKind::kMin  ? INFINITY
                : p.kind == ReduceKind::kProd ? 1.0f
                                              : 0.0f;
  for (int i = lane; i < p.length; i += 32) {
    float v = x[static_cast<size_t>(i) * p.inner];
    if (p.kind == ReduceKind::kL1) v = fabsf(v);
    if (p.kind == ReduceKind::kL2) v *= v;
    total = combine(p.kind, total, v);
  }
  for (int step = 16; step > 0; step >>= 1) total = combine(p.kind, total, __shfl_xor_sync(kWarp, total, step));
  if (p.kind == ReduceKind::kMean) total /= static_cast<float>(p.length);
  if (p.kind == ReduceKind::kL2) total = sqrtf(total);
  if (lane == 0) p.y[result] = total;
}

constexpr int kSortThreads = 256;

// True where element i stands before element j of a line.
__device__ __forceinline__ bool stands_before(float a, int i, float b, int j, bool descending) {
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan != b_nan) return a_nan == descending;
  if (a_nan || a == b) return i < j;
  return descending ? a > b : a < b;
}

// One block per line: an element's place is the number of elements that stand before it.
__global__ void __launch_bounds__(kSortThreads) sort_kernel(const __grid_constant__ SortParams p) {
  float* const line = reinterpret_cast<float*>(shared_memory());
  const int outer = blockIdx.x / p.inner, inner = blockIdx.x - outer * p.inner;
  const float* x = p.x + static_cast<size_t>(outer) * p.length * p.inner + inner;
  for (int i = threadIdx.x; i < p.length; i += kSortThreads) line[i] = x[static_cast<size_t>(i) * p.inner];
  __syncthreads();
  for (int i = threadIdx.x; i < p.length; i += kSortThreads) {
    const float v = line[i];
    int place = 0;
    for (int j = 0; j < p.length; ++j) place += stands_before(line[j], j, v, i, p.descending != 0) ? 1 : 0;
    if (place >= p.keep) continue;
    const size_t to = (static_cast<size_t>(outer) * p.keep + place) * p.inner + inner;
    p.values[to] = v;
    p.index[to] = i;
  }
}

}  // namespace dynprune::cuda
