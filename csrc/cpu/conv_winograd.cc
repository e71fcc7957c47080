// Winograd convolution F(4x4, 3x3) and F(2x2, 3x3) on planar maps, stride 1, padding 1.
//
// Only live inputs are transformed, V holds them without gaps, and only live outputs are multiplied and transformed
// back. Outputs are taken in groups of at most 32, so that their products stay in the second-level cache:
//
//     [weights of the group, on the fly]  ->  (m+2)^2 matrix products  ->  output transform and epilogue
#include "kernels.h"

#if defined(__AVX2__)

#include "winograd_channel_lanes.h"
#include "winograd_groups.h"
#include "winograd_input.h"
#include "winograd_output.h"

namespace dynprune::cpu {
namespace {

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
  const auto plane = shape.m == 4 ? &input_plane<4, FloatPixels> : &input_plane<2, FloatPixels>;
  for (int32_t i = first; i < last; ++i) {
    const int32_t at = positions ? positions[i] : i;
    plane(grid, shape.out, call.input[at], v + at * grid.stride, stride);
  }
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
  const int32_t most = on_the_fly ? raw_group_limit(call.n_in, elements) : kChannelBlock;
  const int64_t stored_matrix = static_cast<int64_t>(shape.in_channels) * kChannelBlock;
  const bool cached = stored_matrix * elements * channel_blocks(shape.out_channels) <= kCachedWeights;
  const auto store = shape.m == 4 ? &output_plane<4, OutputPlane> : &output_plane<2, OutputPlane>;
  for (Group group{first, first}, next = next_group(call, first, last, most); group.last < last;) {
    group = next;
    next = next_group(call, group.last, last, most);
    const int n_out = group.count();
    if (on_the_fly) {
      multiply_raw_group(shape, grid, call, group, next, packed, v, products, u);
    } else {
      const DirectSplit& split = position_split(TileUse::kMultiply, kLanes, n_out, grid.vectors, grid.half());
      const Multiply job{call.n_in, call.in_channel,           kChannelBlock, grid.stride, grid.stride,
                         nullptr,   cached ? 0 : stored_matrix};
      const float* weight[kGroup + 1];
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
      store(grid, plane, products + k * grid.stride, out_matrix);
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
