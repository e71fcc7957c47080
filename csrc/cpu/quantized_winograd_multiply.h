// The matrix products of integer Winograd convolution: for every element of a tile, M = U V, with tiles as lanes and
// a broadcast pair of weights per instruction. Sums are modulo 2^32, so their order does not matter.
#pragma once

#include "cpu/quantized_vector.h"
#include "cpu/quantized_winograd_weights.h"
#include "cpu/winograd_multiply.h"

namespace dynprune::cpu {
namespace {

struct PairMultiply {
  int32_t words;       // of inputs, each two pairs: a panel's worth of first pairs, then their second ones
  int64_t v_stride;    // between pairs in V
  int64_t out_stride;  // between outputs in M
};

DYNPRUNE_INLINE __m512i load_words(const int32_t* p) { return _mm512_loadu_si512(p); }

// Calls accumulate(v, u) for every pair.
template <class Accumulate>
DYNPRUNE_INLINE void for_each_pair(const PairMultiply& job, const int32_t* u, const int32_t* v,
                                   Accumulate&& accumulate) {
  const int64_t stride = job.v_stride;
  for (int32_t left = job.words; left > 0; left -= kPanelWords) {
    const int32_t count = left < kPanelWords ? left : kPanelWords;
    for (int pair = 0; pair < 2; ++pair, u += kPanelSize) {
      for (int32_t i = 0; i < count; ++i, v += stride) accumulate(v, u + i);
    }
  }
}

// `Vectors` full vectors of tiles for Channels outputs and, if Half, a half one that two outputs share; Channels is
// even then. Stores the first `channels` outputs.
template <int Channels, int Vectors, bool Half>
void multiply_pairs(const PairMultiply& job, const int32_t* u, const int32_t* v, int32_t* out, int channels) {
  constexpr int kFull = Vectors ? Vectors : 1, kPairs = Half ? Channels / 2 : 1;
  __m512i acc[Channels][kFull], half[kPairs];
  DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[k][j] = _mm512_setzero_si512();
  }
  DYNPRUNE_UNROLL for (int p = 0; p < kPairs; ++p) half[p] = _mm512_setzero_si512();
  for_each_pair(job, u, v, [&](const int32_t* x, const int32_t* w) __attribute__((always_inline)) {
    __m512i in[kFull], twice;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      in[j] = load_words(x + j * kLanes);
      asm volatile("" : "+v"(in[j]));  // one load, not one per use
    }
    if constexpr (Half) {
      twice = _mm512_broadcast_i32x8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + Vectors * kLanes)));
      asm volatile("" : "+v"(twice));
    }
    __m512i even;
    DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
      const __m512i weight = _mm512_set1_epi32(w[k * kPanelWords]);
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) add_pair_products(acc[k][j], in[j], weight);
      if constexpr (Half) {
        if (k % 2) add_pair_products(half[k / 2], twice, _mm512_mask_mov_epi32(even, 0xff00, weight));
        even = weight;
      }
    }
  });
  DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
    if (k == channels) break;
    int32_t* to = out + k * job.out_stride;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) _mm512_storeu_si512(to + j * kLanes, acc[k][j]);
    if constexpr (Half) {
      const __m256i lanes = k % 2 ? _mm512_extracti64x4_epi64(half[k / 2], 1) : _mm512_castsi512_si256(half[k / 2]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + Vectors * kLanes), lanes);
    }
  }
}

using PairMultiplyFn = void (*)(const PairMultiply&, const int32_t*, const int32_t*, int32_t*, int);

#define PAIRS_1(K) &multiply_pairs<K, 1, false>
#define PAIRS_2(K) PAIRS_1(K), &multiply_pairs<K, 2, false>
#define PAIRS_3(K) PAIRS_2(K), &multiply_pairs<K, 3, false>
#define PAIRS_4(K) PAIRS_3(K), &multiply_pairs<K, 4, false>
// [outputs - 1][vectors - 1] and [vectors][pairs of outputs - 1]: the tiles of multiply_tiles(16).
constexpr PairMultiplyFn kMultiplyPairs[kMaxTileChannels][multiply_vectors(kLanes)] = {
    {PAIRS_4(1)},  {PAIRS_4(2)},  {PAIRS_4(3)},  {PAIRS_4(4)},  {PAIRS_4(5)},  {PAIRS_4(6)},
    {PAIRS_3(7)},  {PAIRS_3(8)},  {PAIRS_2(9)},  {PAIRS_2(10)}, {PAIRS_2(11)}, {PAIRS_2(12)},
    {PAIRS_1(13)}, {PAIRS_1(14)}, {PAIRS_1(15)}, {PAIRS_1(16)}};
#define HALF_PAIRS_3(V) &multiply_pairs<2, V, true>, &multiply_pairs<4, V, true>, &multiply_pairs<6, V, true>
#define HALF_PAIRS_4(V) HALF_PAIRS_3(V), &multiply_pairs<8, V, true>
#define HALF_PAIRS_6(V) HALF_PAIRS_4(V), &multiply_pairs<10, V, true>, &multiply_pairs<12, V, true>
#define HALF_PAIRS_8(V) HALF_PAIRS_6(V), &multiply_pairs<14, V, true>, &multiply_pairs<16, V, true>
constexpr PairMultiplyFn kMultiplyHalfPairs[kMaxHalfVectors][kMaxTileChannels / 2] = {
    {HALF_PAIRS_8(0)}, {HALF_PAIRS_6(1)}, {HALF_PAIRS_4(2)}, {HALF_PAIRS_3(3)}};

// The products of all elements for `n_out` outputs of one panel by all vectors of tiles. after(element) is called
// behind each.
template <class After>
void multiply_all_pairs(const PairMultiply& job, const DirectSplit& split, int n_out, const int32_t* u,
                        int64_t u_matrix, const int32_t* v, int64_t v_matrix, int32_t* out, int64_t out_matrix,
                        After&& after) {
  for (int32_t t = 0; t < kElements; ++t, u += u_matrix, v += v_matrix, out += out_matrix) {
    for_each_tile(split, n_out, false, [&](const TileCall& tile) {
      const PairMultiplyFn multiply = tile.half ? kMultiplyHalfPairs[tile.vectors][(tile.channels - 1) / 2]
                                                : kMultiplyPairs[tile.channels - 1][tile.vectors - 1];
      multiply(job, u + tile.first_channel * kPanelWords, v + tile.first_lane,
               out + tile.first_channel * job.out_stride + tile.first_lane, tile.channels);
    });
    after(t);
  }
}

}  // namespace
}  // namespace dynprune::cpu
