// Estimated cycles of one int8 convolution by each algorithm, as arithmetic on sizes and the channels of a call. Both
// give the same bits, so that the choice is free: it may differ with and without skipping.
//
// Fitted on Zen 4, weights hot and cold, to maps of 14 to 56 pixels with all and half of the channels live.
#pragma once

#include "cpu/quantized_kernels.h"
#include "cpu/winograd_tiles.h"

namespace dynprune::cpu {
namespace {

// Of quantized_conv_vnni.h: an instruction for each word of inputs, tap, output and vector of positions.
inline double quantized_direct_cycles(const QuantizedConvShape& shape, int32_t n_in, int32_t n_out) {
  const double per_product = 1.03, per_output = 4.0;  // the latter of a vector: scale, round, store
  const double products = static_cast<double>(shape.taps) * ceil_div(n_in, kChannelsPerWord);
  return (per_product * products + per_output) * n_out * shape.out.blocks;
}

// Of quantized_winograd_vnni.h.
inline double quantized_winograd_cycles(const QuantizedConvShape& shape, int32_t n_in, int32_t n_out) {
  constexpr int kTile = 4, kLanes = 16, kGroup = 16;
  const double input = 450.0, output = 320.0, weights = 300.0;  // of a vector of tiles; of an output's 16 words
  const TileGrid grid = tile_grid(shape.out, kTile, kLanes);
  const int group = n_out < kGroup ? n_out : kGroup;
  const DirectSplit& split = position_split(TileUse::kMultiply, kLanes, group, grid.vectors, grid.half());
  const double words = ceil_div(n_in, kChannelsPerWord);
  const double products = 2.0 * (kTile + 2) * (kTile + 2) * words * split.cycles * n_out / group;
  const double start = 2000.0;
  return start + products + (input * words + output * n_out) * grid.transforms() +
         weights * n_out * ceil_div(static_cast<int>(words), 16);
}

}  // namespace
}  // namespace dynprune::cpu
