// Winograd F(4x4, 3x3) with output channels in the lanes, for maps of 2 x 2 tiles (5 to 8 pixels a side).
//
// With tiles in the lanes such a map fills a quarter of a vector, or needs F(2x2), which multiplies 1.8 times as often.
// Here a vector holds 16 live outputs and the four tiles are broadcast. Per vector, for 16 inputs at a time:
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

constexpr int kLaneTiles = 4;
constexpr int kElementRow = 6;                        // elements of a row of a tile
constexpr int kRowFloats = kLaneTiles * kElementRow;  // of V, per row of elements and input: [tile][column]
constexpr int kInputGroup = kLanes;                   // inputs that adjoin in V
constexpr int64_t kGroupFloats = int64_t{kElementRow} * kRowFloats * kInputGroup;  // of V, per group of inputs
constexpr int kMapSide = 8;
constexpr int kPaddedSide = kMapSide + 2;

struct LaneScratch {
  static constexpr int64_t kSums = int64_t{kElementRow} * kRowFloats * kLanes;       // [row][tile][column][16]
  static constexpr int64_t kHalf = int64_t{kElementRow} * kInputGroup * 3 * kLanes;  // [row][input][3][16]
  static constexpr int64_t kPixels = int64_t{kMapSide} * kMapSide * kLanes;          // [y][x][16]
  static constexpr int64_t kSize = kSums + kHalf + kPixels;
};

inline int64_t lanes_input_scratch(int32_t in_channels) { return ceil_div(in_channels, kInputGroup) * kGroupFloats; }

// V of 16 inputs, [row][tile][column][16]. `padded` has a border of zeros around kMapSide x kMapSide vectors.
inline void lanes_input_group(const PlaneShape& map, const float* const* input, int32_t count, Vec* padded, float* v) {
  const LaneMask mask = lane_mask((1u << map.width) - 1);
  for (int32_t y = 0; y < map.height; y += 2) {
    alignas(64) float rows[kLanes * kLanes];
    const bool second = y + 1 < map.height;
    for (int32_t c = 0; c < kLanes; ++c) {
      const float* from = c < count ? input[c] + static_cast<int64_t>(y) * map.pitch : kZeroRow;
      store(rows + c * kLanes, load_halves(from, c < count && second ? from + map.pitch : kZeroRow, mask));
    }
    Vec pixels[kLanes];
    transpose_lanes(rows, kLanes, pixels);
    DYNPRUNE_UNROLL for (int p = 0; p < kLanes; ++p) {
      padded[(y + 1 + p / kMapSide) * kPaddedSide + 1 + p % kMapSide] = pixels[p];
    }
  }
  for (int t = 0; t < kLaneTiles; ++t) {
    const Vec* const corner = padded + (t / 2 * 4) * kPaddedSide + t % 2 * 4;
    Vec columns[kElementRow][kElementRow];  // [column][row]
    DYNPRUNE_UNROLL for (int j = 0; j < kElementRow; ++j) transform_input<4>(corner + j, kPaddedSide, columns[j]);
    DYNPRUNE_UNROLL for (int i = 0; i < kElementRow; ++i) {
      Vec out[kElementRow];
      transform_input<4>(&columns[0][i], kElementRow, out);
      DYNPRUNE_UNROLL for (int j = 0; j < kElementRow; ++j) {
        store(v + ((i * kLaneTiles + t) * kElementRow + j) * kInputGroup, out[j]);
      }
    }
  }
}

// Groups of 16 live inputs that start in [first, last), so that threads may share them.
inline void lanes_input(const PlaneShape& map, const ConvCall& call, int32_t first, int32_t last, float* v) {
  Vec padded[kPaddedSide * kPaddedSide];
  for (Vec& pixel : padded) pixel = zero();
  for (int32_t group = ceil_div(first, kInputGroup); group < ceil_div(last, kInputGroup); ++group) {
    const int32_t from = group * kInputGroup;
    const int32_t count = call.n_in - from < kInputGroup ? call.n_in - from : kInputGroup;
    lanes_input_group(map, call.input + from, count, padded, v + group * kGroupFloats);
  }
}

// Up to 16 live outputs that share a vector, out of at most four blocks of stored weights.
struct SharedLanes {
  static constexpr int kMostBlocks = 4;
  int32_t count = 0, blocks = 0;
  const float* raw[kMostBlocks];   // weights of input 0
  LaneChoice choice[kMostBlocks];  // with block b
};

// As many of the live outputs [first, last) of the call as there is room for.
inline SharedLanes shared_lanes(const WinogradShape& shape, const ConvCall& call, const float* raw, int32_t first,
                                int32_t last) {
  SharedLanes shared;
  int32_t lanes[SharedLanes::kMostBlocks][kLanes] = {};
  for (int32_t i = first, block = -1; i < last && shared.count < kLanes; ++i, ++shared.count) {
    const int32_t own = call.out_channel[i] / kChannelBlock, lane = call.out_channel[i] % kChannelBlock;
    if (own != block) {
      if (shared.blocks == SharedLanes::kMostBlocks) break;
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
template <int Blocks>
__attribute__((noinline)) void half_transform(const SharedLanes& shared, int32_t channel, float* half, int64_t step) {
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
  DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) transform_weights<4>(w + s, 3, columns + s, 3);
  DYNPRUNE_UNROLL for (int i = 0; i < kElementRow; ++i) {
    DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) store(half + i * step + s * kLanes, columns[3 * i + s]);
  }
}

using HalfTransformFn = void (*)(const SharedLanes&, int32_t, float*, int64_t);
constexpr HalfTransformFn kHalfTransform[SharedLanes::kMostBlocks] = {&half_transform<1>, &half_transform<2>,
                                                                      &half_transform<3>, &half_transform<4>};

// Raw weights that are fetched while others are multiplied: of inputs column[0..count). Into the second-level cache,
// which has more fetches under way than the first (measured, weights from memory, half live: 540 instead of 1200 us).
struct RawAhead {
  const SharedLanes* shared;
  const int32_t* column;
  int32_t count;
  // Lines [first, last) of the nine of input i.
  DYNPRUNE_INLINE void fetch(int32_t i, int first, int last) const {
    if (i >= count) return;
    const int64_t at = column[i] * kRawBlock;
    for (int32_t b = 0; b < shared->blocks; ++b) {
      for (int t = first; t < last; ++t) __builtin_prefetch(shared->raw[b] + at + t * kLanes, 0, 2);
    }
  }
};

// sums[tile][column] += u V for one row of elements and `count` inputs of a group; `v` and `half` of the first of them.
__attribute__((noinline)) void multiply_row(const float* half, const float* v, int32_t count, bool start, int row,
                                            const RawAhead& ahead, float* sums) {
  Vec acc[kRowFloats];
  DYNPRUNE_UNROLL for (int k = 0; k < kRowFloats; ++k) acc[k] = start ? zero() : load(sums + k * kLanes);
  const int first_line = row * 3 / 2, last_line = (row + 1) * 3 / 2;
  for (int32_t n = 0; n < count; ++n, half += 3 * kLanes) {
    ahead.fetch(n, first_line, last_line);
    Vec h[3], u[kElementRow];
    DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) h[s] = load(half + s * kLanes);
    transform_weights<4>(h, 1, u, 1);
    DYNPRUNE_UNROLL for (int j = 0; j < kElementRow; ++j) {
      DYNPRUNE_UNROLL for (int t = 0; t < kLaneTiles; ++t) {
        const int k = t * kElementRow + j;
        acc[k] = fma(u[j], broadcast(v[k * kInputGroup + n]), acc[k]);
      }
    }
  }
  DYNPRUNE_UNROLL for (int k = 0; k < kRowFloats; ++k) store(sums + k * kLanes, acc[k]);
}

// Y = A^T M A of the four tiles: pixels[y][x][16].
inline void lanes_output_transform(const float* sums, float* pixels) {
  for (int t = 0; t < kLaneTiles; ++t) {
    Vec half[4 * kElementRow];
    DYNPRUNE_UNROLL for (int j = 0; j < kElementRow; ++j) {
      Vec m[kElementRow];
      DYNPRUNE_UNROLL for (int i = 0; i < kElementRow; ++i) {
        m[i] = load(sums + (i * kRowFloats + t * kElementRow + j) * kLanes);
      }
      transform_output<4>(m, half + j, kElementRow);
    }
    float* const corner = pixels + (t / 2 * 4 * kMapSide + t % 2 * 4) * kLanes;
    DYNPRUNE_UNROLL for (int i = 0; i < 4; ++i) {
      Vec out[4];
      transform_output<4>(half + i * kElementRow, out, 1);
      DYNPRUNE_UNROLL for (int j = 0; j < 4; ++j) store(corner + (i * kMapSide + j) * kLanes, out[j]);
    }
  }
}

// Finishes outputs [first, first + count) of the call, lane by lane of `pixels`.
template <EpilogueKind Kind>
void lanes_finish(const PlaneShape& map, const ConvCall& call, int32_t first, int32_t count, const float* pixels) {
  const uint32_t row_bits = (1u << map.width) - 1;
  // Rows of at most seven pixels and one of padding are one store, two at a time.
  const bool adjoining = map.pitch == kMapSide;
  for (int32_t y = 0; y < map.height; y += 2) {
    Vec planes[kLanes];
    transpose_lanes(pixels + y * kMapSide * kLanes, kLanes, planes);
    const bool second = y + 1 < map.height;
    const int64_t position = static_cast<int64_t>(y) * map.pitch;
    DYNPRUNE_UNROLL for (int lane = 0; lane < kLanes; ++lane) {
      if (lane < count) {
        const int32_t at = first + lane;
        const OutputPlane plane{call.output[at], &map, &call.epilogue,
                                channel_epilogue(call.epilogue, call.out_channel[at], at)};
        const ChannelFinish<Kind> finish{call.epilogue, plane.channel};
        if (adjoining) {
          finish_row<Kind>(plane, finish, position, second ? row_bits | row_bits << kMapSide : row_bits, planes[lane]);
        } else {
          finish_row<Kind>(plane, finish, position, row_bits, planes[lane]);
          if (second) finish_row<Kind>(plane, finish, position + map.pitch, row_bits, upper_half(planes[lane]));
        }
      }
    }
  }
}

using LanesFinishFn = void (*)(const PlaneShape&, const ConvCall&, int32_t, int32_t, const float*);
constexpr LanesFinishFn kLanesFinish[kEpilogueKinds] = {
    &lanes_finish<EpilogueKind::kPlain>, &lanes_finish<EpilogueKind::kGated>, &lanes_finish<EpilogueKind::kAdded>,
    &lanes_finish<EpilogueKind::kFull>};

// Live outputs [first, last) of the call, 16 at a time.
inline void lanes_output(const WinogradShape& shape, const float* raw, const float* v, const ConvCall& call,
                         int32_t first, int32_t last, float* thread_scratch) {
  float* const sums = thread_scratch;
  float* const half = sums + LaneScratch::kSums;
  float* const pixels = half + LaneScratch::kHalf;
  constexpr int64_t kHalfRow = int64_t{kInputGroup} * 3 * kLanes;
  const LanesFinishFn finish = kLanesFinish[static_cast<int>(epilogue_kind(call.epilogue))];
  SharedLanes shared = shared_lanes(shape, call, raw, first, last);
  for (int32_t at = first; at < last;) {
    const int32_t next = at + shared.count;
    const SharedLanes coming = shared_lanes(shape, call, raw, next, last);
    const HalfTransformFn transform = kHalfTransform[shared.blocks - 1];
    for (int32_t i = 0; i == 0 || i < call.n_in; i += kInputGroup) {
      const int32_t count = call.n_in - i < kInputGroup ? call.n_in - i : kInputGroup;
      for (int32_t n = 0; n < count; ++n) transform(shared, call.in_channel[i + n], half + n * 3 * kLanes, kHalfRow);
      const int32_t ahead = i + kInputGroup;
      const RawAhead fetched = ahead < call.n_in ? RawAhead{&shared, call.in_channel + ahead, call.n_in - ahead}
                                                 : RawAhead{&coming, call.in_channel, call.n_in};
      for (int row = 0; row < kElementRow; ++row) {
        multiply_row(half + row * kHalfRow, v + i / kInputGroup * kGroupFloats + row * kRowFloats * kInputGroup, count,
                     i == 0, row, fetched, sums + row * kRowFloats * kLanes);
      }
    }
    lanes_output_transform(sums, pixels);
    finish(shape.out, call, at, shared.count, pixels);
    shared = coming;
    at = next;
  }
}

}  // namespace
}  // namespace dynprune::cpu

#endif
