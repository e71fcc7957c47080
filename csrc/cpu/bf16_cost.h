// Estimated cycles of a bf16 convolution on AVX512_BF16, directly and by Winograd: see conv_cost.h. Fitted on Zen 4,
// where vdpbf16ps does 32 multiply-adds a cycle.
#pragma once

#include "cpu/bf16_kernels.h"
#include "cpu/conv_cost.h"

namespace dynprune::cpu {
namespace {

// Of one group, taps included.
inline double bf16_direct_cycles(const Bf16ConvShape& shape, int32_t live_in, int32_t live_out) {
  if (live_out <= 0) return 0;
  const double steps = static_cast<double>(shape.taps) * ceil_div(live_in, kBf16PerWord);
  const double vectors = static_cast<double>(shape.out.blocks) * live_out;
  const double per_vector = 10.0;  // epilogue and store
  const double move = live_in < shape.in_channels ? 0.5 * steps * live_out : 0.0;
  const double start = 500.0;
  return start + vectors * (1.01 * steps + per_vector) + move;
}

// `changed`: inputs to be transformed, fewer than live_in where a transformed input was kept.
inline double bf16_winograd_cycles(const KernelTable& table, const Bf16ConvShape& conv, int32_t live_in, double changed,
                                   int32_t live_out) {
  if (live_out <= 0) return 0;
  const WinogradShape shape = bf16_winograd_shape(conv);
  const TileGrid grid = tile_grid(shape.out, shape.m, table.lanes);
  // Of one vector of tiles, by TileGrid::kind(), and of 16 weights.
  constexpr double kInput[] = {230.0, 205.0, 240.0}, kOutput[] = {320.0, 255.0, 250.0}, kWeights = 135.0;
  const double transforms = kInput[grid.kind()] * changed + kOutput[grid.kind()] * live_out;
  const double blocks = blocks_touched(shape.out_channels, live_out, kChannelBlock);
  const double full = ceil_div(live_out, kChannelBlock);
  const double vectors = full > blocks / 2 ? full : blocks / 2;  // of weights, out of at most two blocks each
  const double start = 750.0;
  return start + transforms * grid.transforms() + kWeights * vectors * live_in +
         winograd_product_cycles(table, shape, grid, live_in, live_out);
}

// Is a second copy of the weights worth its memory?
inline bool bf16_winograd_pays(const KernelTable& table, const Bf16ConvShape& shape) {
  return bf16_winograd_cycles(table, shape, shape.in_channels, shape.in_channels, shape.out_channels) <
         bf16_direct_cycles(shape, shape.in_channels, shape.out_channels);
}

}  // namespace
}  // namespace dynprune::cpu
