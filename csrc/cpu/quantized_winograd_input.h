// Input side of integer Winograd convolution: V = B^T d B for every tile of a plane of four channels.
//
// The points are those of winograd_input.h: 0, +-1, +-2, inf. B has integer coefficients of at most 10 per row, so
// that V of 8-bit inputs, at most 100 * 255, fits 16 bits exactly. A word of four channels is taken apart into two of
// 16-bit pairs after its tiles have been moved to their lanes: channels 0 and 2, channels 1 and 3.
#pragma once

#include "cpu/quantized_kernels.h"
#include "cpu/winograd_lanes.h"
#include "cpu/winograd_tiles.h"

namespace dynprune::cpu {
namespace {

constexpr int kOutputTile = 4;  // pixels a side: F(4x4, 3x3)
constexpr int kInputTile = kOutputTile + 2;
constexpr int kElements = kInputTile * kInputTile;

DYNPRUNE_INLINE __m512i add16(__m512i a, __m512i b) { return _mm512_add_epi16(a, b); }
DYNPRUNE_INLINE __m512i sub16(__m512i a, __m512i b) { return _mm512_sub_epi16(a, b); }
DYNPRUNE_INLINE __m512i times4(__m512i a) { return _mm512_slli_epi16(a, 2); }

// Channels Pair and Pair + 2 of words, each as 16 bits.
template <bool Signed, int Pair>
DYNPRUNE_INLINE __m512i channel_pair(__m512i words) {
  if constexpr (Signed) return _mm512_srai_epi16(Pair ? words : _mm512_slli_epi16(words, 8), 8);
  return Pair ? _mm512_srli_epi16(words, 8) : _mm512_and_si512(words, _mm512_set1_epi16(0xff));
}

// out = B^T d for six pairs, `step` apart in d.
DYNPRUNE_INLINE void transform_input_pairs(const __m512i* d, int step, __m512i* out) {
  const __m512i d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const __m512i a = sub16(d4, times4(d2)), b = sub16(d3, times4(d1));
  const __m512i c = sub16(d4, d2), e = sub16(d3, d1), twice = add16(e, e);
  out[0] = add16(times4(sub16(d0, d2)), c);
  out[1] = add16(a, b);
  out[2] = sub16(a, b);
  out[3] = add16(c, twice);
  out[4] = sub16(c, twice);
  out[5] = sub16(sub16(d5, d3), add16(twice, twice));
}

alignas(64) constexpr float kZeroWords[kOutputTile * kLanes] = {};

// Words of one vector of tiles, from tile (tile_row, tile_column) on: tile[i * kInputTile + j]. Words outside the map
// are zero and not read. `Edge`: other tiles of the row lie in other vectors. Words travel as floats, whose shuffles
// leave bits alone.
template <int Segment, bool Edge>
DYNPRUNE_INLINE void load_tiles(const uint32_t* x, const PlaneShape& map, int32_t tile_row, int32_t tile_column,
                                __m512i* tile) {
  constexpr int kRows = kLanes / Segment;
  constexpr int kVectors = kOutputTile * Segment / kLanes;  // per row
  constexpr int kMapRows = (kRows - 1) * kOutputTile + kInputTile;
  const int32_t column = tile_column * kOutputTile;
  const uint64_t bits = column_bits(column, map.width);
  const float* words[kMapRows];
  DYNPRUNE_UNROLL for (int i = 0; i < kMapRows; ++i) {
    const int32_t y = tile_row * kOutputTile - 1 + i;
    const bool inside = y >= 0 && y < map.height;
    words[i] = inside ? reinterpret_cast<const float*>(x) + static_cast<int64_t>(y) * map.pitch + column : kZeroWords;
  }
  DYNPRUNE_UNROLL for (int i = 0; i < kInputTile; ++i) {
    Vec row[kOutputTile], split[kInputTile];
    DYNPRUNE_UNROLL for (int j = 0; j < kOutputTile; ++j) {
      const int at = j % kVectors * kLanes;
      row[j] = load_lanes(words[j / kVectors * kOutputTile + i] + at, lane_mask(static_cast<uint32_t>(bits >> at)));
    }
    split_tiles<kOutputTile>(row, split + 1);
    if constexpr (Edge) {
      static_assert(kRows == 1, "shorter rows end in the same vector");
      const bool inside = words[i] != kZeroWords;
      const bool before = column > 0, after = column + kOutputTile * Segment < map.width;
      Vec edge = set_lane<0>(zero(), before && inside ? words[i] - 1 : kZeroWords);
      edge = set_lane<kLanes - 1>(edge, after && inside ? words[i] + kOutputTile * Segment : kZeroWords);
      split[0] = previous_lane(split[kOutputTile], edge);
      split[kInputTile - 1] = next_lane(split[1], edge);
    } else {
      split[0] = previous_lane<Segment>(split[kOutputTile]);
      split[kInputTile - 1] = next_lane<Segment>(split[1]);
    }
    DYNPRUNE_UNROLL for (int j = 0; j < kInputTile; ++j) tile[i * kInputTile + j] = _mm512_castps_si512(split[j]);
  }
}

// V of one pair of channels of such tiles to v[element * stride].
template <bool Signed, int Pair>
DYNPRUNE_INLINE void transform_pair(const __m512i* tile, int32_t* v, int64_t stride) {
  __m512i rows[kElements];
  DYNPRUNE_UNROLL for (int i = 0; i < kInputTile; ++i) {
    __m512i d[kInputTile];
    DYNPRUNE_UNROLL for (int j = 0; j < kInputTile; ++j) d[j] = channel_pair<Signed, Pair>(tile[i * kInputTile + j]);
    transform_input_pairs(d, 1, rows + i * kInputTile);
  }
  DYNPRUNE_UNROLL for (int j = 0; j < kInputTile; ++j) {
    __m512i out[kInputTile];
    transform_input_pairs(rows + j, kInputTile, out);
    DYNPRUNE_UNROLL for (int i = 0; i < kInputTile; ++i) {
      _mm512_storeu_si512(v + (i * kInputTile + j) * stride, out[i]);
    }
  }
}

// Both pairs of one vector of tiles, `pair` words apart.
template <bool Signed, int Segment, bool Edge>
void input_quads(const uint32_t* x, const PlaneShape& map, int32_t tile_row, int32_t tile_column, int32_t* v,
                 int64_t pair, int64_t stride) {
  __m512i tile[kElements];
  load_tiles<Segment, Edge>(x, map, tile_row, tile_column, tile);
  transform_pair<Signed, 0>(tile, v, stride);
  transform_pair<Signed, 1>(tile, v + pair, stride);
}

using InputQuadsFn = void (*)(const uint32_t*, const PlaneShape&, int32_t, int32_t, int32_t*, int64_t, int64_t);
#define INPUT_QUADS(SIGNED) \
  {&input_quads<SIGNED, 16, false>, &input_quads<SIGNED, 8, false>, &input_quads<SIGNED, 4, false>}
constexpr InputQuadsFn kInputQuads[2][kSegmentKinds] = {INPUT_QUADS(false), INPUT_QUADS(true)};
constexpr InputQuadsFn kInputQuadsOfLongRows[2] = {&input_quads<false, 16, true>, &input_quads<true, 16, true>};

// All tiles of one plane of words: its two pairs to v[element * stride + lane] and the same `pair` words further on.
inline void input_group_plane(const TileGrid& grid, const PlaneShape& map, bool is_signed, const uint32_t* x,
                              int32_t* v, int64_t pair, int64_t stride) {
  const InputQuadsFn transform =
      grid.segments > 1 ? kInputQuadsOfLongRows[is_signed] : kInputQuads[is_signed][grid.kind()];
  for (int32_t row = 0; row < grid.rows; row += grid.rows_per_vector()) {
    for (int32_t s = 0; s < grid.segments; ++s) {
      transform(x, map, grid.first_row + row, s * grid.segment, v + grid.lane(row, s), pair, stride);
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
