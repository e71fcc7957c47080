// How the tiles of a map lie in the lanes of vectors, for Winograd convolution.
// Pure arithmetic, shared by the kernels and by the cost model.
//
// The map is cut into tiles of m x m outputs, each computed from (m+2) x (m+2) inputs. Lanes are tiles:
// - rows of more than kLanes / 2 tiles: tile (r, c) is lane r * columns + c. A row is transformed in segments of
//   kLanes tiles; the surplus lanes of its last segment are overwritten by the next row.
// - shorter rows: several tile rows, each padded to kLanes / 2 or kLanes / 4 lanes, share a vector, so that a
//   14x14 map with m = 4, and a 7x7 or 8x8 map with m = 2, is exactly one AVX-512 vector.
#pragma once

#include "conv_tiling.h"
#include "kernels.h"

namespace dynprune::cpu {
namespace {

constexpr int kChannelBlock = 16;  // output channels that adjoin in stored weights
constexpr int kMinSegment = 4;

struct TileGrid {
  int32_t lanes;          // of a vector
  int32_t first_row;      // of tiles, in the map
  int32_t rows, columns;  // of tiles
  int32_t segment;        // lanes of one tile row in a vector: lanes, lanes / 2, ... kMinSegment
  int32_t segments;       // vectors per tile row (segment == lanes), else 1
  int32_t vectors;        // that hold tiles
  int64_t stride;         // floats of one matrix of tiles: vectors * lanes, and room for surplus lanes

  int32_t rows_per_vector() const { return lanes / segment; }
  int32_t kind() const { return segment == lanes ? 0 : segment * 2 == lanes ? 1 : 2; }
  // First lane of the vector of a segment.
  int64_t lane(int32_t row, int32_t segment_index) const {
    return segment == lanes ? static_cast<int64_t>(row) * columns + segment_index * lanes
                            : static_cast<int64_t>(row) * segment;
  }
  // True if the tiles in the last vector fit its lower half.
  bool half() const {
    const int32_t used = segment == lanes ? rows * columns : rows * segment;
    return lanes == 16 && (used - 1) % lanes < lanes / 2;
  }
  // Vectors that are transformed, of each plane.
  int32_t transforms() const { return ceil_div(rows, rows_per_vector()) * segments; }
};

// The tiles of rows [first, last) of tiles.
inline TileGrid tile_grid(const PlaneShape& map, int32_t m, int32_t lanes, TileRows rows) {
  TileGrid grid{};
  grid.lanes = lanes;
  grid.first_row = rows.first;
  grid.rows = rows.last - rows.first;
  grid.columns = ceil_div(map.width, m);
  grid.segment = lanes;
  while (grid.segment > kMinSegment && grid.columns * 2 <= grid.segment) grid.segment /= 2;
  grid.segments = grid.segment == lanes ? ceil_div(grid.columns, lanes) : 1;
  const int32_t last_row = (grid.rows - 1) / grid.rows_per_vector() * grid.rows_per_vector();
  const int64_t end = grid.lane(last_row, grid.segments - 1) + lanes;  // of the last vector stored
  const int64_t used = grid.segment == lanes ? static_cast<int64_t>(grid.rows) * grid.columns : end;
  grid.vectors = static_cast<int32_t>((used + lanes - 1) / lanes);
  grid.stride = (end + 15) / 16 * 16;
  return grid;
}

inline TileGrid tile_grid(const PlaneShape& map, int32_t m, int32_t lanes) {
  return tile_grid(map, m, lanes, {0, ceil_div(map.height, m)});
}

// Calls visit(tile row in the map, tile column, first lane) for every vector that is transformed.
template <class Visit>
inline void for_each_tile_vector(const TileGrid& grid, Visit&& visit) {
  for (int32_t row = 0; row < grid.rows; row += grid.rows_per_vector()) {
    for (int32_t s = 0; s < grid.segments; ++s) visit(grid.first_row + row, s * grid.segment, grid.lane(row, s));
  }
}

// How the rows of tiles of a map may be shared out, a vector of short rows being indivisible.
struct WinogradBands {
  int32_t tile_rows;
  int32_t rows_per_vector;
  int32_t units() const { return ceil_div(tile_rows, rows_per_vector); }
  // More bands would have less than two vectors each: their last ones run half empty.
  int32_t most() const { return units() / 2; }
  TileRows rows(int32_t band, int32_t bands) const {
    const int32_t last = balanced_begin(units(), bands, band + 1) * rows_per_vector;
    return {balanced_begin(units(), bands, band) * rows_per_vector, last < tile_rows ? last : tile_rows};
  }
};
inline WinogradBands winograd_bands(const WinogradShape& shape, int32_t lanes) {
  const TileGrid grid = tile_grid(shape.out, shape.m, lanes);
  return {grid.rows, grid.rows_per_vector()};
}

// Floats of V of the largest of so many bands, all inputs live.
inline int64_t winograd_band_scratch(const KernelTable& table, const WinogradShape& shape, WinogradWeights form,
                                     int32_t bands) {
  const WinogradBands all = winograd_bands(shape, table.lanes);
  WinogradShape band = shape;
  band.out.height = ceil_div(all.units(), bands) * all.rows_per_vector * shape.m;
  return static_cast<int64_t>(table.winograd_sizes(band, form).input_scratch + 15) / 16 * 16;
}

// Bit i: is column `first` + i a pixel?
inline uint64_t column_bits(int32_t first, int32_t width) {
  const uint64_t below = width - first >= 64 ? ~uint64_t{0} : width <= first ? 0 : (uint64_t{1} << (width - first)) - 1;
  return first < 0 ? below & (~uint64_t{0} << -first) : below;
}

// Distance between the (m+2)^2 matrices of `n` rows each: an odd number of cache lines, because one tile's elements
// lie in all of them and would fall into one set of the first-level cache otherwise.
inline int64_t matrix_stride(const TileGrid& grid, int64_t n) { return (grid.stride * n / 16 | 1) * 16; }

}  // namespace
}  // namespace dynprune::cpu
