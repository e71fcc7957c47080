// Output side of Winograd convolution: Y = A^T M A for every tile, the epilogue, and stores of whole pixel rows.
#pragma once

#include "conv_epilogue.h"
#include "winograd_lanes.h"
#include "winograd_tiles.h"

namespace dynprune::cpu {
namespace {

// out = A^T m for one column of M+2 elements; out `out_step` apart.
template <int M>
DYNPRUNE_INLINE void transform_output(const Vec* m, Vec* out, int out_step) {
  const Vec sum12 = add(m[1], m[2]), difference12 = sub(m[1], m[2]);
  if constexpr (M == 2) {
    out[0] = add(m[0], sum12);
    out[out_step] = sub(difference12, m[3]);
  } else {
    const Vec sum34 = add(m[3], m[4]), difference34 = sub(m[3], m[4]);
    // Columns of A^T times 1/4, -1/6, -1/6, 1/24, 1/24, 1 (transform_weights).
    const Vec sixth = broadcast(-1.0f / 6), even = mul(sixth, sum12), odd = mul(sixth, difference12);
    out[0] = fma(broadcast(1.0f / 24), sum34, fma(broadcast(0.25f), m[0], even));
    out[out_step] = fma(broadcast(1.0f / 12), difference34, odd);
    out[2 * out_step] = fnma(sixth, sum34, even);
    out[3 * out_step] = add(m[5], fma(broadcast(1.0f / 3), difference34, odd));
  }
}

// Where the rows of pixels of one output go. Another storage has a struct of its own with the same members; `slot`
// numbers the rows of a vector of tiles, below kRowSlots.
struct OutputPlane {
  float* y;
  const PlaneShape* map;
  const Epilogue* epilogue;
  ChannelEpilogue channel;
  template <EpilogueKind Kind>
  DYNPRUNE_INLINE void store_row(const ChannelFinish<Kind>& finish, int slot, int64_t position, uint32_t bits,
                                 Vec v) const;
};
constexpr int kRowSlots = 16;

// Finishes `v` and stores it at `position`; `bits` are the lanes that are pixels.
template <EpilogueKind Kind>
DYNPRUNE_INLINE void finish_row(const OutputPlane& plane, const ChannelFinish<Kind>& finish, int64_t position,
                                uint32_t bits, Vec v) {
  constexpr uint32_t kAll = (1u << kLanes) - 1;
  bits &= kAll;
  Vec residual = zero();
  if constexpr (ChannelFinish<Kind>::kMayAdd) {
    const float* from = plane.channel.residual;
    if (Kind == EpilogueKind::kAdded || from) residual = load_lanes(from + position, lane_mask(bits));
  }
  v = finish(v, residual);
  float* to = plane.y + position;
  if (bits == kAll) {
    store(to, v);
  } else if (position + kLanes <= int64_t{kBlock} * plane.map->blocks) {
    store_over(to, bits, v);
  } else {
    store_lanes(to, bits, v);
  }
}

template <EpilogueKind Kind>
DYNPRUNE_INLINE void OutputPlane::store_row(const ChannelFinish<Kind>& finish, int, int64_t position, uint32_t bits,
                                            Vec v) const {
  finish_row<Kind>(*this, finish, position, bits, v);
}

// One vector of tiles, from tile (tile_row, tile_column) on, of m[t * stride].
template <int M, int Segment, EpilogueKind Kind, class Plane>
void output_tiles(const Plane& plane, int32_t tile_row, int32_t tile_column, const float* m, int64_t stride) {
  constexpr int kSize = M + 2;
  constexpr int kFloats = M * Segment;
  Vec half[M * kSize];
  DYNPRUNE_UNROLL for (int j = 0; j < kSize; ++j) {
    Vec in[kSize];
    DYNPRUNE_UNROLL for (int i = 0; i < kSize; ++i) in[i] = load(m + (i * kSize + j) * stride);
    transform_output<M>(in, half + j, kSize);
  }
  const PlaneShape& map = *plane.map;
  const ChannelFinish<Kind> finish{*plane.epilogue, plane.channel};
  const int32_t column = tile_column * M;
  const uint64_t bits = column_bits(column, map.width);
  DYNPRUNE_UNROLL for (int i = 0; i < M; ++i) {
    Vec tile[M], row[M];
    transform_output<M>(half + i * kSize, tile, 1);
    join_tiles<M>(tile, row);
    DYNPRUNE_UNROLL for (int j = 0; j < M; ++j) {
      if constexpr (kFloats >= kLanes) {
        constexpr int kVectors = kFloats / kLanes;  // per tile row
        const int32_t y = (tile_row + j / kVectors) * M + i, x = j % kVectors * kLanes;
        const uint32_t pixels = static_cast<uint32_t>(bits >> x);
        if (y < map.height && (j % kVectors == 0 || pixels)) {
          plane.store_row(finish, i * M + j, static_cast<int64_t>(y) * map.pitch + column + x, pixels, row[j]);
        }
      } else {
        DYNPRUNE_UNROLL for (int h = 0; h < kLanes / kFloats; ++h) {
          const int32_t y = (tile_row + j * (kLanes / kFloats) + h) * M + i;
          if (y < map.height) {
            const uint32_t pixels = static_cast<uint32_t>(bits) & ((1u << kFloats) - 1);
            plane.store_row(finish, (i * M + j) * 2 + h, static_cast<int64_t>(y) * map.pitch + column, pixels,
                            h ? upper_half(row[j]) : row[j]);
          }
        }
      }
    }
  }
}

template <class Plane>
using OutputTilesFn = void (*)(const Plane&, int32_t, int32_t, const float*, int64_t);

#define OUTPUT_KINDS(SEGMENT)                                                                                      \
  {&output_tiles<M, SEGMENT, EpilogueKind::kPlain, Plane>, &output_tiles<M, SEGMENT, EpilogueKind::kGated, Plane>, \
   &output_tiles<M, SEGMENT, EpilogueKind::kAdded, Plane>, &output_tiles<M, SEGMENT, EpilogueKind::kFull, Plane>}
// By TileGrid::kind() and EpilogueKind.
template <int M, class Plane>
#if defined(__AVX512F__)
constexpr OutputTilesFn<Plane> kOutputTiles[kSegmentKinds][kEpilogueKinds] = {OUTPUT_KINDS(16), OUTPUT_KINDS(8),
                                                                              OUTPUT_KINDS(4)};
#else
constexpr OutputTilesFn<Plane> kOutputTiles[kSegmentKinds][kEpilogueKinds] = {OUTPUT_KINDS(8), OUTPUT_KINDS(4)};
#endif
#undef OUTPUT_KINDS

// All tiles of one plane from m[t * stride + lane].
template <int M, class Plane>
void output_plane(const TileGrid& grid, const Plane& plane, const float* tiles, int64_t stride) {
  const OutputTilesFn<Plane> transform =
      kOutputTiles<M, Plane>[grid.kind()][static_cast<int>(epilogue_kind(*plane.epilogue))];
  for_each_tile_vector(
      grid, [&](int32_t row, int32_t column, int64_t lane) { transform(plane, row, column, tiles + lane, stride); });
}

}  // namespace
}  // namespace dynprune::cpu
