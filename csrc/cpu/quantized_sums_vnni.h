// What follows the sums of a quantised convolution, for AVX-512 VNNI: scaling, bounds, rounding, residual, and stores
// of whole words, sixteen positions at a time. Sums may come from any algorithm.
#pragma once

#include <immintrin.h>

#include "cpu/quantized_scalar.h"
#include "cpu/quantized_vector.h"
#include "cpu/vec.h"

namespace dynprune::cpu {
namespace {

constexpr int kTileRows = 8;
constexpr int kMaxVectors = 5;

// Up to eight outputs and where they go.
struct OutputBlock {
  int32_t rows;
  ChannelScale scale[kTileRows];
  bool limited;                 // some value may pass an upper bound or 32 bits before it is saturated
  int32_t slot[kTileRows];      // with a residual: 4 * index of the group in `target` + byte
  uint32_t* target[kTileRows];  // group planes that the block touches
  uint32_t lanes[kTileRows];    // bytes of each of these planes that the block computes
  int32_t targets;
  bool whole_groups;  // with a residual: the block computes every byte of its targets
};

// Where finished values wait: with a residual, [kTileRows * 4][kMaxVectors], zero where no output belongs.
constexpr size_t kSlotBytes = sizeof(__m512i) * kTileRows * 4 * kMaxVectors;
struct OutputJob {
  const QuantizedConvShape& shape;
  __m512i* slots;
};

// Limited: values are clamped before they are rounded; else saturation does all of it.
template <int Rows, int Vectors, bool Limited>
DYNPRUNE_INLINE void write_scaled(const OutputJob& job, const OutputBlock& block, int64_t position,
                                  const uint16_t* pixels, const __m512i (&acc)[Rows][Vectors]) {
  const bool is_signed = job.shape.out_type == QuantizedType::kS8;
  DYNPRUNE_UNROLL for (int q = 0; q < Rows / 4; ++q) {
    uint32_t* y = block.target[q] + position;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      __m512i rounded[4];
      DYNPRUNE_UNROLL for (int a = 0; a < 4; ++a) {
        const ChannelScale& c = block.scale[4 * q + a];
        const __m512 v = scaled(acc[4 * q + a][j], c);
        rounded[a] = Limited ? round_to_int(v, c.high) : _mm512_cvtps_epi32(v);
      }
      store_pixels(y + 16 * j, pixels[j], is_signed ? pack_s8(rounded) : pack_u8(rounded));
    }
  }
}

// Finishes sums into whole words of a map that is written in list order.
template <int Rows, int Vectors>
DYNPRUNE_INLINE void write_sums(const OutputJob& job, const OutputBlock& block, int64_t position,
                                const uint16_t* pixels, const __m512i (&acc)[Rows][Vectors]) {
  static_assert(Rows % kChannelsPerWord == 0, "a tile writes whole words");
  if (block.limited)
    write_scaled<Rows, Vectors, true>(job, block, position, pixels, acc);
  else
    write_scaled<Rows, Vectors, false>(job, block, position, pixels, acc);
}

// Finished values in slots into the residual stream: every group plane is read, added to and written.
template <int Vectors>
DYNPRUNE_INLINE void add_slots(const OutputJob& job, const OutputBlock& block, int64_t position, const uint16_t* pixels,
                               bool integers) {
  const QuantizedConvShape& shape = job.shape;
  for (int32_t q = 0; q < block.targets; ++q) {
    uint32_t* y = block.target[q] + position;
    const __m512i* slot = job.slots + q * 4 * kMaxVectors;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      const __m512i before = load_pixels(y + 16 * j, pixels[j]);
      const __m512i v[4] = {slot[j], slot[kMaxVectors + j], slot[2 * kMaxVectors + j], slot[3 * kMaxVectors + j]};
      __m512i after;
      if (integers)
        after = shape.out_type == QuantizedType::kS8 ? add_s8(v, before) : add_u8(v, before);
      else
        after = _mm512_mask_mov_epi8(before, 0x1111111111111111ull * block.lanes[q],
                                     add_scaled(v, before, shape.residual_scale, shape.residual_type, shape.out_type));
      store_pixels(y + 16 * j, pixels[j], after);
    }
  }
}

// Sums into the residual stream, any channels: finished values go to slots first.
template <int Rows, int Vectors>
DYNPRUNE_INLINE void add_through_slots(const OutputJob& job, const OutputBlock& block, int64_t position,
                                       const uint16_t* pixels, const __m512i (&acc)[Rows][Vectors]) {
  const __m512 low = _mm512_set1_ps(job.shape.inner_low);
  const bool integers = adds_integers(job.shape);
  DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) {
    __m512i* slot = job.slots + block.slot[k] * kMaxVectors;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      __m512 v = scaled(acc[k][j], block.scale[k]);
      if (block.limited) v = _mm512_max_ps(low, v);
      _mm512_store_si512(slot + j, !integers       ? _mm512_castps_si512(v)
                                   : block.limited ? round_to_int(v)
                                                   : _mm512_cvtps_epi32(v));
    }
  }
  add_slots<Vectors>(job, block, position, pixels, integers);
}

// Sums into the residual stream, whole groups without bounds: no slots.
template <int Rows, int Vectors, bool Integers>
DYNPRUNE_INLINE void add_groups(const OutputJob& job, const OutputBlock& block, int64_t position,
                                const uint16_t* pixels, const __m512i (&acc)[Rows][Vectors]) {
  const QuantizedConvShape& shape = job.shape;
  const bool is_signed = shape.out_type == QuantizedType::kS8;
  DYNPRUNE_UNROLL for (int q = 0; q < Rows / 4; ++q) {
    uint32_t* y = block.target[q] + position;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      const __m512i before = load_pixels(y + 16 * j, pixels[j]);
      __m512i v[4];
      DYNPRUNE_UNROLL for (int a = 0; a < 4; ++a) {
        const __m512 value = scaled(acc[4 * q + a][j], block.scale[4 * q + a]);
        v[a] = Integers ? _mm512_cvtps_epi32(value) : _mm512_castps_si512(value);
      }
      const __m512i after = !Integers ? add_scaled(v, before, shape.residual_scale, shape.residual_type, shape.out_type)
                            : is_signed ? add_s8(v, before)
                                        : add_u8(v, before);
      store_pixels(y + 16 * j, pixels[j], after);
    }
  }
}

template <int Rows, int Vectors>
DYNPRUNE_INLINE void add_sums(const OutputJob& job, const OutputBlock& block, int64_t position, const uint16_t* pixels,
                              const __m512i (&acc)[Rows][Vectors]) {
  if constexpr (Rows % kChannelsPerWord == 0) {
    if (block.whole_groups && !block.limited) {
      if (adds_integers(job.shape)) return add_groups<Rows, Vectors, true>(job, block, position, pixels, acc);
      return add_groups<Rows, Vectors, false>(job, block, position, pixels, acc);
    }
  }
  add_through_slots<Rows, Vectors>(job, block, position, pixels, acc);
}

// Whether a value of channel c may have to be clamped before it is rounded: beyond 32 bits, or at a bound below what
// the type holds. False for NaN nowhere.
bool needs_limit(const QuantizedConvShape& shape, const ChannelScale& c) {
  const int32_t inputs = quantized_row_channels(shape.in_channels / shape.groups);
  const float most = 127.0f * 255.0f * static_cast<float>(shape.taps) * static_cast<float>(inputs);
  constexpr float kMost = 2e9f;
  const bool fits = __builtin_fabsf(c.scale) * most + __builtin_fabsf(c.bias) < kMost;
  return !fits || !(c.high >= static_cast<float>(highest(shape.out_type))) ||
         (shape.residual_scale != 0.0f && !(shape.inner_low < -kMost));
}

// Where the outputs of a block go; fills everything but the weights.
void place_outputs(const QuantizedConvShape& shape, const QuantizedWeights& weights, const QuantizedConvCall& call,
                   int32_t entry, int32_t count, OutputBlock& block) {
  block.targets = 0;
  block.limited = false;
  for (int32_t k = 0; k < count; ++k) {
    block.scale[k] = channel_scale(shape, weights, call, call.out_channel[entry + k]);
    block.limited |= needs_limit(shape, block.scale[k]);
  }
  if (shape.residual_scale == 0.0f) {
    block.rows = (count + 3) / 4 * 4;  // fillers repeat the last row with scale 0, so that they come out as 0
    for (int32_t k = count; k < block.rows; ++k) block.scale[k] = {0.0f, 0.0f};
    for (int32_t q = 0; q < block.rows / 4; ++q)
      block.target[block.targets++] = call.output.data + (entry / 4 + q) * call.output.stride;
    return;
  }
  block.rows = count;
  int32_t group = -1;
  for (int32_t k = 0; k < count; ++k) {
    const int32_t channel = call.out_channel[entry + k];
    if (channel / 4 != group) {
      group = channel / 4;
      block.lanes[block.targets] = 0;
      block.target[block.targets++] = call.output.data + group * call.output.stride;
    }
    block.slot[k] = 4 * (block.targets - 1) + channel % 4;
    block.lanes[block.targets - 1] |= 1u << channel % 4;
  }
  block.whole_groups = block.targets * 4 == count;
}

// Slots of channels that a block does not compute hold zeros.
void clear_slots(const OutputJob& job, const OutputBlock& block) {
  if (block.whole_groups && !block.limited) return;
  for (int32_t q = 0; q < block.targets; ++q)
    for (int32_t a = 0; a < 4; ++a) {
      if (block.lanes[q] >> a & 1) continue;
      __m512i* slot = job.slots + (4 * q + a) * kMaxVectors;
      for (int j = 0; j < kMaxVectors; ++j) _mm512_store_si512(slot + j, _mm512_setzero_si512());
    }
}

}  // namespace
}  // namespace dynprune::cpu
