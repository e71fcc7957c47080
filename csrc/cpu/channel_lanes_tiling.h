// How the channel-lane convolution (conv_channel_lanes.cc) is cut into register tiles. Pure integer arithmetic on
// sizes, shared by the kernels and by the cost model (conv_cost.h). Results never depend on it.
#pragma once

#include "conv_tiling.h"
#include "kernels.h"
#include "winograd_tiles.h"

namespace dynprune::cpu {
namespace {

constexpr int kMaxLaneBlocks = 4;    // blocks of 16 output channels in a tile
constexpr int kMaxTileColumns = 14;  // pixels of a row in a tile
constexpr int kCompactBlocks = 2;    // blocks of a tile whose weights were compacted

// Most pixels of a tile, and most blocks of channels beside so many pixels: accumulators, one vector of weights per
// block and one broadcast pixel share 32 (AVX-512) or 16 (AVX2) registers.
constexpr int max_tile_pixels(int lanes) { return lanes == 16 ? 14 : 6; }
constexpr int max_lane_blocks(int lanes, int pixels, int step) {
  if (lanes != 16) return pixels > 3 ? 1 : 2;
  if (step > 1 || pixels > 8) return 2;
  return pixels > 6 ? 3 : 4;
}

// Register tiles of a map: `parts` balanced tiles per row; two rows at a time where a row is short.
struct PixelTiling {
  int rows, parts;
  int columns;  // of the widest part
  int blocks;   // most blocks of channels
};

constexpr PixelTiling pixel_tiling(const PlaneShape& out, int lanes, int step) {
  const int most = max_tile_pixels(lanes);
  const int parts = ceil_div(out.width, most);
  const int columns = ceil_div(out.width, parts);
  const int rows = out.height > 1 && 2 * out.width <= most ? 2 : 1;
  return {rows, parts, columns, max_lane_blocks(lanes, rows * columns, step)};
}

// Rows of outputs whose inputs fit half of a second-level cache, in whole tiles: every group of channels reads them.
inline int panel_rows(const StridedShape& shape, int32_t n_in, int tile_rows) {
  constexpr int64_t kPanelBytes = 384 << 10;
  const int64_t row_bytes = int64_t{4} * shape.in_pitch * shape.stride_h;
  const int most = static_cast<int>((kPanelBytes / (n_in > 0 ? n_in : 1) - 64) / row_bytes);
  const int panels = ceil_div(shape.out.height, most < tile_rows ? tile_rows : most);
  return ceil_div(ceil_div(shape.out.height, panels), tile_rows) * tile_rows;
}

// Should the weights of `live` outputs, found in `blocks` blocks, be moved together for a panel of so many pixels?
constexpr bool compaction_pays(int blocks, int live, int pixels) {
  constexpr int kMoveCycles = 4;  // to load, permute and store the weights of a block
  return ceil_div(live, kChannelBlock) * pixels + blocks * kMoveCycles < blocks * pixels;
}

}  // namespace
}  // namespace dynprune::cpu
