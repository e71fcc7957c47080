// Channel sets from masks: one warp per image, 32 channels per step, in ascending order.
#pragma once
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace dynprune::cuda {

constexpr int kLiveListWarps = 4;

__global__ void __launch_bounds__(kLiveListWarps * 32) live_lists_kernel(const __grid_constant__ LiveListParams p) {
  const int image = blockIdx.x * kLiveListWarps + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (image >= p.batch) return;
  const uint8_t* mask = p.mask + static_cast<size_t>(image) * p.channels;
  uint8_t* record = static_cast<uint8_t*>(p.sets) + static_cast<size_t>(image) * set_record_bytes(p.channels);
  const int pitch = set_pitch(p.channels);
  uint16_t* index = reinterpret_cast<uint16_t*>(record + 16);
  uint16_t* position = index + pitch;
  uint16_t* chunk = position + pitch;
  const unsigned below = (1u << lane) - 1;
  int count = 0, chunks = 0;
  for (int first = 0; first < pitch; first += 32) {
    const int channel = first + lane;
    const bool in_set = channel < p.channels && mask[channel] != 0;
    const unsigned ballot = __ballot_sync(kWarp, in_set);
    const int place = count + __popc(ballot & below);
    if (in_set) index[place] = static_cast<uint16_t>(channel);
    position[channel] = static_cast<uint16_t>(in_set ? place : kAbsent);
    const unsigned groups = (ballot & 0xFFu ? 1u : 0u) | (ballot & 0xFF00u ? 2u : 0u) | (ballot & 0xFF0000u ? 4u : 0u) |
                            (ballot & 0xFF000000u ? 8u : 0u);
    if (lane < 4 && (groups >> lane & 1)) {
      chunk[chunks + __popc(groups & below)] = static_cast<uint16_t>(first / kChunk + lane);
    }
    count += __popc(ballot);
    chunks += __popc(groups);
  }
  // Readers take whole chunks of channels: those past the end name the zero row of the weights.
  for (int i = count + lane; i < pitch; i += 32) index[i] = static_cast<uint16_t>(p.channels);
  if (lane == 0) {
    reinterpret_cast<int32_t*>(record)[0] = count;
    reinterpret_cast<int32_t*>(record)[1] = chunks;
  }
}

}  // namespace dynprune::cuda
