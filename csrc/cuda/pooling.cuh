// Pooling windows, and reductions of whole maps to one number per channel.
#pragma once
#include "cuda/device.h"
#include "cuda/layout.cuh"
#include "cuda/spatial_reduction.cuh"

namespace dynprune::cuda {

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

// One block per image and 32 channels: every warp combines every eighth group of pixels, then warp after warp. Results
// of groups that the convolution made are taken from there; channels that passed it by have none.
template <typename T>
__global__ void __launch_bounds__(kSpatialWarps * 32)
    spatial_reduce_kernel(const __grid_constant__ SpatialReduceParams p) {
  float* const partial = reinterpret_cast<float*>(shared_memory());  // [warp][lane]
  const int blocks = ceil_div(p.x.channels, 32), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int image = blockIdx.x / blocks, channel = (blockIdx.x - image * blocks) * 32 + lane;
  const unsigned at = channel < p.x.channels ? place_of(p.x, image, channel) : kAbsent;
  const bool reduced = at != kAbsent && p.group_results &&
                       (!p.computed || set_view(p.computed, image, p.x.channels).position()[channel] != kAbsent);
  const Reduction reduction(p.kind);
  float total = reduction.start();
  if (at != kAbsent) {
    const int groups = group_count(p.x.pixels());
    for (int group = warp; group < groups; group += kSpatialWarps) {
      const T* const rows = row_of<T>(p.x, image, group * kGroupPixels) + at;
      const auto load = [&](int pixel) { return to_float(rows[static_cast<size_t>(pixel) * p.x.pitch()]); };
      const size_t line = static_cast<size_t>(image) * groups + group;
      const float of_group = reduced ? p.group_results[line * p.x.channels + channel]
                                     : reduce_group(reduction, p.x.pixels() - group * kGroupPixels, load);
      total = reduction.combine(total, of_group);
    }
  }
  partial[warp * 32 + lane] = total;
  __syncthreads();
  if (warp != 0 || channel >= p.x.channels) return;
  total = reduction.start();
  for (int w = 0; w < kSpatialWarps; ++w) total = reduction.combine(total, partial[w * 32 + lane]);
  if (p.kind == SpatialKind::kMean || p.kind == SpatialKind::kMeanAbs) total /= static_cast<float>(p.x.pixels());
  if (p.kind == SpatialKind::kL2) total = sqrtf(total);
  p.y[static_cast<size_t>(image) * p.x.channels + channel] = at == kAbsent ? 0.0f : total;
}

}  // namespace dynprune::cuda
