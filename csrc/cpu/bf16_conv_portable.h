// bf16 convolution in plain loops that compilers vectorise: for CPUs without AVX512_BF16. Rows of weights are read
// through the list of live inputs, so nothing is compacted.
#pragma once

#include "cpu/bf16_scalar.h"

namespace dynprune::cpu {
namespace {

size_t bf16_conv_scratch(const Bf16ConvShape&) { return 0; }

// Entry `at` of the list of inputs in a tap of a row, which has `channels` inputs from `low` on: its weight, or 0.
float bf16_weight(const uint16_t* tap, int32_t low, int32_t channels, const Bf16ConvCall& call, int32_t at) {
  const int32_t c = at < call.n_in ? call.in_channel[at] - low : -1;
  return c >= 0 && c < channels ? float_of_bits(static_cast<uint32_t>(tap[c]) << 16) : 0.0f;
}

// Sums of one block of positions for one output channel, over the inputs from `low` on that its row has.
void bf16_sum_block(const Bf16ConvShape& shape, const uint16_t* row, int32_t low_channel, const Bf16ConvCall& call,
                    int64_t block, float* sums) {
  for (int i = 0; i < kBlock; ++i) sums[i] = 0.0f;
  const int32_t group_inputs = shape.in_channels / shape.groups;
  const int32_t row_channels = bf16_row_channels(group_inputs);
  for (int32_t t = 0; t < shape.taps; ++t) {
    const uint32_t mask = shape.tap_mask[t][block];
    for (int32_t at = 0; at < call.n_in; at += kBf16PerWord) {
      const uint32_t* plane = call.input.data + (at / kBf16PerWord) * call.input.stride + block * kBlock;
      const uint16_t* tap = row + t * row_channels;
      const float low = bf16_weight(tap, low_channel, group_inputs, call, at);
      const float high = bf16_weight(tap, low_channel, group_inputs, call, at + 1);
      if (shape.groups > 1 && low == 0.0f && high == 0.0f) continue;  // sums are never -0: they keep their bits
      uint32_t x[kBlock];
      for (int i = 0; i < kBlock; ++i) x[i] = plane[shape.tap_offset[t] + i] & -(mask >> i & 1u);
      for (int i = 0; i < kBlock; ++i) sums[i] = sums[i] + high_half(x[i]) * high;
      for (int i = 0; i < kBlock; ++i) sums[i] = sums[i] + low_half(x[i]) * low;
    }
  }
}

// The sum of one leftover position (see bf16_leftover).
float bf16_sum_leftover(const Bf16ConvShape& shape, const uint16_t* row, const Bf16ConvCall& call, int64_t position) {
  float lane[kBlock] = {};
  const int32_t row_channels = bf16_row_channels(shape.in_channels);
  for (int32_t t = 0; t < shape.taps; ++t) {
    if (!(shape.tap_mask[t][position / kBlock] >> (position % kBlock) & 1)) continue;
    const uint32_t* x = call.input.data + position + shape.tap_offset[t];
    for (int32_t at = 0; at < call.n_in; at += kBf16PerWord) {
      const uint32_t word = x[at / kBf16PerWord * call.input.stride];
      float& sum = lane[at / kBf16PerWord % kBlock];
      for (int32_t half = 1; half >= 0; --half) {
        if (at + half >= call.n_in) continue;
        const uint32_t weight = row[t * row_channels + call.in_channel[at + half]];
        sum = sum + half_of(word, half) * float_of_bits(weight << 16);
      }
    }
  }
  for (int width = kBlock / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lane[l] = lane[l] + lane[l + width];
  return lane[0];
}

void bf16_conv(const Bf16ConvShape& shape, const Bf16Weights& weights, const Bf16ConvCall& call, int32_t first,
               int32_t last, void*) {
  const int32_t group_inputs = shape.in_channels / shape.groups, group_outputs = shape.out_channels / shape.groups;
  const int64_t row_size = static_cast<int64_t>(shape.taps) * bf16_row_channels(group_inputs);
  const int32_t leftover = bf16_leftover(shape);
  for (int32_t entry = first; entry < last; ++entry) {
    const int32_t channel = call.out_channel[entry];
    const int32_t at = shape.adds ? channel : entry;
    const int32_t half = at % kBf16PerWord;
    uint32_t* plane = call.output.data + (at / kBf16PerWord) * call.output.stride;
    const Bf16Channel c = bf16_channel(weights, channel);
    for (int64_t block = 0; block < shape.out.blocks; ++block) {
      float sums[kBlock] = {};
      const uint16_t* row = weights.rows + channel * row_size;
      if (block + 1 == shape.out.blocks && leftover) {
        for (int32_t l = 0; l < leftover; ++l) sums[l] = bf16_sum_leftover(shape, row, call, block * kBlock + l);
      } else {
        bf16_sum_block(shape, row, channel / group_outputs * group_inputs, call, block, sums);
      }
      for (int i = 0; i < kBlock; ++i) {
        if (!(shape.out.store_mask[block] >> i & 1)) continue;
        uint32_t& word = plane[block * kBlock + i];
        const float residual = shape.adds ? half_of(word, half) : 0.0f;
        const uint32_t rounded = round_to_bf16(finish_bf16(sums[i], c, shape.inner, shape.outer, residual));
        if (half)
          word = (word & 0xffffu) | rounded << 16;
        else  // the first half of a packed word clears the filler
          word = (shape.adds ? word & 0xffff0000u : 0u) | rounded;
      }
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
