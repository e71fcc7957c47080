// Quantised convolution in plain loops that compilers vectorise: for CPUs without VNNI. Rows of weights are read
// through the list of live inputs, so nothing is compacted.
#pragma once

#include "cpu/quantized_scalar.h"

namespace dynprune::cpu {
namespace {

size_t quantized_conv_scratch(const QuantizedConvShape&) { return 0; }

// sums[16] of one block of positions for one output channel, over the inputs from `low` on that its row has.
void sum_block(const QuantizedConvShape& shape, const int8_t* row, int32_t low, const QuantizedConvCall& call,
               int64_t block, int32_t* sums) {
  for (int i = 0; i < kBlock; ++i) sums[i] = 0;
  const int32_t group_inputs = shape.in_channels / shape.groups;
  const int32_t row_channels = quantized_row_channels(group_inputs);
  for (int32_t at = 0; at < call.n_in; ++at) {
    const int32_t c = call.in_channel[at] - low;
    if (c < 0 || c >= group_inputs) continue;
    const uint32_t* plane = call.input.data + (at / kChannelsPerWord) * call.input.stride + block * kBlock;
    const int32_t shift = 8 * (at % kChannelsPerWord);
    for (int32_t t = 0; t < shape.taps; ++t) {
      const int32_t weight = row[t * row_channels + c];
      const uint32_t mask = shape.tap_mask[t][block];
      uint32_t x[kBlock];
      for (int i = 0; i < kBlock; ++i) x[i] = plane[shape.tap_offset[t] + i] & -(mask >> i & 1u);
      if (shape.in_type == QuantizedType::kU8) {
        for (int i = 0; i < kBlock; ++i) sums[i] += static_cast<int32_t>(x[i] >> shift & 255u) * weight;
      } else {
        for (int i = 0; i < kBlock; ++i) sums[i] += (static_cast<int32_t>(x[i] << (24 - shift)) >> 24) * weight;
      }
    }
  }
}

void quantized_conv(const QuantizedConvShape& shape, const QuantizedWeights& weights, const QuantizedConvCall& call,
                    int32_t first, int32_t last, void*) {
  const bool adds = shape.residual_scale != 0.0f;
  const int32_t group_inputs = shape.in_channels / shape.groups, group_outputs = shape.out_channels / shape.groups;
  const int64_t row_bytes = static_cast<int64_t>(shape.taps) * quantized_row_channels(group_inputs);
  for (int32_t entry = first; entry < last; ++entry) {
    const int32_t channel = call.out_channel[entry];
    const int32_t at = adds ? channel : entry;
    const int32_t byte = at % kChannelsPerWord;
    uint32_t* plane = call.output.data + (at / kChannelsPerWord) * call.output.stride;
    const ChannelScale c = channel_scale(shape, weights, call, channel);
    for (int64_t block = 0; block < shape.out.blocks; ++block) {
      int32_t sums[kBlock];
      sum_block(shape, weights.rows + channel * row_bytes, channel / group_outputs * group_inputs, call, block, sums);
      for (int i = 0; i < kBlock; ++i) {
        if (!(shape.out.store_mask[block] >> i & 1)) continue;
        uint32_t& word = plane[block * kBlock + i];
        const uint32_t before = adds || byte > 0 ? word : 0;  // the first byte of a word clears the fillers
        word = with_byte(before, byte, finish(shape, sums[i], c, byte_of(before, byte, shape.residual_type)));
      }
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
