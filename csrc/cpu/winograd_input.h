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

alignas(64) constexpr float kZeroRow[4 * kLanes] = {};

// What the 32 bits of a pixel are: `floats` makes them float32, and zero out of zero bits.
struct FloatPixels {
  static DYNPRUNE_INLINE Vec floats(Vec bits) { return bits; }
};

// One vector of tiles, from tile (tile_row, tile_column) on, to v[t * stride]. Pixels outside the map are zero and
// not read: neither pads nor the next row can touch a result. `Edge`: other tiles of the row lie in other vectors.
//
// Columns are transformed first, while the pixels lie as in the map: 4 vectors of 6 rows need 4 transforms instead of
// 6, and what waits for the second half fits the registers.
template <int M, int Segment, bool Edge, class Pixels>
void input_tiles(const float* x, const PlaneShape& map, int32_t tile_row, int32_t tile_column, float* v,
                 int64_t stride) {
  constexpr int kSize = M + 2;
  constexpr int kRows = kLanes / Segment;
  constexpr int kFloats = M * Segment;
  constexpr int kVectors = kFloats >= kLanes ? kFloats / kLanes : 1;  // per row
  const int32_t column = tile_column * M;
  const uint64_t bits = column_bits(column, map.width);
  LaneMask mask[kVectors];
  DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) mask[j] = lane_mask(static_cast<uint32_t>(bits >> (j * kLanes)));

  constexpr int kMapRows = (kRows - 1) * M + kSize;
  const float* pixels[kMapRows];
  DYNPRUNE_UNROLL for (int i = 0; i < kMapRows; ++i) {
    const int32_t y = tile_row * M - 1 + i;
    pixels[i] = y >= 0 && y < map.height ? x + static_cast<int64_t>(y) * map.pitch + column : kZeroRow;
  }
  Vec columns[M][kSize], edges[kSize];
  DYNPRUNE_UNROLL for (int j = 0; j < M; ++j) {
    Vec d[kSize];
    DYNPRUNE_UNROLL for (int i = 0; i < kSize; ++i) {
      if constexpr (kFloats >= kLanes) {
        d[i] = Pixels::floats(load_lanes(pixels[j / kVectors * M + i] + j % kVectors * kLanes, mask[j % kVectors]));
      } else {
        d[i] = Pixels::floats(load_halves(pixels[2 * j * M + i], pixels[(2 * j + 1) * M + i], mask[0]));
      }
    }
    transform_input<M>(d, 1, columns[j]);
  }
  if constexpr (Edge) {
    static_assert(kRows == 1, "shorter rows end in the same vector");
    const bool before = column > 0, after = column + kFloats < map.width;
    Vec d[kSize];
    DYNPRUNE_UNROLL for (int i = 0; i < kSize; ++i) {
      const bool inside = pixels[i] != kZeroRow;
      d[i] = set_lane<0>(zero(), before && inside ? pixels[i] - 1 : kZeroRow);
      d[i] = Pixels::floats(set_lane<kLanes - 1>(d[i], after && inside ? pixels[i] + kFloats : kZeroRow));
    }
    transform_input<M>(d, 1, edges);
  }
  DYNPRUNE_UNROLL for (int i = 0; i < kSize; ++i) {
    Vec row[M], tile[kSize], out[kSize];
    DYNPRUNE_UNROLL for (int j = 0; j < M; ++j) row[j] = columns[j][i];
    split_tiles<M>(row, tile + 1);
    if constexpr (Edge) {
      tile[0] = previous_lane(tile[M], edges[i]);
      tile[M + 1] = next_lane(tile[1], edges[i]);
    } else {
      tile[0] = previous_lane<Segment>(tile[M]);
      tile[M + 1] = next_lane<Segment>(tile[1]);
    }
    transform_input<M>(tile, 1, out);
    DYNPRUNE_UNROLL for (int j = 0; j < kSize; ++j) store(v + (i * kSize + j) * stride, out[j]);
  }
}

using InputTilesFn = void (*)(const float*, const PlaneShape&, int32_t, int32_t, float*, int64_t);

// By TileGrid::kind(), and for rows of several vectors.
template <int M, class Pixels>
constexpr InputTilesFn kInputTiles[kSegmentKinds] = {
#if defined(__AVX512F__)
    &input_tiles<M, 16, false, Pixels>,
#endif
    &input_tiles<M, 8, false, Pixels>, &input_tiles<M, 4, false, Pixels>};
template <int M, class Pixels>
constexpr InputTilesFn kInputTilesOfLongRows = &input_tiles<M, kLanes, true, Pixels>;

// All tiles of one plane to v[t * stride + lane].
template <int M, class Pixels>
void input_plane(const TileGrid& grid, const PlaneShape& map, const float* x, float* v, int64_t stride) {
  const InputTilesFn transform =
      grid.segments > 1 ? kInputTilesOfLongRows<M, Pixels> : kInputTiles<M, Pixels>[grid.kind()];
  for_each_tile_vector(
      grid, [&](int32_t row, int32_t column, int64_t lane) { transform(x, map, row, column, v + lane, stride); });
}

}  // namespace
}  // namespace dynprune::cpu
