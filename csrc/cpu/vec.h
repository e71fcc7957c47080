// Small named wrappers around the SIMD registers of one ISA. A kernel source includes this once and
// is compiled with DYNPRUNE_ISA set to generic, avx2 or avx512. `Vec` holds kLanes floats;
// kBlock / kLanes of them cover one block of positions. Everything has internal linkage, so that no
// code of one ISA can be picked by the linker for another.
#pragma once

#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push  // GCC 12 warns about its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#define DYNPRUNE_CAT_(a, b) a##_##b
#define DYNPRUNE_CAT(a, b) DYNPRUNE_CAT_(a, b)
// Name of this ISA's copy of a function: DYNPRUNE_ISA_NAME(fill_linear) -> fill_linear_avx512.
#define DYNPRUNE_ISA_NAME(stem) DYNPRUNE_CAT(stem, DYNPRUNE_ISA)
#define DYNPRUNE_INLINE inline __attribute__((always_inline))
#define DYNPRUNE_UNROLL _Pragma("GCC unroll 64")

namespace dynprune::cpu {
namespace {

#if defined(__AVX512F__)

constexpr int kLanes = 16;
using Vec = __m512;
DYNPRUNE_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
DYNPRUNE_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
DYNPRUNE_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
DYNPRUNE_INLINE Vec zero() { return _mm512_setzero_ps(); }
DYNPRUNE_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
DYNPRUNE_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
DYNPRUNE_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
DYNPRUNE_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
DYNPRUNE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
DYNPRUNE_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
// The second operand survives where either is NaN (x86 semantics): clamps keep a NaN in `b`.
DYNPRUNE_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
DYNPRUNE_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
DYNPRUNE_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
// Lanes whose bit is clear become zero. Bits beyond kLanes are ignored.
DYNPRUNE_INLINE Vec keep(uint32_t bits, Vec v) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v); }
using LaneMask = __mmask16;
DYNPRUNE_INLINE LaneMask lane_mask(uint32_t bits) { return static_cast<LaneMask>(bits); }
// Reads only the lanes of the mask; the others are zero.
DYNPRUNE_INLINE Vec load_lanes(const float* p, LaneMask mask) { return _mm512_maskz_loadu_ps(mask, p); }
// Writes only the lanes whose bit is set. `store_over` may rewrite the others with what is there: cheaper on AVX2,
// but all of them must belong to this thread.
DYNPRUNE_INLINE void store_lanes(float* p, uint32_t bits, Vec v) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(bits), v);
}
DYNPRUNE_INLINE void store_over(float* p, uint32_t bits, Vec v) { store_lanes(p, bits, v); }
// Half vectors, for maps that fill no more: twice as many of them start per cycle where 512 bits pass in two steps.
using HalfVec = __m256;
DYNPRUNE_INLINE HalfVec half_zero() { return _mm256_setzero_ps(); }
DYNPRUNE_INLINE HalfVec half_load(const float* p) { return _mm256_loadu_ps(p); }
DYNPRUNE_INLINE HalfVec half_broadcast(float x) { return _mm256_set1_ps(x); }
DYNPRUNE_INLINE HalfVec half_fma(HalfVec a, HalfVec b, HalfVec c) { return _mm256_fmadd_ps(a, b, c); }
DYNPRUNE_INLINE HalfVec lower_half(Vec v) { return _mm512_castps512_ps256(v); }
DYNPRUNE_INLINE void half_pin(HalfVec& v) { asm volatile("" : "+v"(v)); }
DYNPRUNE_INLINE Vec widen(HalfVec v) { return _mm512_zextps256_ps512(v); }
// Eight floats into both halves, and the upper half moved down (the upper half of the result is unspecified).
DYNPRUNE_INLINE Vec load_half_twice(const float* p) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }
// The upper half of `upper` over the lower half of `lower`.
DYNPRUNE_INLINE Vec upper_from(Vec upper, Vec lower) { return _mm512_mask_mov_ps(lower, 0xff00, upper); }
DYNPRUNE_INLINE Vec upper_half(Vec v) { return _mm512_shuffle_f32x4(v, v, 0xee); }
// Keeps the register allocator from folding the load into every use (measured: 105 instead of 245 GFLOP/s).
DYNPRUNE_INLINE void pin(Vec& v) { asm volatile("" : "+v"(v)); }

#elif defined(__AVX2__)

constexpr int kLanes = 8;
using Vec = __m256;
DYNPRUNE_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
DYNPRUNE_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
DYNPRUNE_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
DYNPRUNE_INLINE Vec zero() { return _mm256_setzero_ps(); }
DYNPRUNE_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
DYNPRUNE_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
DYNPRUNE_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
DYNPRUNE_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
DYNPRUNE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
DYNPRUNE_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
DYNPRUNE_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
DYNPRUNE_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
DYNPRUNE_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
using LaneMask = __m256i;
DYNPRUNE_INLINE LaneMask lane_mask(uint32_t bits) {
  const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit), lane_bit);
}
DYNPRUNE_INLINE Vec keep(uint32_t bits, Vec v) { return _mm256_and_ps(_mm256_castsi256_ps(lane_mask(bits)), v); }
DYNPRUNE_INLINE Vec load_lanes(const float* p, LaneMask mask) { return _mm256_maskload_ps(p, mask); }
DYNPRUNE_INLINE void store_lanes(float* p, uint32_t bits, Vec v) { _mm256_maskstore_ps(p, lane_mask(bits), v); }
DYNPRUNE_INLINE void store_over(float* p, uint32_t bits, Vec v) {
  store(p, _mm256_blendv_ps(load(p), v, _mm256_castsi256_ps(lane_mask(bits))));
}
DYNPRUNE_INLINE void pin(Vec& v) { asm volatile("" : "+x"(v)); }

#else

constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t VecInt __attribute__((vector_size(16)));
DYNPRUNE_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
DYNPRUNE_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
DYNPRUNE_INLINE Vec broadcast(float x) { return Vec{x, x, x, x}; }
DYNPRUNE_INLINE Vec zero() { return Vec{0, 0, 0, 0}; }
DYNPRUNE_INLINE Vec add(Vec a, Vec b) { return a + b; }
DYNPRUNE_INLINE Vec sub(Vec a, Vec b) { return a - b; }
DYNPRUNE_INLINE Vec mul(Vec a, Vec b) { return a * b; }
DYNPRUNE_INLINE Vec div(Vec a, Vec b) { return a / b; }
DYNPRUNE_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
DYNPRUNE_INLINE Vec fnma(Vec a, Vec b, Vec c) { return c - a * b; }
DYNPRUNE_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
DYNPRUNE_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
DYNPRUNE_INLINE Vec abs(Vec a) { return (Vec)((VecInt)a & (VecInt{0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff})); }
DYNPRUNE_INLINE VecInt lane_mask(uint32_t bits) {
  const VecInt lane_bit = {1, 2, 4, 8};
  const VecInt b = static_cast<int32_t>(bits) - VecInt{};
  return (b & lane_bit) == lane_bit;
}
DYNPRUNE_INLINE Vec keep(uint32_t bits, Vec v) { return (Vec)((VecInt)v & lane_mask(bits)); }
DYNPRUNE_INLINE Vec load_lanes(const float* p, VecInt mask) {
  Vec v = {};
  for (int i = 0; i < kLanes; ++i) {
    if (mask[i]) v[i] = p[i];
  }
  return v;
}
DYNPRUNE_INLINE void store_lanes(float* p, uint32_t bits, Vec v) {
  for (int i = 0; i < kLanes; ++i) {
    if (bits >> i & 1) p[i] = v[i];
  }
}
DYNPRUNE_INLINE void store_over(float* p, uint32_t bits, Vec v) {
  const VecInt mask = lane_mask(bits);
  store(p, (Vec)(((VecInt)v & mask) | ((VecInt)load(p) & ~mask)));
}
DYNPRUNE_INLINE void pin(Vec&) {}

#endif

constexpr int kVecsPerBlock = 16 / kLanes;

// The part of a block's store mask that covers vector `v` of a plane (vectors counted from pixel (0,0)).
DYNPRUNE_INLINE uint32_t vector_mask(const uint16_t* store_mask, int64_t v) {
  return static_cast<uint32_t>(store_mask[v / kVecsPerBlock]) >> (v % kVecsPerBlock * kLanes);
}

// Makes the compiler take an address as it is: it would otherwise compute base + 32, base + 64, ... ahead of the
// loop and keep them on the stack (measured: 84 instead of 90 % of peak with AVX2).
DYNPRUNE_INLINE void pin(const float*& p) { asm volatile("" : "+r"(p)); }

// True if the mask keeps no lane of a vector.
DYNPRUNE_INLINE bool keep_none(uint32_t bits) { return (bits & ((1u << kLanes) - 1u)) == 0; }

// Fetches the line for writing: a plane that left the caches costs a tile of outputs 50 % more otherwise.
// Spelt out because the builtin needs -mprfchw, without which it fetches for reading only.
DYNPRUNE_INLINE void prefetch_for_write(const float* p) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*p));
#else
  __builtin_prefetch(p, 1, 3);
#endif
}

}  // namespace
}  // namespace dynprune::cpu
