// How the channel-lane convolution (conv_channel_lanes.cc) is cut into register tiles. Pure integer arithmetic on
// sizes, shared by the kernels and by the cost model (conv_cost.h). Results never depend on it.
#pragma once

#include "conv_tiling.h"
#include "kernels.h"
#include "winograd_tiles.h"

namespace dynprune::cpu {
namespace {

constexpr int kMaxLaneBlocks = 4;   // blocks of 16 output channels in a tile
constexpr int kMaxTilePixels = 14;  // of one row or of several
constexpr int kMaxTileRows = 4;     // 1, 2 or 4
constexpr int kMovedBlocks = 2;     // blocks of a tile whose weights were moved together

// Most blocks of channels beside so many pixels: accumulators, one vector of weights per block and one broadcast pixel
// share 32 registers.
constexpr int max_lane_blocks(int pixels) { return pixels > 8 ? 2 : pixels > 6 ? 3 : 4; }

// Register tiles of a map: `parts` balanced tiles per row; two or four rows at a time where rows are short, so that a
// tiny map is one tile and weights that come from memory are used at once.
struct PixelTiling {
  int rows, parts;
  int columns;  // of the widest part
  int blocks;   // most blocks of channels
};

constexpr PixelTiling pixel_tiling(const PlaneShape& out) {
  const int parts = ceil_div(out.width, kMaxTilePixels);
  const int columns = ceil_div(out.width, parts);
  int rows = 1;
  while (rows < kMaxTileRows && rows < out.height && 2 * rows * out.width <= kMaxTilePixels) rows *= 2;
  return {rows, parts, columns, max_lane_blocks(rows * columns)};
}

// Of a second-level cache of 1 MB half is for the inputs of a panel of rows, which every group of channels reads again,
// and a quarter for the weights of a group, which every tile reads again, while the next ones arrive.
constexpr int64_t kPanelBytes = 512 << 10;
constexpr int64_t kGroupBytes = 256 << 10;

// Layers of one tap and a stride first gather the pixels of a panel: few of those in a cache line are theirs.
constexpr bool gathers_pixels(const StridedShape& shape) {
  return shape.taps == 1 && (shape.stride_h > 1 || shape.stride_w > 1);
}

// Rows of a panel, in whole tiles.
constexpr int panel_rows(const StridedShape& shape, int32_t n_in, int tile_rows) {
  const int64_t row_floats =
      gathers_pixels(shape) ? shape.out.width : static_cast<int64_t>(shape.in_pitch) * shape.stride_h;
  const int64_t plane_bytes = kPanelBytes / (n_in > 0 ? n_in : 1) - 64;
  const int most = plane_bytes > 0 ? static_cast<int>(plane_bytes / (4 * row_floats)) : 0;
  const int panels = ceil_div(shape.out.height, most < tile_rows ? tile_rows : most);
  return ceil_div(ceil_div(shape.out.height, panels), tile_rows) * tile_rows;
}

// Inputs of a group of `blocks` with kGroupBytes of weights. Those that are to be moved count three times: about half
// of the stored ones are live.
constexpr int32_t most_inputs(const StridedShape& shape, int blocks, bool moved) {
  const int64_t most = kGroupBytes / (int64_t{4} * kChannelBlock * shape.taps * blocks * (moved ? 3 : 1));
  return static_cast<int32_t>(most > 8 ? most : 8);
}

// Inputs that a group takes at a time, its sums waiting in scratch. A tile that is the only one reads weights once.
constexpr int32_t input_chunk(const StridedShape& shape, int32_t n_in, int blocks, bool moved, bool one_tile) {
  const int32_t most = most_inputs(shape, blocks, moved);
  return n_in <= most || (one_tile && !moved) ? n_in : ceil_div(n_in, ceil_div(n_in, most));
}

// Pixels of a panel, at most, in a layer whose inputs are taken in chunks.
constexpr int64_t chunked_pixels(const StridedShape& shape) {
  const int32_t fewest = most_inputs(shape, kMaxLaneBlocks, true);
  if (fewest >= shape.in_channels) return 0;
  const int64_t panel = kPanelBytes / 4 / fewest + 2 * kMaxTileRows * shape.out.width;
  const int64_t all = int64_t{shape.out.height} * shape.out.width;
  return panel < all ? panel : all;
}

// Should the weights of `live` outputs, found in `blocks` blocks, be moved together for a panel of so many pixels?
constexpr int kMoveCycles = 12;  // to fetch, permute and store a vector of them: the third-level cache's rate
constexpr bool moving_pays(int blocks, int live, int pixels) {
  return ceil_div(live, kChannelBlock) * pixels + blocks * kMoveCycles < blocks * pixels;
}

}  // namespace
}  // namespace dynprune::cpu
