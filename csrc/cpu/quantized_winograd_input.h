// Input side of integer Winograd convolution: V = B^T d B for every tile of a plane of four channels.
//
// The points are those of winograd_input.h: 0, +-1, +-2, inf. B has integer coefficients of at most 10 per row, so
// that V of 8-bit inputs, at most 100 * 255, fits 16 bits exactly. A word of four channels becomes two of 16-bit pairs:
// channels 0 and 2, channels 1 and 3.
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

// out = B^T d for six pairs.
DYNPRUNE_INLINE void transform_input_pairs(const __m512i* d, __m512i* out) {
  const __m512i a = sub16(d[4], times4(d[2])), b = sub16(d[3], times4(d[1]));
  const __m512i c = sub16(d[4], d[2]), e = sub16(d[3], d[1]), twice = add16(e, e);
  out[0] = add16(times4(sub16(d[0], d[2])), c);
  out[1] = add16(a, b);
  out[2] = sub16(a, b);
  out[3] = add16(c, twice);
  out[4] = sub16(c, twice);
  out[5] = sub16(sub16(d[5], d[3]), add16(twice, twice));
}

alignas(64) constexpr float kZeroWords[kOutputTile * kLanes] = {};

// Where the words of one vector of tiles lie, from tile (tile_row, tile_column) on. Words outside the map are zero and
// not read. `Edge`: other tiles of the row lie in other vectors.
template <int Segment, bool Edge>
struct TileSource {
  static constexpr int kRows = kLanes / Segment;
  static constexpr int kVectors = kOutputTile * Segment / kLanes;  // per row
  static constexpr int kMapRows = (kRows - 1) * kOutputTile + kInputTile;
  const float* row[kMapRows];
  LaneMask mask[kVectors];
  bool before, after;  // with Edge: there are words on these sides

  TileSource(const uint32_t* x, const PlaneShape& map, int32_t tile_row, int32_t tile_column) {
    const int32_t column = tile_column * kOutputTile;
    const uint64_t bits = column_bits(column, map.width);
    DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) mask[j] = lane_mask(static_cast<uint32_t>(bits >> (j * kLanes)));
    DYNPRUNE_UNROLL for (int i = 0; i < kMapRows; ++i) {
      const int32_t y = tile_row * kOutputTile - 1 + i;
      const bool inside = y >= 0 && y < map.height;
      row[i] = inside ? reinterpret_cast<const float*>(x) + static_cast<int64_t>(y) * map.pitch + column : kZeroWords;
    }
    before = column > 0;
    after = column + kOutputTile * Segment < map.width;
  }
  // Vector j of row i of the tiles.
  DYNPRUNE_INLINE __m512i words(int i, int j) const {
    const float* from = row[j / kVectors * kOutputTile + i] + j % kVectors * kLanes;
    return _mm512_castps_si512(load_lanes(from, mask[j % kVectors]));
  }
  // The words beside row i, in the first and the last lane.
  DYNPRUNE_INLINE __m512i edges(int i) const {
    static_assert(kRows == 1, "shorter rows end in the same vector");
    const bool inside = row[i] != kZeroWords;
    const Vec first = set_lane<0>(zero(), before && inside ? row[i] - 1 : kZeroWords);
    return _mm512_castps_si512(
        set_lane<kLanes - 1>(first, after && inside ? row[i] + kOutputTile * Segment : kZeroWords));
  }
};

// V of one pair of channels of such tiles to v[element * stride]. Columns first, while words lie as in the map: 4
// vectors of 6 rows need 4 transforms instead of 6. Pairs travel as floats, whose shuffles leave bits alone.
template <bool Signed, int Pair, int Segment, bool Edge>
DYNPRUNE_INLINE void transform_pair(const TileSource<Segment, Edge>& source, int32_t* v, int64_t stride) {
  __m512i columns[kOutputTile][kInputTile], edges[kInputTile];
  DYNPRUNE_UNROLL for (int j = 0; j < kOutputTile; ++j) {
    __m512i d[kInputTile];
    DYNPRUNE_UNROLL for (int i = 0; i < kInputTile; ++i) d[i] = channel_pair<Signed, Pair>(source.words(i, j));
    transform_input_pairs(d, columns[j]);
  }
  if constexpr (Edge) {
    __m512i d[kInputTile];
    DYNPRUNE_UNROLL for (int i = 0; i < kInputTile; ++i) d[i] = channel_pair<Signed, Pair>(source.edges(i));
    transform_input_pairs(d, edges);
  }
  DYNPRUNE_UNROLL for (int i = 0; i < kInputTile; ++i) {
    Vec row[kOutputTile], split[kInputTile];
    DYNPRUNE_UNROLL for (int j = 0; j < kOutputTile; ++j) row[j] = _mm512_castsi512_ps(columns[j][i]);
    split_tiles<kOutputTile>(row, split + 1);
    if constexpr (Edge) {
      split[0] = previous_lane(split[kOutputTile], _mm512_castsi512_ps(edges[i]));
      split[kInputTile - 1] = next_lane(split[1], _mm512_castsi512_ps(edges[i]));
    } else {
      split[0] = previous_lane<Segment>(split[kOutputTile]);
      split[kInputTile - 1] = next_lane<Segment>(split[1]);
    }
    __m512i tile[kInputTile], out[kInputTile];
    DYNPRUNE_UNROLL for (int j = 0; j < kInputTile; ++j) tile[j] = _mm512_castps_si512(split[j]);
    transform_input_pairs(tile, out);
    DYNPRUNE_UNROLL for (int j = 0; j < kInputTile; ++j) {
      _mm512_storeu_si512(v + (i * kInputTile + j) * stride, out[j]);
    }
  }
}

// Both pairs of one vector of tiles, `pair` words apart.
template <bool Signed, int Segment, bool Edge>
void input_quads(const uint32_t* x, const PlaneShape& map, int32_t tile_row, int32_t tile_column, int32_t* v,
                 int64_t pair, int64_t stride) {
  const TileSource<Segment, Edge> source(x, map, tile_row, tile_column);
  transform_pair<Signed, 0>(source, v, stride);
  transform_pair<Signed, 1>(source, v + pair, stride);
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
