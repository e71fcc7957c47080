// Transposition of 16 rows of 16 floats in registers.
#pragma once

#include "vec.h"

namespace dynprune::cpu {
namespace {

// out[i] lane j = rows[j * stride + i].
DYNPRUNE_INLINE void transpose_lanes(const float* rows, int64_t stride, Vec* out) {
  __m512 a[16], b[16];
  DYNPRUNE_UNROLL for (int i = 0; i < 16; i += 2) {
    const __m512 even = load(rows + i * stride), odd = load(rows + (i + 1) * stride);
    a[i] = _mm512_unpacklo_ps(even, odd);
    a[i + 1] = _mm512_unpackhi_ps(even, odd);
  }
  // Within 128-bit lane q: column 4 * q + j of rows i .. i + 3.
  DYNPRUNE_UNROLL for (int i = 0; i < 16; i += 4) {
    DYNPRUNE_UNROLL for (int half = 0; half < 2; ++half) {
      const __m512d low = _mm512_castps_pd(a[i + half]), high = _mm512_castps_pd(a[i + 2 + half]);
      b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  DYNPRUNE_UNROLL for (int j = 0; j < 4; ++j) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88);        // columns j, 8 + j; rows 0 .. 7
    const __m512 odd_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);         // columns 4 + j, 12 + j
    const __m512 even_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);  // rows 8 .. 15
    const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    out[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    out[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    out[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    out[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

}  // namespace
}  // namespace dynprune::cpu
