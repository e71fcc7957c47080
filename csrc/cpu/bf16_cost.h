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
inline double bf16_winograd_cycles(const KernelTable& table, const Bf16ConvShape& conv, int32_t live_in,
                                   int32_t changed, int32_t live_out) {
  const WinogradShape shape = bf16_winograd_shape(conv);
  const TileGrid grid = tile_grid(shape.out, shape.m, table.lanes);
  const double per_input = transform_cycles(table.lanes, shape.m).input[grid.kind()] * grid.transforms();
  return winograd_cycles(table, shape, WinogradWeights::kOnTheFly, live_in, live_out, sizeof(uint16_t)) -
         per_input * (live_in - changed);
}

// Is a second copy of the weights worth its memory?
inline bool bf16_winograd_pays(const KernelTable& table, const Bf16ConvShape& shape) {
  return bf16_winograd_cycles(table, shape, shape.in_channels, shape.in_channels, shape.out_channels) <
         bf16_direct_cycles(shape, shape.in_channels, shape.out_channels);
}

}  // namespace
}  // namespace dynprune::cpu
