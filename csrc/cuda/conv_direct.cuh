// Grouped and depthwise convolution: one thread per output value, channels of the group in ascending order.
//
// Weights are fp32 [taps][C / groups][K], so that threads of neighbouring outputs read neighbouring weights.
#pragma once
#include "cuda/device.h"
#include "cuda/epilogue.cuh"

namespace dynprune::cuda {

constexpr int kDirectThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kDirectThreads) conv_direct_kernel(const __grid_constant__ ConvParams p) {
  const ConvShape& s = p.shape;
  const int group_inputs = s.channels / p.groups, group_outputs = s.outputs / p.groups;
  const float* const weights = static_cast<const float*>(p.weights);
  const int64_t rows = static_cast<int64_t>(p.batch) * s.out_pixels(), total = rows * s.outputs;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kDirectThreads + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kDirectThreads) {
    const int64_t row = i / s.outputs;
    const int place = static_cast<int>(i - row * s.outputs);
    const int image = static_cast<int>(row / s.out_pixels()), pixel = static_cast<int>(row % s.out_pixels());
    int output = place;
    if (p.computed) {
      const SetView computed = set_view(p.computed, image, s.outputs);
      if (place >= computed.count()) continue;
      output = computed.index()[place];
    }
    const ChannelEpilogue channel = channel_epilogue(p.epilogue, p.y, image, output);
    if (channel.out == kAbsent) continue;
    const int first_input = output / group_outputs * group_inputs;
    float sum = 0.0f;
    for (int c = 0; c < group_inputs; ++c) {
      const unsigned at = place_of(p.x, image, first_input + c);
      if (at == kAbsent) continue;
      for (int tap = 0; tap < s.taps(); ++tap) {
        const int from = input_pixel(s, pixel, tap);
        if (from < 0) continue;
        const float x = to_float(row_of<T>(p.x, image, from)[at]);
        sum = fmaf(x, weights[(static_cast<size_t>(tap) * group_inputs + c) * s.outputs + output], sum);
      }
    }
    const float v = gated(p.epilogue, channel, sum);
    row_of<T>(p.y, image, pixel)[channel.out] = from_float<T>(finish<T>(p.epilogue, channel, p.y, image, pixel, v));
  }
}

}  // namespace dynprune::cuda
