// Winograd with output channels in the lanes, for maps of few tiles: F(4x4, 3x3) for 5 to 8 pixels a side, F(2x2, 3x3)
// for 3 and 4.
//
// With tiles in the lanes such a map leaves most of a vector empty. Here a vector holds 16 live outputs and the 2 x 2
// tiles are broadcast. Per vector, for 16 inputs at a time:
//
//     H = G w                 the first half of the weight transform, kept in the first-level cache
//     for each row e of a tile's elements: u = G H_e in registers, sums[e][tile] += u * V[e][tile]
//
// Transforms are those of the planar form, in the same order, and every sum takes inputs ascending: the same bits.
#pragma once

#include "winograd_input.h"
#include "winograd_output.h"
#include "winograd_weights.h"

#if defined(__AVX512F__)

#include "lane_transpose.h"

namespace dynprune::cpu {
namespace {

constexpr int kInputGroup = kLanes;  // inputs that adjoin in V

// 2 x 2 tiles of M x M outputs.
template <int M>
struct LaneTiles {
  static constexpr int kM = M;
  static constexpr int kTiles = 4;
  static constexpr int kElementRow = M + 2;                // elements of a row of a tile
  static constexpr int kRowFloats = kTiles * kElementRow;  // of V, per row of elements and input: [tile][column]
  static constexpr int kMapSide = 2 * M;
  static constexpr int kPaddedSide = kMapSide + 2;
  static constexpr int kRowsPerVector = kLanes / kMapSide;                                  // of the map
  static constexpr int64_t kGroupFloats = int64_t{kElementRow} * kRowFloats * kInputGroup;  // of V, per group of inputs
  // Scratch of a thread.
  static constexpr int64_t kSums = int64_t{kElementRow} * kRowFloats * kLanes;       // [row][tile][column][16]
  static constexpr int64_t kHalf = int64_t{kElementRow} * kInputGroup * 3 * kLanes;  // [row][input][3][16]
  static constexpr int64_t kPixels = int64_t{kMapSide} * kMapSide * kLanes;          // [y][x][16]
  static constexpr int64_t kScratch = kSums + kHalf + kPixels;
};

// Calls `visit` with the LaneTiles of a map that winograd_fits_channel_lanes().
template <class Visit>
DYNPRUNE_INLINE auto with_lane_tiles(const WinogradShape& shape, Visit&& visit) {
  return shape.m == 4 ? visit(LaneTiles<4>{}) : visit(LaneTiles<2>{});
}

inline int64_t lanes_input_scratch(const WinogradShape& shape) {
  return with_lane_tiles(shape,
                         [&](auto tiles) { return ceil_div(shape.in_channels, kInputGroup) * tiles.kGroupFloats; });
}
inline int64_t lanes_thread_scratch(const WinogradShape& shape) {
  return with_lane_tiles(shape, [](auto tiles) { return tiles.kScratch; });
}

// A vector of pixels from row y on, for each of 16 planes: `rows` of each adjoin, absent planes and pixels are zero.
template <class Tiles>
DYNPRUNE_INLINE void load_rows(const PlaneShape& map, const float* const* input, int32_t count, int32_t y,
                               float* rows) {
  const LaneMask mask = lane_mask((1u << map.width) - 1);
  for (int32_t c = 0; c < kLanes; ++c) {
    const float* from = c < count ? input[c] + static_cast<int64_t>(y) * map.pitch : kZeroRow;
    if constexpr (Tiles::kRowsPerVector == 2) {
      store(rows + c * kLanes, load_halves(from, c < count && y + 1 < map.height ? from + map.pitch : kZeroRow, mask));
    } else {
      store(rows + c * kLanes, zero());
      const int32_t n = c < count ? map.height : 0;
      // Whole vectors: what lies beyond a row is zero and overwritten by the next one.
      for (int32_t r = 0; r < n; ++r) {
        store(rows + c * kLanes + r * Tiles::kMapSide, load_lanes(from + static_cast<int64_t>(r) * map.pitch, mask));
      }
    }
  }
}

// V of 16 inputs, [row][tile][column][16]. `padded` has a border of zeros around kMapSide x kMapSide vectors.
template <class Tiles>
void lanes_input_group(const PlaneShape& map, const float* const* input, int32_t count, Vec* padded, float* v) {
  constexpr int kElementRow = Tiles::kElementRow, kMapSide = Tiles::kMapSide, kPaddedSide = Tiles::kPaddedSide;
  for (int32_t y = 0; y < map.height; y += Tiles::kRowsPerVector) {
    alignas(64) float rows[(kLanes + 1) * kLanes];
    load_rows<Tiles>(map, input, count, y, rows);
    Vec pixels[kLanes];
    transpose_lanes(rows, kLanes, pixels);
    DYNPRUNE_UNROLL for (int p = 0; p < kLanes; ++p) {
      padded[(y + 1 + p / kMapSide) * kPaddedSide + 1 + p % kMapSide] = pixels[p];
    }
  }
  for (int t = 0; t < Tiles::kTiles; ++t) {
    const Vec* const corner = padded + (t / 2 * kPaddedSide + t % 2) * Tiles::kM;
    Vec columns[kElementRow][kElementRow];  // [column][row]
    DYNPRUNE_UNROLL for (int j = 0; j < kElementRow; ++j) {
      transform_input<Tiles::kM>(corner + j, kPaddedSide, columns[j]);
    }
    DYNPRUNE_UNROLL for (int i = 0; i < kElementRow; ++i) {
      Vec out[kElementRow];
      transform_input<Tiles::kM>(&columns[0][i], kElementRow, out);
      DYNPRUNE_UNROLL for (int j = 0; j < kElementRow; ++j) {
        store(v + ((i * Tiles::kTiles + t) * kElementRow + j) * kInputGroup, out[j]);
      }
    }
  }
}

// Groups of 16 live inputs that start in [first, last), so that threads may share them.
template <class Tiles>
void lanes_input(const PlaneShape& map, const ConvCall& call, int32_t first, int32_t last, float* v) {
  Vec padded[Tiles::kPaddedSide * Tiles::kPaddedSide];
  for (Vec& pixel : padded) pixel = zero();
  for (int32_t group = ceil_div(first, kInputGroup); group < ceil_div(last, kInputGroup); ++group) {
    const int32_t from = group * kInputGroup;
    const int32_t count = call.n_in - from < kInputGroup ? call.n_in - from : kInputGroup;
    lanes_input_group<Tiles>(map, call.input + from, count, padded, v + group * Tiles::kGroupFloats);
  }
}

// Up to 16 live outputs that share a vector, out of at most four blocks of stored weights.
struct SharedLanes {
  static constexpr int kMostBlocks = 4;
  int32_t count = 0, blocks = 0;
  const float* raw[kMostBlocks];   // weights of input 0
  LaneChoice choice[kMostBlocks];  // with block b
};

// Blocks that a vector of the live outputs [first, last) of the call takes outputs from: one where moving several
// together would save less than a tenth of the vectors, which is what it costs.
inline int32_t shared_blocks(const ConvCall& call, int32_t first, int32_t last) {
  int32_t touched = 0;
  for (int32_t i = first, block = -1; i < last; ++i) {
    touched += call.out_channel[i] / kChannelBlock != block;
    block = call.out_channel[i] / kChannelBlock;
  }
  return 10 * touched <= 11 * ceil_div(last - first, kLanes) ? 1 : SharedLanes::kMostBlocks;
}

// As many of the live outputs [first, last) of the call as there is room for, out of `most` blocks.
inline SharedLanes shared_lanes(const WinogradShape& shape, const ConvCall& call, const float* raw, int32_t first,
                                int32_t last, int32_t most) {
  SharedLanes shared;
  int32_t lanes[SharedLanes::kMostBlocks][kLanes] = {};
  for (int32_t i = first, block = -1; i < last && shared.count < kLanes; ++i, ++shared.count) {
    const int32_t own = call.out_channel[i] / kChannelBlock, lane = call.out_channel[i] % kChannelBlock;
    if (own != block) {
      if (shared.blocks == most) break;
      block = own;
      // What earlier blocks have given stays: the second choice is out of two blocks as stored, later ones are out of
      // the vector so far and a block.
      for (int32_t k = 0; k < shared.count; ++k) lanes[shared.blocks][k] = shared.blocks == 1 ? lanes[0][k] : k;
      shared.raw[shared.blocks++] = raw + static_cast<int64_t>(block) * shape.in_channels * kRawBlock;
    }
    lanes[shared.blocks - 1][shared.count] = shared.blocks == 1 ? lane : kLanes + lane;
  }
  for (int32_t b = 0; b < shared.blocks; ++b) shared.choice[b] = LaneChoice(lanes[b]);
  return shared;
}

// H = G w of one input, rows `step` floats apart.
template <int M, int Blocks>
__attribute__((noinline)) void half_transform(const SharedLanes& shared, int32_t channel, float* half, int64_t step) {
  constexpr int kElementRow = M + 2;
  const int64_t at = channel * kRawBlock;
  Vec w[9], columns[kElementRow * 3];
  DYNPRUNE_UNROLL for (int t = 0; t < 9; ++t) {
    const int64_t tap = at + t * kLanes;
    if constexpr (Blocks == 1) {
      w[t] = choose_lanes(load(shared.raw[0] + tap), shared.choice[0]);
    } else {
      w[t] = choose_lanes(load(shared.raw[0] + tap), load(shared.raw[1] + tap), shared.choice[1]);
    }
  }
  DYNPRUNE_UNROLL for (int b = 2; b < Blocks; ++b) {
    DYNPRUNE_UNROLL for (int t = 0; t < 9; ++t) {
      w[t] = choose_lanes(w[t], load(shared.raw[b] + at + t * kLanes), shared.choice[b]);
    }
  }
  DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) transform_weights<M>(w + s, 3, columns + s, 3);
  DYNPRUNE_UNROLL for (int i = 0; i < kElementRow; ++i) {
    DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) store(half + i * step + s * kLanes, columns[3 * i + s]);
  }
}

using HalfTransformFn = void (*)(const SharedLanes&, int32_t, float*, int64_t);
template <int M>
constexpr HalfTransformFn kHalfTransform[SharedLanes::kMostBlocks] = {&half_transform<M, 1>, &half_transform<M, 2>,
                                                                      &half_transform<M, 3>, &half_transform<M, 4>};

// Raw weights that are fetched while others are multiplied: of inputs column[0..count). Into the second-level cache,
// which has more fetches under way than the first (measured, weights from memory, half live: 540 instead of 1200 us).
struct RawAhead {
  const SharedLanes* shared;
  const int32_t* column;
  int32_t count;
  // `Lines` of the nine lines of input i, from `first` on.
  template <int Lines>
  DYNPRUNE_INLINE void fetch(int32_t i, int first) const {
    const int64_t at = column[i] * kRawBlock + first * kLanes;
    for (int32_t b = 0; b < shared->blocks; ++b) {
      const float* const from = shared->raw[b] + at;
      DYNPRUNE_UNROLL for (int t = 0; t < Lines; ++t) __builtin_prefetch(from + t * kLanes, 0, 2);
    }
  }
};

// sums[tile][column] += u V for one row of elements and `count` inputs of a group; `v` and `half` of the first of them.
template <class Tiles>
__attribute__((noinline)) void multiply_row(const float* half, const float* v, int32_t count, bool start, int row,
                                            const RawAhead& ahead, float* sums) {
  constexpr int kElementRow = Tiles::kElementRow, kRowFloats = Tiles::kRowFloats;
  Vec acc[kRowFloats];
  DYNPRUNE_UNROLL for (int k = 0; k < kRowFloats; ++k) acc[k] = start ? zero() : load(sums + k * kLanes);
  constexpr int kLines = ceil_div(9, kElementRow);  // the last ones of a row are also the first of the next
  const int first_line = row * (9 - kLines) / (kElementRow - 1);
  for (int32_t n = 0; n < count; ++n, half += 3 * kLanes) {
    if (n < ahead.count) ahead.fetch<kLines>(n, first_line);
    Vec h[3], u[kElementRow];
    DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) h[s] = load(half + s * kLanes);
    transform_weights<Tiles::kM>(h, 1, u, 1);
    DYNPRUNE_UNROLL for (int j = 0; j < kElementRow; ++j) {
      DYNPRUNE_UNROLL for (int t = 0; t < Tiles::kTiles; ++t) {
        const int k = t * kElementRow + j;
        acc[k] = fma(u[j], broadcast(v[k * kInputGroup + n]), acc[k]);
      }
    }
  }
  DYNPRUNE_UNROLL for (int k = 0; k < kRowFloats; ++k) store(sums + k * kLanes, acc[k]);
}

// Y = A^T M A of the tiles: pixels[y][x][16].
template <class Tiles>
void lanes_output_transform(const float* sums, float* pixels) {
  constexpr int kM = Tiles::kM, kElementRow = Tiles::kElementRow, kMapSide = Tiles::kMapSide;
  for (int t = 0; t < Tiles::kTiles; ++t) {
    Vec half[kM * kElementRow];
    DYNPRUNE_UNROLL for (int j = 0; j < kElementRow; ++j) {
      Vec m[kElementRow];
      DYNPRUNE_UNROLL for (int i = 0; i < kElementRow; ++i) {
        m[i] = load(sums + (i * Tiles::kRowFloats + t * kElementRow + j) * kLanes);
      }
      transform_output<kM>(m, half + j, kElementRow);
    }
    float* const corner = pixels + (t / 2 * kMapSide + t % 2) * kM * kLanes;
    DYNPRUNE_UNROLL for (int i = 0; i < kM; ++i) {
      Vec out[kM];
      transform_output<kM>(half + i * kElementRow, out, 1);
      DYNPRUNE_UNROLL for (int j = 0; j < kM; ++j) store(corner + (i * kMapSide + j) * kLanes, out[j]);
    }
  }
}

// Finishes outputs [first, first + count) of the call, lane by lane of `pixels`.
template <class Tiles, EpilogueKind Kind>
void lanes_finish(const PlaneShape& map, const ConvCall& call, int32_t first, int32_t count, const float* pixels) {
  constexpr int kMapSide = Tiles::kMapSide, kRows = Tiles::kRowsPerVector;
  const uint32_t row_bits = (1u << map.width) - 1;
  // Rows that end in one pixel of padding are one store, as many as fill a vector.
  const bool adjoining = map.pitch == kMapSide;
  for (int32_t y = 0; y < map.height; y += kRows) {
    Vec planes[kLanes];
    transpose_lanes(pixels + y * kMapSide * kLanes, kLanes, planes);
    const int32_t rows = map.height - y < kRows ? map.height - y : kRows;
    uint32_t all_bits = row_bits;
    for (int32_t r = 1; r < rows; ++r) all_bits |= row_bits << r * kMapSide;
    DYNPRUNE_UNROLL for (int lane = 0; lane < kLanes; ++lane) {
      if (lane < count) {
        const int32_t at = first + lane;
        const OutputPlane plane{call.output[at], &map, &call.epilogue,
                                channel_epilogue(call.epilogue, call.out_channel[at], at)};
        const ChannelFinish<Kind> finish{call.epilogue, plane.channel};
        const int64_t position = static_cast<int64_t>(y) * map.pitch;
        if (adjoining) {
          finish_row<Kind>(plane, finish, position, all_bits, planes[lane]);
        } else if constexpr (kRows == 2) {
          finish_row<Kind>(plane, finish, position, row_bits, planes[lane]);
          if (rows == 2) finish_row<Kind>(plane, finish, position + map.pitch, row_bits, upper_half(planes[lane]));
        } else {
          float line[2 * kLanes];
          store(line, planes[lane]);
          store(line + kLanes, zero());
          for (int32_t r = 0; r < rows; ++r) {
            finish_row<Kind>(plane, finish, position + r * map.pitch, row_bits, load(line + r * kMapSide));
          }
        }
      }
    }
  }
}

using LanesFinishFn = void (*)(const PlaneShape&, const ConvCall&, int32_t, int32_t, const float*);
template <class Tiles>
constexpr LanesFinishFn kLanesFinish[kEpilogueKinds] = {
    &lanes_finish<Tiles, EpilogueKind::kPlain>, &lanes_finish<Tiles, EpilogueKind::kGated>,
    &lanes_finish<Tiles, EpilogueKind::kAdded>, &lanes_finish<Tiles, EpilogueKind::kFull>};

// Live outputs [first, last) of the call, 16 at a time.
template <class Tiles>
void lanes_output(const WinogradShape& shape, const float* raw, const float* v, const ConvCall& call, int32_t first,
                  int32_t last, float* thread_scratch) {
  float* const sums = thread_scratch;
  float* const half = sums + Tiles::kSums;
  float* const pixels = half + Tiles::kHalf;
  constexpr int64_t kHalfRow = int64_t{kInputGroup} * 3 * kLanes;
  constexpr int64_t kRow = int64_t{Tiles::kRowFloats} * kLanes;  // of V and of the sums
  const LanesFinishFn finish = kLanesFinish<Tiles>[static_cast<int>(epilogue_kind(call.epilogue))];
  const int32_t most = shared_blocks(call, first, last);
  SharedLanes shared = shared_lanes(shape, call, raw, first, last, most);
  for (int32_t at = first; at < last;) {
    const int32_t next = at + shared.count;
    const SharedLanes coming = shared_lanes(shape, call, raw, next, last, most);
    const HalfTransformFn transform = kHalfTransform<Tiles::kM>[shared.blocks - 1];
    for (int32_t i = 0; i == 0 || i < call.n_in; i += kInputGroup) {
      const int32_t count = call.n_in - i < kInputGroup ? call.n_in - i : kInputGroup;
      for (int32_t n = 0; n < count; ++n) transform(shared, call.in_channel[i + n], half + n * 3 * kLanes, kHalfRow);
      const int32_t ahead = i + kInputGroup;
      const RawAhead fetched = ahead < call.n_in ? RawAhead{&shared, call.in_channel + ahead, call.n_in - ahead}
                                                 : RawAhead{&coming, call.in_channel, call.n_in};
      for (int row = 0; row < Tiles::kElementRow; ++row) {
        multiply_row<Tiles>(half + row * kHalfRow, v + i / kInputGroup * Tiles::kGroupFloats + row * kRow, count,
                            i == 0, row, fetched, sums + row * kRow);
      }
    }
    lanes_output_transform<Tiles>(sums, pixels);
    finish(shape.out, call, at, shared.count, pixels);
    shared = coming;
    at = next;
  }
}

}  // namespace
}  // namespace dynprune::cpu

#endif
