// Comparisons, selection, rounding, partial loads and stores, and deinterleaving on `Vec` of vec.h.
// Comparisons with a NaN are false, except not_equal, as in C.
#pragma once

#include <math.h>

#include "vec.h"

namespace dynprune::cpu {
namespace {

#if defined(__AVX512F__)

using Mask = __mmask16;
DYNPRUNE_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
DYNPRUNE_INLINE Mask less_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
DYNPRUNE_INLINE Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
DYNPRUNE_INLINE Mask not_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
DYNPRUNE_INLINE Mask mask_and(Mask a, Mask b) { return static_cast<Mask>(a & b); }
DYNPRUNE_INLINE Mask mask_or(Mask a, Mask b) { return static_cast<Mask>(a | b); }
DYNPRUNE_INLINE Mask mask_xor(Mask a, Mask b) { return static_cast<Mask>(a ^ b); }
DYNPRUNE_INLINE Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }
// counts + 1 where the mask is set.
DYNPRUNE_INLINE Vec count_lanes(Vec counts, Mask m) { return _mm512_mask_add_ps(counts, m, counts, broadcast(1.0f)); }
DYNPRUNE_INLINE bool any_lane(Mask m) { return m != 0; }
DYNPRUNE_INLINE Vec vec_sqrt(Vec a) { return _mm512_sqrt_ps(a); }
DYNPRUNE_INLINE Vec round_even(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
DYNPRUNE_INLINE Vec round_down(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
DYNPRUNE_INLINE Vec round_up(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
DYNPRUNE_INLINE Vec round_to_zero(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
// a * 2^n for integral n.
DYNPRUNE_INLINE Vec scale_by_power(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }

DYNPRUNE_INLINE Mask first_lanes(int64_t n) {
  return static_cast<Mask>(n >= kLanes ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u);
}
// The first n lanes come from memory, the others are zero and not read. n may lie outside [0, kLanes].
DYNPRUNE_INLINE Vec load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
// Writes the first n lanes and touches nothing else.
DYNPRUNE_INLINE void store_first(float* p, int64_t n, Vec v) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
// Lanes of a followed by b: those at even and at odd positions.
DYNPRUNE_INLINE void deinterleave(Vec a, Vec b, Vec& even, Vec& odd) {
  const __m512i e = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = _mm512_permutex2var_ps(a, e, b);
  odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(e, _mm512_set1_epi32(1)), b);
}
// Lanes 1, 2, ... of v, then *last.
DYNPRUNE_INLINE Vec shift_in(Vec v, const float* last) {
  return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(broadcast(*last)), _mm512_castps_si512(v), 1));
}
// Lane i receives lane i xor kDistance.
template <int kDistance>
DYNPRUNE_INLINE Vec swap_lanes(Vec v) {
  if (kDistance == 8) return _mm512_shuffle_f32x4(v, v, 0x4e);
  if (kDistance == 4) return _mm512_shuffle_f32x4(v, v, 0xb1);
  return kDistance == 2 ? _mm512_permute_ps(v, 0x4e) : _mm512_permute_ps(v, 0xb1);
}
// In every four lanes: two of `a`, then two of `b`, as the bits of kChoice say.
template <int kChoice>
DYNPRUNE_INLINE Vec shuffle(Vec a, Vec b) {
  return _mm512_shuffle_ps(a, b, kChoice);
}

#elif defined(__AVX2__)

using Mask = __m256;
DYNPRUNE_INLINE Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
DYNPRUNE_INLINE Mask less_equal(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
DYNPRUNE_INLINE Mask equal(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
DYNPRUNE_INLINE Mask not_equal(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
DYNPRUNE_INLINE Mask mask_and(Mask a, Mask b) { return _mm256_and_ps(a, b); }
DYNPRUNE_INLINE Mask mask_or(Mask a, Mask b) { return _mm256_or_ps(a, b); }
DYNPRUNE_INLINE Mask mask_xor(Mask a, Mask b) { return _mm256_xor_ps(a, b); }
DYNPRUNE_INLINE Vec select(Mask m, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, m); }
DYNPRUNE_INLINE Vec count_lanes(Vec counts, Mask m) { return add(counts, _mm256_and_ps(m, broadcast(1.0f))); }
DYNPRUNE_INLINE bool any_lane(Mask m) { return _mm256_movemask_ps(m) != 0; }
DYNPRUNE_INLINE Vec vec_sqrt(Vec a) { return _mm256_sqrt_ps(a); }
DYNPRUNE_INLINE Vec round_even(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
DYNPRUNE_INLINE Vec round_down(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
DYNPRUNE_INLINE Vec round_up(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
DYNPRUNE_INLINE Vec round_to_zero(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
DYNPRUNE_INLINE Vec power_of_two(Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
// In two steps, so that |n| up to 252 neither wraps nor rounds twice on the way to a denormal.
DYNPRUNE_INLINE Vec scale_by_power(Vec a, Vec n) {
  const Vec half = round_even(mul(n, broadcast(0.5f)));
  return mul(mul(a, power_of_two(half)), power_of_two(sub(n, half)));
}

DYNPRUNE_INLINE __m256i first_lanes(int64_t n) {
  const int clipped = static_cast<int>(n >= kLanes ? kLanes : n <= 0 ? 0 : n);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(clipped), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
DYNPRUNE_INLINE Vec load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
// In powers of two: the masked store of AVX2 takes dozens of cycles on AMD.
DYNPRUNE_INLINE void store_first(float* p, int64_t n, Vec v) {
  if (n >= kLanes) return store(p, v);
  if (n <= 0) return;
  __m128 part = _mm256_castps256_ps128(v);
  if (n & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, part);
}
DYNPRUNE_INLINE void deinterleave(Vec a, Vec b, Vec& even, Vec& odd) {
  const __m256d e = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  const __m256d o = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
  even = _mm256_castpd_ps(_mm256_permute4x64_pd(e, 0xd8));
  odd = _mm256_castpd_ps(_mm256_permute4x64_pd(o, 0xd8));
}
DYNPRUNE_INLINE Vec shift_in(Vec v, const float* last) {
  const Vec shifted = _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 7));
  return _mm256_blend_ps(shifted, broadcast(*last), 0x80);
}
template <int kDistance>
DYNPRUNE_INLINE Vec swap_lanes(Vec v) {
  if (kDistance == 4) return _mm256_permute2f128_ps(v, v, 1);
  return kDistance == 2 ? _mm256_permute_ps(v, 0x4e) : _mm256_permute_ps(v, 0xb1);
}
template <int kChoice>
DYNPRUNE_INLINE Vec shuffle(Vec a, Vec b) {
  return _mm256_shuffle_ps(a, b, kChoice);
}

#else

using Mask = VecInt;
DYNPRUNE_INLINE Mask less(Vec a, Vec b) { return a < b; }
DYNPRUNE_INLINE Mask less_equal(Vec a, Vec b) { return a <= b; }
DYNPRUNE_INLINE Mask equal(Vec a, Vec b) { return a == b; }
DYNPRUNE_INLINE Mask not_equal(Vec a, Vec b) { return a != b; }
DYNPRUNE_INLINE Mask mask_and(Mask a, Mask b) { return a & b; }
DYNPRUNE_INLINE Mask mask_or(Mask a, Mask b) { return a | b; }
DYNPRUNE_INLINE Mask mask_xor(Mask a, Mask b) { return a ^ b; }
DYNPRUNE_INLINE Vec select(Mask m, Vec yes, Vec no) { return m ? yes : no; }
DYNPRUNE_INLINE Vec count_lanes(Vec counts, Mask m) { return counts + (m ? Vec{1, 1, 1, 1} : Vec{0, 0, 0, 0}); }
DYNPRUNE_INLINE bool any_lane(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
DYNPRUNE_INLINE Vec vec_sqrt(Vec a) { return Vec{sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
DYNPRUNE_INLINE Vec round_even(Vec a) { return Vec{rintf(a[0]), rintf(a[1]), rintf(a[2]), rintf(a[3])}; }
DYNPRUNE_INLINE Vec round_down(Vec a) { return Vec{floorf(a[0]), floorf(a[1]), floorf(a[2]), floorf(a[3])}; }
DYNPRUNE_INLINE Vec round_up(Vec a) { return Vec{ceilf(a[0]), ceilf(a[1]), ceilf(a[2]), ceilf(a[3])}; }
DYNPRUNE_INLINE Vec round_to_zero(Vec a) { return Vec{truncf(a[0]), truncf(a[1]), truncf(a[2]), truncf(a[3])}; }
DYNPRUNE_INLINE Vec power_of_two(Vec n) {
  const Vec finite = n == n ? n : Vec{0, 0, 0, 0};  // converting a NaN to an integer is undefined
  return (Vec)((__builtin_convertvector(finite, VecInt) + 127) << 23);
}
DYNPRUNE_INLINE Vec scale_by_power(Vec a, Vec n) {
  const Vec half = round_even(n * 0.5f);
  return a * power_of_two(half) * power_of_two(n - half);
}

DYNPRUNE_INLINE Vec load_first(const float* p, int64_t n) {
  Vec v = {0, 0, 0, 0};
  for (int i = 0; i < kLanes && i < n; ++i) v[i] = p[i];
  return v;
}
DYNPRUNE_INLINE void store_first(float* p, int64_t n, Vec v) {
  for (int i = 0; i < kLanes && i < n; ++i) p[i] = v[i];
}
DYNPRUNE_INLINE void deinterleave(Vec a, Vec b, Vec& even, Vec& odd) {
  even = Vec{a[0], a[2], b[0], b[2]};
  odd = Vec{a[1], a[3], b[1], b[3]};
}
DYNPRUNE_INLINE Vec shift_in(Vec v, const float* last) { return Vec{v[1], v[2], v[3], *last}; }
template <int kDistance>
DYNPRUNE_INLINE Vec swap_lanes(Vec v) {
  return kDistance == 2 ? Vec{v[2], v[3], v[0], v[1]} : Vec{v[1], v[0], v[3], v[2]};
}

#endif

DYNPRUNE_INLINE Mask is_nan(Vec a) { return not_equal(a, a); }
// 1 where the mask is set, else 0.
DYNPRUNE_INLINE Vec as_float(Mask m) { return select(m, broadcast(1.0f), zero()); }
// Maximum and minimum that are NaN where either operand is.
#if defined(__AVX512F__)
DYNPRUNE_INLINE Vec max_or_nan(Vec a, Vec b) {
  return _mm512_mask_max_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
}
DYNPRUNE_INLINE Vec min_or_nan(Vec a, Vec b) {
  return _mm512_mask_min_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
}
#else
DYNPRUNE_INLINE Vec max_or_nan(Vec a, Vec b) { return select(is_nan(a), a, max(a, b)); }
DYNPRUNE_INLINE Vec min_or_nan(Vec a, Vec b) { return select(is_nan(a), a, min(a, b)); }
#endif
DYNPRUNE_INLINE Vec clamp(Vec lo, Vec hi, Vec x) { return min(hi, max(lo, x)); }

// Combines the 16 values of a block in one order on every ISA: lanes 8 apart, then 4, 2 and 1.
template <class Combine>
DYNPRUNE_INLINE float fold_block(const Vec (&block)[kVecsPerBlock], Combine combine) {
  Vec v = block[0];
  if constexpr (kVecsPerBlock == 4) {
    v = combine(combine(block[0], block[2]), combine(block[1], block[3]));
  } else if constexpr (kVecsPerBlock == 2) {
    v = combine(block[0], block[1]);
  } else {
    v = combine(v, swap_lanes<8>(v));
  }
  if constexpr (kLanes >= 8) v = combine(v, swap_lanes<4>(v));
  v = combine(v, swap_lanes<2>(v));
  v = combine(v, swap_lanes<1>(v));
  return v[0];
}

// fold_block for kLanes blocks at once: lane i is the value of block[i], in the bits that fold_block would give.
template <class Combine>
DYNPRUNE_INLINE Vec fold_blocks(const Vec (&block)[kLanes][kVecsPerBlock], Combine combine) {
#if defined(__AVX512F__) || defined(__AVX2__)
  // Every step combines lanes of two vectors that lie so far apart, and packs the results of both.
  Vec quarters[4];
  for (int e = 0; e < 4; ++e) {
#if defined(__AVX512F__)
    const auto halve = [&](Vec a, Vec b) {
      return combine(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    const Vec a = halve(block[e][0], block[e + 4][0]), b = halve(block[e + 8][0], block[e + 12][0]);
    quarters[e] = combine(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
#else
    const Vec a = combine(block[e][0], block[e][1]), b = combine(block[e + 4][0], block[e + 4][1]);
    quarters[e] = combine(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
#endif
  }
  const auto pairs = [&](Vec a, Vec b) { return combine(shuffle<0x44>(a, b), shuffle<0xee>(a, b)); };
  const Vec even = pairs(quarters[0], quarters[1]), odd = pairs(quarters[2], quarters[3]);
  return combine(shuffle<0x88>(even, odd), shuffle<0xdd>(even, odd));
#else
  Vec values = zero();
  for (int i = 0; i < kLanes; ++i) values[i] = fold_block(block[i], combine);
  return values;
#endif
}

// Applies a scalar function to each lane.
DYNPRUNE_INLINE Vec map_lanes(Vec x, float (*f)(float)) {
  float lane[kLanes];
  store(lane, x);
  for (int i = 0; i < kLanes; ++i) lane[i] = f(lane[i]);
  return load(lane);
}
DYNPRUNE_INLINE Vec map_lanes(Vec x, Vec y, float (*f)(float, float)) {
  float a[kLanes], b[kLanes];
  store(a, x);
  store(b, y);
  for (int i = 0; i < kLanes; ++i) a[i] = f(a[i], b[i]);
  return load(a);
}

}  // namespace
}  // namespace dynprune::cpu
