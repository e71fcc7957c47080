// Groups of live outputs that a Winograd convolution with tiles in the lanes takes at a time, so that their products
// stay in the second-level cache, and their products where weights are transformed on the fly.
#pragma once

#include "winograd_multiply.h"
#include "winograd_weights.h"

namespace dynprune::cpu {
namespace {

constexpr int kGroup = 32;                     // outputs
constexpr int64_t kCachedWeights = 128 << 10;  // floats: half of a second-level cache

inline int32_t tile_elements(const WinogradShape& shape) { return (shape.m + 2) * (shape.m + 2); }

// Floats of the transformed weights of one group and one tile element, for n inputs in rows of `step`. Whole vectors
// are written at the end of a row, hence the slack.
inline int64_t group_matrix(int64_t n_in, int64_t step) { return n_in * step + kChannelBlock; }

// Live outputs [first, last) of the call, all in one group.
struct Group {
  int32_t first, last;
  int32_t count() const { return last - first; }
};

// Most outputs of a group whose weights are transformed on the fly: several partly live blocks fill register tiles
// better, as long as their weights and V fit the second-level cache. (Stored weights of one block adjoin, and more than
// one block gains nothing.)
inline int32_t raw_group_limit(int64_t n_in, int64_t elements) {
  return elements * n_in * kGroup <= 3 * kCachedWeights / 2 ? kGroup : kChannelBlock;
}

// The next group from `first` on: whole blocks of 16 channels as long as their live outputs fit.
inline Group next_group(const ConvCall& call, int32_t first, int32_t last, int32_t most) {
  int32_t end = first;
  while (end < last) {
    const int32_t block = call.out_channel[end] / kChannelBlock;
    int32_t block_end = end;
    while (block_end < last && call.out_channel[block_end] / kChannelBlock == block) ++block_end;
    if (end > first && block_end - first > most) break;
    end = block_end;
  }
  return {first, end};
}

// Transforms the weights of a group: u[t][input][output of the group], rows of `step`.
template <class Raw>
void transform_group(const WinogradShape& shape, const ConvCall& call, const Group& group, const Raw* raw, float* u,
                     int64_t step, int64_t stride) {
  LiveLanes<Raw> live[kGroup];
  int32_t n = 0;
  for (int32_t i = group.first; i < group.last; i += live[n++].count) {
    live[n] = next_live_lanes(shape, call, raw, i, group.last);
  }
  (shape.m == 4 ? weight_tiles<4, Raw> : weight_tiles<2, Raw>)(live, n, call.in_channel, call.n_in, u, step, stride);
}

// The products of a group for raw weights, rows of `grid.stride` floats and matrices as far apart as kGroup of them
// need. Fetches the weights of the group that comes next meanwhile. u: floats as group_matrix() says, per element.
template <class Raw>
void multiply_raw_group(const WinogradShape& shape, const TileGrid& grid, const ConvCall& call, const Group& group,
                        const Group& next, const Raw* raw, const float* v, float* products, float* u) {
  const int32_t elements = tile_elements(shape);
  const int n_out = group.count();
  const DirectSplit& split = position_split(TileUse::kMultiply, kLanes, n_out, grid.vectors, grid.half());
  WeightPrefetcher prefetcher(kRawBlock * sizeof(Raw), call.in_channel, call.n_in);
  const Multiply job{call.n_in, call.in_channel, ceil_div(n_out, 8) * 8, grid.stride, grid.stride, &prefetcher, 0};
  const int64_t u_matrix = group_matrix(call.n_in, job.step);
  transform_group(shape, call, group, raw, u, job.step, u_matrix);
  for (int32_t i = next.first, seen = -1; i < next.last; ++i) {
    const int32_t block = call.out_channel[i] / kChannelBlock;
    if (block != seen) prefetcher.add_block(raw + static_cast<int64_t>(block) * shape.in_channels * kRawBlock);
    seen = block;
  }
  int64_t tiles = 0;
  for_each_tile(split, n_out, false, [&](const TileCall&) { ++tiles; });
  prefetcher.spread(elements * tiles * (call.n_in / 4));
  const float* weight[kGroup + 1];
  for (int k = 0; k < n_out; ++k) weight[k] = u + k;
  multiply_elements<WeightLayout::kCompact>(job, split, elements, n_out, weight, u_matrix, v,
                                            matrix_stride(grid, call.n_in), products, matrix_stride(grid, kGroup));
}

}  // namespace
}  // namespace dynprune::cpu
