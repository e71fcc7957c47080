// How the tiles of a map lie in the lanes of vectors, for Winograd convolution.
//
// The map is cut into tiles of m x m outputs, each computed from (m+2) x (m+2) inputs. Lanes are tiles:
// - rows of more than kLanes / 2 tiles: tile (r, c) is lane r * columns + c. A row is transformed in segments of
//   kLanes tiles; the surplus lanes of its last segment are overwritten by the next row.
// - shorter rows: several tile rows, each padded to kLanes / 2 or kLanes / 4 lanes, share a vector, so that a
//   14x14 map with m = 4, and a 7x7 or 8x8 map with m = 2, is exactly one AVX-512 vector.
#pragma once

#include "conv_tiling.h"
#include "kernels.h"
#include "vec.h"

namespace dynprune::cpu {
namespace {

constexpr int kChannelBlock = 16;  // output channels that adjoin in stored weights
constexpr int kMinSegment = 4;
constexpr int kSegmentKinds = kLanes == 16 ? 3 : 2;  // kLanes, kLanes / 2, ... kMinSegment

struct TileGrid {
  int32_t rows, columns;  // of tiles
  int32_t segment;        // lanes of one tile row in a vector
  int32_t segments;       // vectors per tile row (segment == kLanes), else 1
  int32_t vectors;        // that hold tiles
  int64_t stride;         // floats of one matrix of tiles: vectors * kLanes, and room for surplus lanes

  int32_t rows_per_vector() const { return kLanes / segment; }
  // Index of `segment` among the kinds.
  int32_t kind() const { return segment == kLanes ? 0 : segment * 2 == kLanes ? 1 : 2; }
  // First lane of the vector of a segment.
  int64_t lane(int32_t row, int32_t segment_index) const {
    return segment == kLanes ? static_cast<int64_t>(row) * columns + segment_index * kLanes
                             : static_cast<int64_t>(row) * segment;
  }
  // True if the tile after the last lane of a segment matters: its first two columns end the last tile.
  bool needs_edge() const { return segments > 1 || columns == segment; }
};

inline TileGrid tile_grid(const PlaneShape& map, int32_t m) {
  TileGrid grid{};
  grid.rows = ceil_div(map.height, m);
  grid.columns = ceil_div(map.width, m);
  grid.segment = kLanes;
  while (grid.segment > kMinSegment && grid.columns * 2 <= grid.segment) grid.segment /= 2;
  grid.segments = grid.segment == kLanes ? ceil_div(grid.columns, kLanes) : 1;
  const int32_t last_row =
      grid.segment == kLanes ? grid.rows - 1 : (grid.rows - 1) / grid.rows_per_vector() * grid.rows_per_vector();
  const int64_t end = grid.lane(last_row, grid.segments - 1) + kLanes;  // of the last vector stored
  const int64_t lanes = grid.segment == kLanes ? static_cast<int64_t>(grid.rows) * grid.columns : end;
  grid.vectors = static_cast<int32_t>((lanes + kLanes - 1) / kLanes);
  grid.stride = (end + 15) / 16 * 16;
  return grid;
}

// Bit i: is column `first` + i a pixel?
DYNPRUNE_INLINE uint64_t column_bits(int32_t first, int32_t width) {
  const uint64_t below = width - first >= 64 ? ~uint64_t{0} : width <= first ? 0 : (uint64_t{1} << (width - first)) - 1;
  return first < 0 ? below & (~uint64_t{0} << -first) : below;
}

// Distance between the (m+2)^2 matrices of `n` rows each: an odd number of cache lines, because one tile's elements
// lie in all of them and would fall into one set of the first-level cache otherwise.
inline int64_t matrix_stride(const TileGrid& grid, int64_t n) { return (grid.stride * n / 16 | 1) * 16; }

}  // namespace
}  // namespace dynprune::cpu
