// Moving maps: channels that pass a convolution by, and the way between maps and fp32 [N, C, H, W].
#pragma once
#include "cuda/device.h"
#include "cuda/epilogue.cuh"

namespace dynprune::cuda {

constexpr int kLayoutThreads = 256;

// Calls visit(image, pixel, place, channel) for every stored value of a map; threads of one row are neighbours.
template <typename Visit>
__device__ __forceinline__ void for_stored(const MapRef& map, int batch, Visit visit) {
  const int64_t total = static_cast<int64_t>(batch) * map.pixels() * map.channels;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLayoutThreads + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kLayoutThreads) {
    const int64_t row = i / map.channels;
    const int place = static_cast<int>(i - row * map.channels);
    const int image = static_cast<int>(row / map.pixels()), pixel = static_cast<int>(row % map.pixels());
    int channel = place;
    if (map.stored) {
      const SetView stored = set_view(map.stored, image, map.channels);
      if (place >= stored.count()) continue;
      channel = stored.index()[place];
    }
    visit(image, pixel, place, channel);
  }
}

template <typename T>
__global__ void __launch_bounds__(kLayoutThreads) pass_through_kernel(const __grid_constant__ PassThroughParams p) {
  for_stored(p.y, p.batch, [&](int image, int pixel, int place, int channel) {
    if (set_view(p.computed, image, p.y.channels).position()[channel] != kAbsent) return;
    const ChannelEpilogue c = channel_epilogue(p.epilogue, p.y, image, channel);
    row_of<T>(p.y, image, pixel)[place] = from_float<T>(finish<T>(p.epilogue, c, p.y, image, pixel, c.shift));
  });
}

template <typename T>
__global__ void __launch_bounds__(kLayoutThreads) pack_map_kernel(const __grid_constant__ RepackParams p) {
  for_stored(p.map, p.batch, [&](int image, int pixel, int place, int channel) {
    const size_t from = (static_cast<size_t>(image) * p.map.channels + channel) * p.map.pixels() + pixel;
    row_of<T>(p.map, image, pixel)[place] = from_float<T>(p.planes[from]);
  });
}

template <typename T>
__global__ void __launch_bounds__(kLayoutThreads) unpack_map_kernel(const __grid_constant__ RepackParams p) {
  const int64_t total = static_cast<int64_t>(p.batch) * p.map.pixels() * p.map.channels;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLayoutThreads + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kLayoutThreads) {
    const int64_t plane = i / p.map.pixels();
    const int pixel = static_cast<int>(i - plane * p.map.pixels());
    const int image = static_cast<int>(plane / p.map.channels), channel = static_cast<int>(plane % p.map.channels);
    const unsigned place = place_of(p.map, image, channel);
    p.planes[i] = place == kAbsent ? 0.0f : to_float(row_of<T>(p.map, image, pixel)[place]);
  }
}

}  // namespace dynprune::cuda
