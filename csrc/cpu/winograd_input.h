// Input side of Winograd convolution: V = B^T d B for every tile of a plane.
//
// Points 0, +-1, +-2, inf for F(4x4, 3x3) and 0, +-1, inf for F(2x2, 3x3); Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", 2015.
#pragma once

#include "winograd_lanes.h"
#include "winograd_tiles.h"

namespace dynprune::cpu {
namespace {

// out = B^T d for one column of M+2 elements, `step` apart in d.
template <int M>
DYNPRUNE_INLINE void transform_input(const Vec* d, int step, Vec* out) {
  const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  if constexpr (M == 2) {
    out[0] = sub(d0, d2);
    out[1] = add(d1, d2);
    out[2] = sub(d2, d1);
    out[3] = sub(d1, d3);
  } else {
    const Vec d4 = d[4 * step], d5 = d[5 * step];
    const Vec four = broadcast(4.0f), five = broadcast(5.0f), two = broadcast(2.0f);
    const Vec a = fnma(four, d2, d4), b = fnma(four, d1, d3);  // d4 - 4 d2, d3 - 4 d1
    const Vec c = sub(d4, d2), e = sub(d3, d1);
    out[0] = fma(four, d0, fnma(five, d2, d4));
    out[1] = add(a, b);
    out[2] = sub(a, b);
    out[3] = fma(two, e, c);
    out[4] = fnma(two, e, c);
    out[5] = fma(four, d1, fnma(five, d3, d5));
  }
}

alignas(64) constexpr float kZeroRow[4 * kLanes + 16] = {};

// Sets the last lane of every tile row to the pixels that begin the tile after it.
template <int Segment, int Row = 0>
DYNPRUNE_INLINE void set_edges(Vec& first, Vec& second, const float* const* from, int floats, bool edge0, bool edge1) {
  if constexpr (Row < kLanes / Segment) {
    constexpr int kLane = (Row + 1) * Segment - 1;
    first = set_lane<kLane>(first, edge0 ? from[Row] + floats : kZeroRow);
    second = set_lane<kLane>(second, edge1 ? from[Row] + floats + 1 : kZeroRow);
    set_edges<Segment, Row + 1>(first, second, from, floats, edge0, edge1);
  }
}

// One vector of tiles, from tile (tile_row, tile_column) on, to v[t * stride]. Pixels outside the map are zero and
// not read: neither pads nor the next row can touch a result.
template <int M, int Segment, bool Edge>
void input_tiles(const float* x, const PlaneShape& map, int32_t tile_row, int32_t tile_column, float* v,
                 int64_t stride) {
  constexpr int kSize = M + 2;
  constexpr int kRows = kLanes / Segment;
  constexpr int kFloats = M * Segment;
  constexpr int kVectors = kFloats >= kLanes ? kFloats / kLanes : 1;  // per row
  const int32_t column = tile_column * M - 1;
  const uint64_t bits = column_bits(column, map.width);
  LaneMask mask[kVectors];
  DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) mask[j] = lane_mask(static_cast<uint32_t>(bits >> (j * kLanes)));
  const bool edge0 = column + kFloats < map.width, edge1 = column + kFloats + 1 < map.width;

  Vec d[kSize * kSize];
  DYNPRUNE_UNROLL for (int i = 0; i < kSize; ++i) {
    const float* from[kRows];
    DYNPRUNE_UNROLL for (int r = 0; r < kRows; ++r) {
      const int32_t y = (tile_row + r) * M - 1 + i;
      from[r] = y >= 0 && y < map.height ? x + static_cast<int64_t>(y) * map.pitch + column : kZeroRow;
    }
    Vec row[M], tile[kSize];
    DYNPRUNE_UNROLL for (int j = 0; j < M; ++j) {
      if constexpr (kFloats >= kLanes) {
        row[j] = load_lanes(from[j / kVectors] + j % kVectors * kLanes, mask[j % kVectors]);
      } else {
        row[j] = load_halves(from[2 * j], from[2 * j + 1], mask[0]);
      }
    }
    split_tiles<M>(row, tile);
    tile[M] = next_lane(tile[0]);
    tile[M + 1] = next_lane(tile[1]);
    if constexpr (Edge) {
      set_edges<Segment>(tile[M], tile[M + 1], from, kFloats, edge0, edge1);
    }
    transform_input<M>(tile, 1, d + i * kSize);
  }
  DYNPRUNE_UNROLL for (int j = 0; j < kSize; ++j) {
    Vec out[kSize];
    transform_input<M>(d + j, kSize, out);
    DYNPRUNE_UNROLL for (int i = 0; i < kSize; ++i) store(v + (i * kSize + j) * stride, out[i]);
  }
}

using InputTilesFn = void (*)(const float*, const PlaneShape&, int32_t, int32_t, float*, int64_t);

#define INPUT_EDGES(M, SEGMENT) {&input_tiles<M, SEGMENT, false>, &input_tiles<M, SEGMENT, true>}
#if defined(__AVX512F__)
#define INPUT_SEGMENTS(M) {INPUT_EDGES(M, 16), INPUT_EDGES(M, 8), INPUT_EDGES(M, 4)}
#else
#define INPUT_SEGMENTS(M) {INPUT_EDGES(M, 8), INPUT_EDGES(M, 4)}
#endif
constexpr InputTilesFn kInputTiles[2][kSegmentKinds][2] = {INPUT_SEGMENTS(2), INPUT_SEGMENTS(4)};

// All tiles of one plane to v[t * stride + lane].
inline void input_plane(const TileGrid& grid, const PlaneShape& map, int32_t m, const float* x, float* v,
                        int64_t stride) {
  const InputTilesFn transform = kInputTiles[m == 4][grid.kind()][grid.needs_edge()];
  for (int32_t row = 0; row < grid.rows; row += grid.rows_per_vector()) {
    for (int32_t s = 0; s < grid.segments; ++s) {
      transform(x, map, row, s * grid.segment, v + grid.lane(row, s), stride);
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
