// The arithmetic of quantized_scalar.h on AVX-512 vectors: a vector is 16 positions, as words of four channels or
// as integers or floats of one channel.
#pragma once

#include <immintrin.h>

#include "cpu/quantized_scalar.h"

namespace dynprune::cpu {
namespace {

#define DYNPRUNE_VECTOR_INLINE inline __attribute__((always_inline))

// acc += dot(u8 x, s8 w) per word. Written in assembler because GCC 12 spills accumulators around the intrinsic.
DYNPRUNE_VECTOR_INLINE void add_products(__m512i& acc, __m512i x, __m512i w) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
}

// acc += dot(s16 x, s16 w) per word of two, modulo 2^32.
DYNPRUNE_VECTOR_INLINE void add_pair_products(__m512i& acc, __m512i x, __m512i w) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
}

// The sum of `bytes` signed bytes.
inline int32_t sum_of_row(const uint8_t* row, int32_t bytes) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  for (int32_t i = 0; i < bytes; i += 64) {
    const __mmask64 inside = bytes - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (bytes - i)) - 1;
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(inside, row + i));
  }
  return _mm512_reduce_add_epi32(sum);
}

DYNPRUNE_VECTOR_INLINE __m512 scaled(__m512i sums, const ChannelScale& c) {
  return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(c.scale)), _mm512_set1_ps(c.bias));
}

// As round_saturated, but values below -32768 stay below: the packs that follow saturate them.
DYNPRUNE_VECTOR_INLINE __m512i round_to_int(__m512 v, float high = kMaxRounded) {
  return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(high), v));
}

// Byte 4 * position + channel from the order that packs leave: [channel][position] within 128 bits.
DYNPRUNE_VECTOR_INLINE __m512i interleave(__m512i packed) {
  return _mm512_shuffle_epi8(
      packed, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}
DYNPRUNE_VECTOR_INLINE __m512i pack_u8(const __m512i (&v)[4]) {
  return interleave(_mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])));
}
DYNPRUNE_VECTOR_INLINE __m512i pack_s8(const __m512i (&v)[4]) {
  return interleave(_mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])));
}

// Channels 0 and 1 (or 2 and 3) of words as 16-bit numbers, in the order that packs of 32-bit integers leave.
DYNPRUNE_VECTOR_INLINE __m512i widen_u8(__m512i words, bool upper) {
  const __m128i low = _mm_setr_epi8(0, -1, 4, -1, 8, -1, 12, -1, 1, -1, 5, -1, 9, -1, 13, -1);
  const __m128i high = _mm_setr_epi8(2, -1, 6, -1, 10, -1, 14, -1, 3, -1, 7, -1, 11, -1, 15, -1);
  return _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(upper ? high : low));
}
DYNPRUNE_VECTOR_INLINE __m512i widen_s8(__m512i words, bool upper) {
  const __m128i low = _mm_setr_epi8(-1, 0, -1, 4, -1, 8, -1, 12, -1, 1, -1, 5, -1, 9, -1, 13);
  const __m128i high = _mm_setr_epi8(-1, 2, -1, 6, -1, 10, -1, 14, -1, 3, -1, 7, -1, 11, -1, 15);
  return _mm512_srai_epi16(_mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(upper ? high : low)), 8);
}
DYNPRUNE_VECTOR_INLINE __m512i add_u8(const __m512i (&v)[4], __m512i residual) {
  const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), widen_u8(residual, false));
  const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), widen_u8(residual, true));
  return interleave(_mm512_packus_epi16(a, b));
}
DYNPRUNE_VECTOR_INLINE __m512i add_s8(const __m512i (&v)[4], __m512i residual) {
  const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), widen_s8(residual, false));
  const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), widen_s8(residual, true));
  return interleave(_mm512_packs_epi16(a, b));
}

// Byte `byte` of every word, as a float.
DYNPRUNE_VECTOR_INLINE __m512 channel_floats(__m512i words, int byte, QuantizedType type) {
  const __m512i top = _mm512_sll_epi32(words, _mm_cvtsi32_si128(24 - 8 * byte));
  return _mm512_cvtepi32_ps(type == QuantizedType::kU8 ? _mm512_srli_epi32(top, 24) : _mm512_srai_epi32(top, 24));
}

// round(v + residual * scale) of four channels whose v are floats.
DYNPRUNE_VECTOR_INLINE __m512i add_scaled(const __m512i (&v)[4], __m512i residual, float scale, QuantizedType from,
                                          QuantizedType to) {
  __m512i rounded[4];
  for (int a = 0; a < 4; ++a) {
    const __m512 r = _mm512_mul_ps(channel_floats(residual, a, from), _mm512_set1_ps(scale));
    rounded[a] = round_to_int(_mm512_add_ps(_mm512_castsi512_ps(v[a]), r));
  }
  return to == QuantizedType::kS8 ? pack_s8(rounded) : pack_u8(rounded);
}

DYNPRUNE_VECTOR_INLINE __m512i load_pixels(const uint32_t* y, uint16_t mask) {
  return _mm512_maskz_loadu_epi32(mask, y);
}
DYNPRUNE_VECTOR_INLINE void store_pixels(uint32_t* y, uint16_t mask, __m512i words) {
  _mm512_mask_storeu_epi32(y, mask, words);
}

}  // namespace
}  // namespace dynprune::cpu
