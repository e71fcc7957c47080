// Shuffles between rows of pixels and vectors of tiles. A vector holds one element of kLanes tiles; `Segment` tiles
// of it lie side by side in one tile row, and kLanes / Segment tile rows lie one after the other in the vector.
#pragma once

#include "vec.h"

namespace dynprune::cpu {
namespace {

constexpr int kSegmentKinds = kLanes == 16 ? 3 : 2;

#if defined(__AVX512F__)

DYNPRUNE_INLINE Vec permute2(Vec a, const int32_t (&index)[16], Vec b) {
  return _mm512_permutex2var_ps(a, _mm512_loadu_si512(index), b);
}
alignas(64) constexpr int32_t kEven[16] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
alignas(64) constexpr int32_t kOdd[16] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
alignas(64) constexpr int32_t kZipLow[16] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
alignas(64) constexpr int32_t kZipHigh[16] = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
alignas(64) constexpr int32_t kPrevious[16] = {16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
alignas(64) constexpr int32_t kNext[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 31};
constexpr uint32_t first_lanes(int segment) { return segment == 16 ? 0x0001 : segment == 8 ? 0x0101 : 0x1111; }

// tile[j] lane i = float M*i + j of the M vectors in `row`.
template <int M>
DYNPRUNE_INLINE void split_tiles(const Vec* row, Vec* tile) {
  const Vec even = permute2(row[0], kEven, row[1]), odd = permute2(row[0], kOdd, row[1]);
  if constexpr (M == 2) {
    tile[0] = even;
    tile[1] = odd;
  } else {
    const Vec even2 = permute2(row[2], kEven, row[3]), odd2 = permute2(row[2], kOdd, row[3]);
    tile[0] = permute2(even, kEven, even2);
    tile[1] = permute2(odd, kEven, odd2);
    tile[2] = permute2(even, kOdd, even2);
    tile[3] = permute2(odd, kOdd, odd2);
  }
}

// The inverse of split_tiles.
template <int M>
DYNPRUNE_INLINE void join_tiles(const Vec* tile, Vec* row) {
  if constexpr (M == 2) {
    row[0] = permute2(tile[0], kZipLow, tile[1]);
    row[1] = permute2(tile[0], kZipHigh, tile[1]);
  } else {
    const Vec even_low = permute2(tile[0], kZipLow, tile[2]), even_high = permute2(tile[0], kZipHigh, tile[2]);
    const Vec odd_low = permute2(tile[1], kZipLow, tile[3]), odd_high = permute2(tile[1], kZipHigh, tile[3]);
    row[0] = permute2(even_low, kZipLow, odd_low);
    row[1] = permute2(even_low, kZipHigh, odd_low);
    row[2] = permute2(even_high, kZipLow, odd_high);
    row[3] = permute2(even_high, kZipHigh, odd_high);
  }
}

// Lane i = lane i - 1, or lane i + 1, of the same segment; zero beyond it.
template <int Segment>
DYNPRUNE_INLINE Vec previous_lane(Vec v) {
  constexpr auto kKeep = static_cast<__mmask16>(~first_lanes(Segment));
  return _mm512_maskz_permutexvar_ps(kKeep, _mm512_loadu_si512(kPrevious), v);
}
template <int Segment>
DYNPRUNE_INLINE Vec next_lane(Vec v) {
  constexpr auto kKeep = static_cast<__mmask16>(~(first_lanes(Segment) << (Segment - 1)));
  return _mm512_maskz_permutexvar_ps(kKeep, _mm512_loadu_si512(kNext), v);
}
// The same across the whole vector; beyond it comes the first, or the last, lane of `edge`.
DYNPRUNE_INLINE Vec previous_lane(Vec v, Vec edge) { return permute2(v, kPrevious, edge); }
DYNPRUNE_INLINE Vec next_lane(Vec v, Vec edge) { return permute2(v, kNext, edge); }
template <int Lane>
DYNPRUNE_INLINE Vec set_lane(Vec v, const float* p) {
  return _mm512_mask_broadcastss_ps(v, static_cast<__mmask16>(1u << Lane), _mm_load_ss(p));
}

// bf16 numbers as floats.
DYNPRUNE_INLINE Vec load_bf16(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Half vectors: the lower half from `a`, the upper from `b`; masks and lanes count within a half.
DYNPRUNE_INLINE Vec load_halves(const float* a, const float* b, LaneMask mask) {
  const __mmask8 half = static_cast<__mmask8>(mask);
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_maskz_loadu_ps(half, a)), _mm256_maskz_loadu_ps(half, b), 1);
}

// Chosen lanes moved to the front; the same choice serves many vectors. Lanes behind them are unspecified.
struct LaneChoice {
  __m512i index;
  LaneChoice() = default;
  DYNPRUNE_INLINE explicit LaneChoice(const int32_t* lanes) : index(_mm512_loadu_si512(lanes)) {}
};
DYNPRUNE_INLINE Vec choose_lanes(Vec v, const LaneChoice& choice) { return _mm512_permutexvar_ps(choice.index, v); }
// The same out of two vectors; lanes from kLanes on are those of `b`.
DYNPRUNE_INLINE Vec choose_lanes(Vec a, Vec b, const LaneChoice& choice) {
  return _mm512_permutex2var_ps(a, choice.index, b);
}

#elif defined(__AVX2__)

// Exchanges the 128-bit quarters: (a.low, b.low) and (a.high, b.high).
DYNPRUNE_INLINE Vec lows(Vec a, Vec b) { return _mm256_permute2f128_ps(a, b, 0x20); }
DYNPRUNE_INLINE Vec highs(Vec a, Vec b) { return _mm256_permute2f128_ps(a, b, 0x31); }

// Transposes 4x4 floats in both 128-bit halves.
DYNPRUNE_INLINE void transpose4(const Vec* in, Vec* out) {
  const Vec a = _mm256_unpacklo_ps(in[0], in[2]), b = _mm256_unpackhi_ps(in[0], in[2]);
  const Vec c = _mm256_unpacklo_ps(in[1], in[3]), d = _mm256_unpackhi_ps(in[1], in[3]);
  out[0] = _mm256_unpacklo_ps(a, c);
  out[1] = _mm256_unpackhi_ps(a, c);
  out[2] = _mm256_unpacklo_ps(b, d);
  out[3] = _mm256_unpackhi_ps(b, d);
}

template <int M>
DYNPRUNE_INLINE void split_tiles(const Vec* row, Vec* tile) {
  if constexpr (M == 2) {
    const Vec a = lows(row[0], row[1]), b = highs(row[0], row[1]);
    tile[0] = _mm256_shuffle_ps(a, b, 0x88);
    tile[1] = _mm256_shuffle_ps(a, b, 0xdd);
  } else {
    // Tiles 0 and 4, 1 and 5, 2 and 6, 3 and 7.
    const Vec pairs[4] = {lows(row[0], row[2]), highs(row[0], row[2]), lows(row[1], row[3]), highs(row[1], row[3])};
    transpose4(pairs, tile);
  }
}

template <int M>
DYNPRUNE_INLINE void join_tiles(const Vec* tile, Vec* row) {
  if constexpr (M == 2) {
    const Vec a = _mm256_unpacklo_ps(tile[0], tile[1]), b = _mm256_unpackhi_ps(tile[0], tile[1]);
    row[0] = lows(a, b);
    row[1] = highs(a, b);
  } else {
    Vec pairs[4];
    transpose4(tile, pairs);
    row[0] = lows(pairs[0], pairs[1]);
    row[1] = lows(pairs[2], pairs[3]);
    row[2] = highs(pairs[0], pairs[1]);
    row[3] = highs(pairs[2], pairs[3]);
  }
}

DYNPRUNE_INLINE Vec previous_lane(Vec v, Vec edge) {
  return _mm256_blend_ps(_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6)), edge, 0x01);
}
DYNPRUNE_INLINE Vec next_lane(Vec v, Vec edge) {
  return _mm256_blend_ps(_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 7)), edge, 0x80);
}
template <int Segment>
DYNPRUNE_INLINE Vec previous_lane(Vec v) {
  if constexpr (Segment == 8) return previous_lane(v, _mm256_setzero_ps());
  return _mm256_castsi256_ps(_mm256_slli_si256(_mm256_castps_si256(v), 4));
}
template <int Segment>
DYNPRUNE_INLINE Vec next_lane(Vec v) {
  if constexpr (Segment == 8) return next_lane(v, _mm256_setzero_ps());
  return _mm256_castsi256_ps(_mm256_srli_si256(_mm256_castps_si256(v), 4));
}
template <int Lane>
DYNPRUNE_INLINE Vec set_lane(Vec v, const float* p) {
  return _mm256_blend_ps(v, _mm256_broadcast_ss(p), 1 << Lane);
}

struct LaneChoice {
  __m256i index;
  LaneChoice() = default;
  DYNPRUNE_INLINE explicit LaneChoice(const int32_t* lanes)
      : index(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes))) {}
};
DYNPRUNE_INLINE Vec choose_lanes(Vec v, const LaneChoice& choice) { return _mm256_permutevar8x32_ps(v, choice.index); }
DYNPRUNE_INLINE Vec choose_lanes(Vec a, Vec b, const LaneChoice& choice) {
  // The permutation looks at the low three bits of an index; the fourth says which vector it means.
  const __m256 from_b = _mm256_castsi256_ps(_mm256_slli_epi32(choice.index, 28));
  return _mm256_blendv_ps(choose_lanes(a, choice), choose_lanes(b, choice), from_b);
}

#endif

}  // namespace
}  // namespace dynprune::cpu
