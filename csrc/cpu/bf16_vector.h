// The arithmetic of bf16_scalar.h on AVX-512 vectors: 16 positions, as words of two channels or as floats of one.
#pragma once

#include <immintrin.h>

#include "cpu/bf16_scalar.h"

namespace dynprune::cpu {
namespace {

// acc += x.high * w.high, then += x.low * w.low, per word. In assembler because GCC 12 spills accumulators around the
// intrinsic.
DYNPRUNE_INLINE void add_pair_products(__m512& acc, __m512i x, __m512i w) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
}

DYNPRUNE_INLINE __m512 low_floats(__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }
DYNPRUNE_INLINE __m512 high_floats(__m512i words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}

// As round_to_bf16, two channels into words.
DYNPRUNE_INLINE __m512i round_pairs(__m512 low, __m512 high) {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(high, low);  // 16 of low, then 16 of high
  const __m512i order =
      _mm512_add_epi32(_mm512_set1_epi32(0x00100000),
                       _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
                                          _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
  const __m512i words = _mm512_permutexvar_epi16(order, halves);
  return _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(words, _mm512_set1_epi16(static_cast<int16_t>(kLargeExponent))),
                                words);
}

// NaN passes: the second operand survives.
DYNPRUNE_INLINE __m512 clamp_floats(__m512 v, Clamp c) {
  return _mm512_min_ps(_mm512_set1_ps(c.hi), _mm512_max_ps(_mm512_set1_ps(c.lo), v));
}

DYNPRUNE_INLINE __m512 finish_floats(__m512 sum, const Bf16Channel& c, Clamp inner, Clamp outer, __m512 residual) {
  const __m512 v = clamp_floats(_mm512_add_ps(sum, _mm512_set1_ps(c.bias)), inner);
  const __m512 gated = _mm512_add_ps(_mm512_mul_ps(v, _mm512_set1_ps(c.gate)), _mm512_set1_ps(c.shift));
  return clamp_floats(_mm512_add_ps(gated, residual), outer);
}

}  // namespace
}  // namespace dynprune::cpu
