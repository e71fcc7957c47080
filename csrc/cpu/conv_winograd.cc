// Winograd convolution F(4x4, 3x3) and F(2x2, 3x3) on planar maps, stride 1, padding 1.
//
// Only live inputs are transformed, V holds them without gaps, and only live outputs are multiplied and transformed
// back. Outputs are taken in groups of at most 32, so that their products stay in the second-level cache:
//
//     [weights of the group, on the fly]  ->  (m+2)^2 matrix products  ->  output transform and epilogue
#include "kernels.h"

#if defined(__AVX2__)

#include "plane_combination.h"
#include "winograd_channel_lanes.h"
#include "winograd_input.h"
#include "winograd_multiply.h"
#include "winograd_output.h"
#include "winograd_weights.h"

namespace dynprune::cpu {
namespace {

constexpr int kGroup = 32;                     // outputs
constexpr int64_t kCachedWeights = 128 << 10;  // floats: half of a second-level cache

int32_t tile_elements(const WinogradShape& shape) { return (shape.m + 2) * (shape.m + 2); }

// Floats of the transformed weights of one group and one tile element, for n inputs in rows of `step`. Whole vectors
// are written at the end of a row, hence the slack.
int64_t group_matrix(int64_t n_in, int64_t step) { return n_in * step + kChannelBlock; }

WinogradSizes winograd_sizes(const WinogradShape& shape, WinogradWeights form) {
  const TileGrid grid = tile_grid(shape.out, shape.m, kLanes);
  const size_t elements = static_cast<size_t>(tile_elements(shape));
  const size_t channels = static_cast<size_t>(channel_blocks(shape.out_channels)) * kChannelBlock * shape.in_channels;
#if defined(__AVX512F__)
  if (form == WinogradWeights::kChannelLanes)
    return {channels * 9, static_cast<size_t>(lanes_input_scratch(shape)),
            static_cast<size_t>(lanes_thread_scratch(shape))};
#endif
  const bool on_the_fly = form == WinogradWeights::kOnTheFly;
  const size_t products = static_cast<size_t>(matrix_stride(grid, kGroup)) * elements;
  const size_t weights = static_cast<size_t>(group_matrix(shape.in_channels, kGroup)) * elements;
  return {channels * (on_the_fly ? 9 : elements),
          static_cast<size_t>(matrix_stride(grid, shape.in_channels)) * elements,
          products + (on_the_fly ? weights : 0)};
}

void winograd_pack(const WinogradShape& shape, WinogradWeights form, const float* weights, float* packed) {
  if (form != WinogradWeights::kTransformed) {
    pack_raw(shape.out_channels, shape.in_channels, weights, packed);
  } else {
    pack_transformed(shape.m, shape.out_channels, shape.in_channels, weights, packed);
  }
}

void winograd_input(const WinogradShape& shape, TileRows rows, [[maybe_unused]] WinogradWeights form,
                    const ConvCall& call, const int32_t* positions, int32_t first, int32_t last, float* v) {
#if defined(__AVX512F__)
  if (form == WinogradWeights::kChannelLanes) {
    return with_lane_tiles(shape, [&](auto tiles) { lanes_input<decltype(tiles)>(shape.out, call, first, last, v); });
  }
#endif
  const TileGrid grid = tile_grid(shape.out, shape.m, kLanes, rows);
  const int64_t stride = matrix_stride(grid, call.n_in);
  for (int32_t i = first; i < last; ++i) {
    const int32_t at = positions ? positions[i] : i;
    input_plane(grid, shape.out, shape.m, call.input[at], v + at * grid.stride, stride);
  }
}

// Live outputs [first, last) of the call, all in one group.
struct Group {
  int32_t first, last;
  int32_t count() const { return last - first; }
};

// Most outputs of a group. Stored weights of one block adjoin, and more gains nothing. On the fly, several partly live
// blocks fill register tiles better, as long as their weights and V fit the second-level cache.
int32_t group_limit(WinogradWeights form, int64_t n_in, int64_t elements) {
  const bool fits = elements * n_in * kGroup <= 3 * kCachedWeights / 2;
  return form == WinogradWeights::kOnTheFly && fits ? kGroup : kChannelBlock;
}

// The next group from `first` on: whole blocks of 16 channels as long as their live outputs fit.
Group next_group(const ConvCall& call, int32_t first, int32_t last, int32_t most) {
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
void transform_group(const WinogradShape& shape, const ConvCall& call, const Group& group, const float* raw, float* u,
                     int64_t step, int64_t stride) {
  LiveLanes live[kGroup];
  int32_t n = 0;
  for (int32_t i = group.first; i < group.last; i += live[n++].count) {
    live[n] = next_live_lanes(shape, call, raw, i, group.last);
  }
  (shape.m == 4 ? weight_tiles<4> : weight_tiles<2>)(live, n, call.in_channel, call.n_in, u, step, stride);
}

bool adjoin(const ConvCall& call, const Group& group) {
  return call.out_channel[group.last - 1] - call.out_channel[group.first] == group.count() - 1 &&
         call.out_channel[group.last - 1] / kChannelBlock == call.out_channel[group.first] / kChannelBlock;
}

void winograd_output(const WinogradShape& shape, TileRows rows, WinogradWeights form, const float* packed,
                     const float* v, const ConvCall& call, int32_t first, int32_t last, float* thread_scratch) {
#if defined(__AVX512F__)
  if (form == WinogradWeights::kChannelLanes) {
    return with_lane_tiles(
        shape, [&](auto tiles) { lanes_output<decltype(tiles)>(shape, packed, v, call, first, last, thread_scratch); });
  }
#endif
  const TileGrid grid = tile_grid(shape.out, shape.m, kLanes, rows);
  const int32_t elements = tile_elements(shape);
  const int64_t v_matrix = matrix_stride(grid, call.n_in), out_matrix = matrix_stride(grid, kGroup);
  float* products = thread_scratch;
  float* u = thread_scratch + out_matrix * elements;
  const bool on_the_fly = form == WinogradWeights::kOnTheFly;
  const int32_t most = group_limit(form, call.n_in, elements);
  const int64_t stored_matrix = static_cast<int64_t>(shape.in_channels) * kChannelBlock;
  const bool cached = stored_matrix * elements * channel_blocks(shape.out_channels) <= kCachedWeights;
  for (Group group{first, first}, next = next_group(call, first, last, most); group.last < last;) {
    group = next;
    next = next_group(call, group.last, last, most);
    const int n_out = group.count();
    const DirectSplit& split = position_split(TileUse::kMultiply, kLanes, n_out, grid.vectors, grid.half());
    WeightPrefetcher prefetcher(kRawBlock, kRawBlock / 16, call.in_channel, call.n_in);
    Multiply job{call.n_in,   call.in_channel,           kChannelBlock, grid.stride, grid.stride,
                 &prefetcher, cached ? 0 : stored_matrix};
    const float* weight[kGroup + 1];
    if (on_the_fly) {
      job.step = ceil_div(n_out, 8) * 8;
      const int64_t u_matrix = group_matrix(call.n_in, job.step);
      transform_group(shape, call, group, packed, u, job.step, u_matrix);
      for (int32_t i = next.first, seen = -1; i < next.last; ++i) {
        const int32_t block = call.out_channel[i] / kChannelBlock;
        if (block != seen) prefetcher.add_block(packed + static_cast<int64_t>(block) * shape.in_channels * kRawBlock);
        seen = block;
      }
      int64_t tiles = 0;
      for_each_tile(split, n_out, false, [&](const TileCall&) { ++tiles; });
      prefetcher.spread(elements * tiles * (call.n_in / 4));
      for (int k = 0; k < n_out; ++k) weight[k] = u + k;
      multiply_elements<WeightLayout::kCompact>(job, split, elements, n_out, weight, u_matrix, v, v_matrix, products,
                                                out_matrix);
    } else {
      for (int k = 0; k < n_out; ++k) {
        const int32_t channel = call.out_channel[group.first + k];
        weight[k] = packed + channel / kChannelBlock * elements * stored_matrix + channel % kChannelBlock;
      }
      (adjoin(call, group) ? multiply_elements<WeightLayout::kBlock>
                           : multiply_elements<WeightLayout::kRows>)(job, split, elements, n_out, weight, stored_matrix,
                                                                     v, v_matrix, products, out_matrix);
    }
    for (int k = 0; k < n_out; ++k) {
      const int32_t at = group.first + k;
      const OutputPlane plane{call.output[at], &shape.out, &call.epilogue,
                              channel_epilogue(call.epilogue, call.out_channel[at], at)};
      output_plane(grid, shape.m, plane, products + k * grid.stride, out_matrix);
      if (call.block_sums) sum_blocks(shape.out, plane.y, call.block_sums + int64_t{at} * kBlock);
    }
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_conv_winograd)(KernelTable& table) {
  table.has_winograd = true;
  table.winograd_sizes = winograd_sizes;
  table.winograd_pack = winograd_pack;
  table.winograd_input = winograd_input;
  table.winograd_output = winograd_output;
}

}  // namespace dynprune::cpu

#else

#include "vec.h"

namespace dynprune::cpu {

// Without vector shuffles the transforms cost more than Winograd saves.
void DYNPRUNE_ISA_NAME(fill_conv_winograd)(KernelTable& table) { table.has_winograd = false; }

}  // namespace dynprune::cpu

#endif
