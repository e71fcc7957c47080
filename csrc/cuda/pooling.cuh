// Pooling windows, and reductions of whole maps to one number per channel.
#pragma once
#include "cuda/device.h"
#include "cuda/layout.cuh"

namespace dynprune::cuda {

// Takes the larger value; NaN wins over everything.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float smaller(float a, float b) { return a < b || a != a ? a : b; }

template <typename T>
__global__ void __launch_bounds__(kLayoutThreads) pool2d_kernel(const __grid_constant__ PoolParams p) {
  for_stored(p.y, p.batch, [&](int image, int pixel, int place, int channel) {
    const int oy = pixel / p.y.w, ox = pixel - oy * p.y.w;
    int top, left, bottom, right;  // the window, bottom and right excluded
    if (p.adaptive) {
      top = oy * p.x.h / p.y.h;
      bottom = ceil_div((oy + 1) * p.x.h, p.y.h);
      left = ox * p.x.w / p.y.w;
      right = ceil_div((ox + 1) * p.x.w, p.y.w);
    } else {
      top = oy * p.stride_h - p.pad_top;
      left = ox * p.stride_w - p.pad_left;
      bottom = top + (p.kernel_h - 1) * p.dilation_h + 1;
      right = left + (p.kernel_w - 1) * p.dilation_w + 1;
    }
    const unsigned at = place_of(p.x, image, channel);
    float sum = 0.0f, largest = -INFINITY;
    int inside = 0;
    for (int iy = top; iy < bottom; iy += p.dilation_h) {
      for (int ix = left; ix < right; ix += p.dilation_w) {
        if (iy < 0 || ix < 0 || iy >= p.x.h || ix >= p.x.w) continue;
        const float v = at == kAbsent ? 0.0f : to_float(row_of<T>(p.x, image, iy * p.x.w + ix)[at]);
        sum += v;
        largest = larger(v, largest);
        ++inside;
      }
    }
    float result = largest;
    if (p.kind == PoolKind::kAverage) {
      int divisor = inside;
      if (p.divisor > 0) {
        divisor = p.divisor;
      } else if (p.count_include_pad) {  // a window that ceil_mode lets hang over counts up to the padding's end
        const int down = bottom < p.x.h + p.pad_bottom ? bottom : p.x.h + p.pad_bottom;
        const int across = right < p.x.w + p.pad_right ? right : p.x.w + p.pad_right;
        divisor = (down - top) * (across - left);
      }
      result = sum / static_cast<float>(divisor);
    }
    row_of<T>(p.y, image, pixel)[place] = from_float<T>(result);
  });
}

constexpr int kSpatialWarps = 8;

// One block per image and 32 stored channels: every warp adds up every eighth pixel, then warp after warp.
template <typename T>
__global__ void __launch_bounds__(kSpatialWarps * 32)
    spatial_reduce_kernel(const __grid_constant__ SpatialReduceParams p) {
  float* const partial = reinterpret_cast<float*>(shared_memory());  // [warp][lane]
  const int groups = ceil_div(p.x.channels, 32), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int image = blockIdx.x / groups, channel = (blockIdx.x - image * groups) * 32 + lane;
  const unsigned at = channel < p.x.channels ? place_of(p.x, image, channel) : kAbsent;
  const bool maximum = p.kind == SpatialKind::kMax || p.kind == SpatialKind::kMaxAbs;
  const bool minimum = p.kind == SpatialKind::kMin;
  const bool absolute =
      p.kind == SpatialKind::kMeanAbs || p.kind == SpatialKind::kSumAbs || p.kind == SpatialKind::kMaxAbs;
  const bool squared = p.kind == SpatialKind::kSumSquares || p.kind == SpatialKind::kL2;
  const float start = maximum ? -INFINITY : minimum ? INFINITY : 0.0f;
  float total = start;
  if (at != kAbsent) {
    for (int pixel = warp; pixel < p.x.pixels(); pixel += kSpatialWarps) {
      float v = to_float(row_of<T>(p.x, image, pixel)[at]);
      if (absolute) v = fabsf(v);
      if (squared) v *= v;
      total = maximum ? larger(v, total) : minimum ? smaller(v, total) : total + v;
    }
  }
  partial[warp * 32 + lane] = total;
  __syncthreads();
  if (warp != 0 || channel >= p.x.channels) return;
  total = start;
  for (int w = 0; w < kSpatialWarps; ++w) {
    const float v = partial[w * 32 + lane];
    total = maximum ? larger(v, total) : minimum ? smaller(v, total) : total + v;
  }
  if (p.kind == SpatialKind::kMean || p.kind == SpatialKind::kMeanAbs) total /= static_cast<float>(p.x.pixels());
  if (p.kind == SpatialKind::kL2) total = sqrtf(total);
  p.y[static_cast<size_t>(image) * p.x.channels + channel] = at == kAbsent ? 0.0f : total;
}

}  // namespace dynprune::cuda
