// What follows a convolution's sum, and where its result goes.
#pragma once
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace dynprune::cuda {

// Where a map keeps a channel of one image: its place in the pixel's row, or kAbsent.
__device__ __forceinline__ unsigned place_of(const MapRef& map, int image, int channel) {
  return map.stored ? set_view(map.stored, image, map.channels).position()[channel] : static_cast<unsigned>(channel);
}

// One output channel of one image.
struct ChannelEpilogue {
  float bias, gate, shift;
  unsigned out, residual;  // places; kAbsent = not stored
};

__device__ __forceinline__ ChannelEpilogue channel_epilogue(const Epilogue& e, const MapRef& y, int image,
                                                            int channel) {
  ChannelEpilogue c;
  c.bias = e.bias ? __ldg(e.bias + channel) : 0.0f;
  c.gate = e.gate ? __ldg(e.gate + static_cast<size_t>(image) * y.channels + channel) : 1.0f;
  c.shift = e.shift ? __ldg(e.shift + static_cast<size_t>(image) * e.shift_stride + channel) : 0.0f;
  c.out = place_of(y, image, channel);
  c.residual = e.residual.data ? place_of(e.residual, image, channel) : kAbsent;
  return c;
}

template <typename T>
__device__ __forceinline__ float finish(const Epilogue& e, const ChannelEpilogue& c, const MapRef& y, int image,
                                        int pixel, float v) {
  if (c.residual != kAbsent) {
    const T* row =
        static_cast<const T*>(e.residual.data) + (static_cast<size_t>(image) * y.pixels() + pixel) * e.residual.pitch();
    v += to_float(row[c.residual]);
  }
  return clamp(v, e.outer_low, e.outer_high);
}

// The steps between the sum and the residual.
__device__ __forceinline__ float gated(const Epilogue& e, const ChannelEpilogue& c, float sum) {
  return clamp(sum + c.bias, e.inner_low, e.inner_high) * c.gate + c.shift;
}

template <typename T>
__device__ __forceinline__ T* row_of(const MapRef& map, int image, int pixel) {
  return static_cast<T*>(map.data) + (static_cast<size_t>(image) * map.pixels() + pixel) * map.pitch();
}

}  // namespace dynprune::cuda
