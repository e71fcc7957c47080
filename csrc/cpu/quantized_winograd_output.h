// Output side of integer Winograd convolution: Y = A^T M A for every tile, exactly.
//
// With the scales of quantized_winograd_weights.h the rows of A^T, made integers, give 24, 12, 6 and 6 times the
// output. So M yields 9 * 2^s * Y modulo 2^32, s at most 6. Nine is odd: times its inverse modulo 2^32 that is
// 2^s * Y, and Y itself after an arithmetic shift, because |Y| < 2^25.
#pragma once

#include "cpu/quantized_sums_vnni.h"
#include "cpu/quantized_winograd_input.h"

namespace dynprune::cpu {
namespace {

DYNPRUNE_INLINE __m512i add32(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
DYNPRUNE_INLINE __m512i sub32(__m512i a, __m512i b) { return _mm512_sub_epi32(a, b); }

// Output i of a transform is 3 * 2^kOutputShift[i] times what it should be.
constexpr int kOutputShift[kOutputTile] = {3, 2, 1, 1};
constexpr int32_t kInverseOfNine = 0x38e38e39;  // modulo 2^32

// out = A^T m, scaled, for six elements; out `out_step` apart.
DYNPRUNE_INLINE void transform_output_words(const __m512i* m, __m512i* out, int out_step) {
  const __m512i sum12 = add32(m[1], m[2]), difference12 = sub32(m[1], m[2]);
  const __m512i sum34 = add32(m[3], m[4]), difference34 = sub32(m[3], m[4]);
  const __m512i twice5 = add32(m[5], m[5]);
  out[0] = add32(add32(_mm512_slli_epi32(sub32(m[0], sum12), 2), add32(m[0], m[0])), sum34);
  out[out_step] = sub32(difference34, add32(difference12, difference12));
  out[2 * out_step] = sub32(sum34, sum12);
  out[3 * out_step] =
      sub32(add32(add32(difference34, difference34), add32(twice5, add32(twice5, twice5))), difference12);
}

// Y of one vector of tiles of one output, m[element * stride]: sums[4 * i + j] is vector j of row i of all its tiles.
DYNPRUNE_INLINE void output_rows(const int32_t* m, int64_t stride, __m512i* sums) {
  __m512i half[kOutputTile * kInputTile];
  DYNPRUNE_UNROLL for (int j = 0; j < kInputTile; ++j) {
    __m512i in[kInputTile];
    DYNPRUNE_UNROLL for (int i = 0; i < kInputTile; ++i) {
      in[i] = _mm512_loadu_si512(m + (i * kInputTile + j) * stride);
    }
    transform_output_words(in, half + j, kInputTile);
  }
  const __m512i inverse = _mm512_set1_epi32(kInverseOfNine);
  DYNPRUNE_UNROLL for (int i = 0; i < kOutputTile; ++i) {
    __m512i scaled_tile[kOutputTile];
    transform_output_words(half + i * kInputTile, scaled_tile, 1);
    Vec tile[kOutputTile], row[kOutputTile];
    DYNPRUNE_UNROLL for (int j = 0; j < kOutputTile; ++j) {
      const __m512i y = _mm512_mullo_epi32(scaled_tile[j], inverse);
      tile[j] = _mm512_castsi512_ps(_mm512_srai_epi32(y, kOutputShift[i] + kOutputShift[j]));
    }
    join_tiles<kOutputTile>(tile, row);
    DYNPRUNE_UNROLL for (int j = 0; j < kOutputTile; ++j) sums[4 * i + j] = _mm512_castps_si512(row[j]);
  }
}

constexpr int kSumsPerOutput = kOutputTile * kOutputTile;  // vectors, of a vector of tiles

// Finishes the pixels of one vector of tiles for Rows outputs.
template <int Rows, int Segment>
void finish_tiles(const OutputJob& job, const OutputBlock& block, int32_t tile_row, int32_t tile_column,
                  const __m512i* sums) {
  constexpr int kVectors = kOutputTile * Segment / kLanes;  // per row of pixels
  const PlaneShape& map = job.shape.out;
  const int32_t column = tile_column * kOutputTile;
  const uint64_t bits = column_bits(column, map.width);
  uint16_t pixels[kVectors];
  DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) pixels[j] = static_cast<uint16_t>(bits >> (kLanes * j));
  for (int32_t r = 0; r < kLanes / Segment; ++r) {
    for (int32_t i = 0; i < kOutputTile; ++i) {
      const int32_t y = (tile_row + r) * kOutputTile + i;
      if (y >= map.height) return;
      const int64_t position = static_cast<int64_t>(y) * map.pitch + column;
      __m512i acc[Rows][kVectors];
      DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) {
        DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) {
          acc[k][j] = sums[k * kSumsPerOutput + i * kOutputTile + r * kVectors + j];
        }
      }
      if (job.shape.residual_scale != 0.0f) {
        add_sums<Rows, kVectors>(job, block, position, pixels, acc);
      } else if constexpr (Rows == kChannelsPerWord) {
        write_sums<Rows, kVectors>(job, block, position, pixels, acc);
      }
    }
  }
}

using FinishTilesFn = void (*)(const OutputJob&, const OutputBlock&, int32_t, int32_t, const __m512i*);
#define FINISH_SEGMENTS(ROWS) {&finish_tiles<ROWS, 16>, &finish_tiles<ROWS, 8>, &finish_tiles<ROWS, 4>}
constexpr FinishTilesFn kFinishTiles[kChannelsPerWord][kSegmentKinds] = {FINISH_SEGMENTS(1), FINISH_SEGMENTS(2),
                                                                         FINISH_SEGMENTS(3), FINISH_SEGMENTS(4)};

// The `count` outputs of a block, at most four: all tiles of m[output * out_stride + element * stride + lane].
inline void output_block(const TileGrid& grid, const OutputJob& job, const OutputBlock& block, int32_t count,
                         const int32_t* m, int64_t out_stride, int64_t stride) {
  const FinishTilesFn finish = kFinishTiles[block.rows - 1][grid.kind()];
  __m512i sums[kChannelsPerWord * kSumsPerOutput];
  for (int32_t row = 0; row < grid.rows; row += grid.rows_per_vector()) {
    for (int32_t s = 0; s < grid.segments; ++s) {
      for (int32_t k = 0; k < block.rows; ++k) {
        const int32_t from = k < count ? k : count - 1;
        output_rows(m + from * out_stride + grid.lane(row, s), stride, sums + k * kSumsPerOutput);
      }
      finish(job, block, grid.first_row + row, s * grid.segment, sums);
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
