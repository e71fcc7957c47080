// The arithmetic of the bf16 kernels on single values: what every vector variant must reproduce bit for bit.
#pragma once

#include "cpu/bf16_kernels.h"
#include "cpu/vec.h"

namespace dynprune::cpu {
namespace {

DYNPRUNE_INLINE float float_of_bits(uint32_t bits) {
  float v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
DYNPRUNE_INLINE float low_half(uint32_t word) { return float_of_bits(word << 16); }
DYNPRUNE_INLINE float high_half(uint32_t word) { return float_of_bits(word & 0xffff0000u); }
DYNPRUNE_INLINE float half_of(uint32_t word, int32_t half) { return half ? high_half(word) : low_half(word); }

// Exponent bits of which a bf16 number of magnitude 2^-63 or more has at least one.
constexpr uint32_t kLargeExponent = 0x6000u;

// To nearest even; magnitudes below 2^-63 become +0, NaN becomes quiet.
DYNPRUNE_INLINE uint32_t round_to_bf16(float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t quiet = bits >> 16 | 0x40u;
  const uint32_t result = (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
  return result & kLargeExponent ? result : 0u;
}

// The terms of one output channel's epilogue; an absent step has its neutral value, as in conv_epilogue.h.
struct Bf16Channel {
  float bias, gate, shift;
};
DYNPRUNE_INLINE Bf16Channel bf16_channel(const Bf16Weights& w, int32_t channel) {
  return {w.bias ? w.bias[channel] : 0.0f, w.gate ? w.gate[channel] : 1.0f, w.shift ? w.shift[channel] : 0.0f};
}

DYNPRUNE_INLINE float clamp_float(float v, Clamp c) {
  v = v < c.lo ? c.lo : v;
  return v > c.hi ? c.hi : v;
}

DYNPRUNE_INLINE float finish_bf16(float sum, const Bf16Channel& c, Clamp inner, Clamp outer, float residual) {
  float v = clamp_float(sum + c.bias, inner);
  v = v * c.gate + c.shift;
  return clamp_float(v + residual, outer);
}

// One thread's share of a depthwise plane: where the two channels' inputs are.
struct Bf16Pair {
  const uint16_t* row[kBf16PerWord];  // null for a filler, and where the input is exactly zero
  const uint32_t* plane[kBf16PerWord];
  int32_t half[kBf16PerWord];
  Bf16Channel channel[kBf16PerWord];
  bool filler[kBf16PerWord];
};

}  // namespace
}  // namespace dynprune::cpu
