// The arithmetic of the int8 kernels on single values: what every vector variant must reproduce bit for bit.
#pragma once

#include "cpu/quantized_kernels.h"

namespace dynprune::cpu {
namespace {

constexpr float kMaxRounded = 32767.0f;  // larger values saturate here, before they are rounded
constexpr float kMinRounded = -32768.0f;

// To the nearest integer, ties to even, in [-32768, 32767]. NaN gives the lower bound.
inline int32_t round_saturated(float v) {
  v = v < kMaxRounded ? v : v != v ? kMinRounded : kMaxRounded;
  v = v > kMinRounded ? v : kMinRounded;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
  return static_cast<int32_t>((v + kMagic) - kMagic);
}

inline int32_t lowest(QuantizedType type) { return type == QuantizedType::kU8 ? 0 : -128; }
inline int32_t highest(QuantizedType type) { return type == QuantizedType::kU8 ? 255 : 127; }

inline int32_t saturate(int32_t v, QuantizedType type) {
  return v < lowest(type) ? lowest(type) : v > highest(type) ? highest(type) : v;
}

inline int32_t byte_of(uint32_t word, int32_t byte, QuantizedType type) {
  const uint32_t bits = word >> (8 * byte) & 255u;
  return type == QuantizedType::kU8 ? static_cast<int32_t>(bits) : static_cast<int32_t>(static_cast<int8_t>(bits));
}

inline uint32_t with_byte(uint32_t word, int32_t byte, int32_t value) {
  const int32_t shift = 8 * byte;
  return (word & ~(255u << shift)) | (static_cast<uint32_t>(value) & 255u) << shift;
}

// Scale, bias and upper bound of one output channel for one image.
struct ChannelScale {
  float scale, bias;
  float high = kMaxRounded;
};
inline ChannelScale channel_scale(const QuantizedConvShape& shape, const QuantizedWeights& weights,
                                  const QuantizedConvCall& call, int32_t channel) {
  ChannelScale c{weights.scale[channel], weights.bias[channel]};
  if (shape.inner_high < kMaxRounded * 1e6f) {  // infinity times a gate of zero is no bound
    const float high = call.gate ? shape.inner_high * call.gate[channel] : shape.inner_high;
    c.high = high < kMaxRounded ? high : kMaxRounded;
  }
  if (call.gate) {
    c.scale *= call.gate[channel];
    c.bias *= call.gate[channel];
  }
  if (call.shift) c.bias += call.shift[channel];
  return c;
}

inline bool adds_integers(const QuantizedConvShape& shape) {
  return shape.residual_scale == 1.0f && shape.residual_type == shape.out_type;
}

// The finished value of one output element; `residual` is ignored where there is none.
inline int32_t finish(const QuantizedConvShape& shape, int32_t sum, const ChannelScale& c, int32_t residual) {
  float v = static_cast<float>(sum) * c.scale + c.bias;
  if (shape.residual_scale == 0.0f) return saturate(round_saturated(v > c.high ? c.high : v), shape.out_type);
  v = v < shape.inner_low ? shape.inner_low : v;
  if (adds_integers(shape)) return saturate(round_saturated(v) + residual, shape.out_type);
  return saturate(round_saturated(v + static_cast<float>(residual) * shape.residual_scale), shape.out_type);
}

inline bool is_pixel(const PlaneShape& shape, int64_t position) {
  return shape.store_mask[position / kBlock] >> (position % kBlock) & 1;
}

}  // namespace
}  // namespace dynprune::cpu
