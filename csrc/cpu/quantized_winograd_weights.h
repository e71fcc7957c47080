// Weight side of integer Winograd convolution: U = G g G^T for the inputs of one output, from its row of int8 weights.
//
// The rows of G are scaled by 4, -6, -6, 24, 24, 1, which makes them integers with sums of at most 7: |U| <= 49 * 127
// fits 16 bits. The output side undoes the scales (quantized_winograd_output.h).
//
// U of up to 16 outputs lies in panels [output][16 pairs], two per 16 words of inputs: channels 0 and 2 of each word,
// then channels 1 and 3. Reading one pair of all outputs takes constant offsets from one address.
#pragma once

#include "cpu/quantized_winograd_input.h"

namespace dynprune::cpu {
namespace {

constexpr int kPanelWords = 16;  // of inputs
constexpr int kPanelOutputs = 16;
constexpr int kPanelSize = kPanelWords * kPanelOutputs;  // in 32-bit pairs
constexpr int kWeightTaps = 9;

// Words of U of one element: an odd number of cache lines, because one output's elements lie in all of them.
constexpr int64_t panels_stride(int32_t words) {
  return int64_t{2} * kPanelSize * ((words + kPanelWords - 1) / kPanelWords) + 16;
}

// out = G w for three pairs, `step` apart in w; out `out_step` apart.
DYNPRUNE_INLINE void transform_weight_pairs(const __m512i* w, int step, __m512i* out, int out_step) {
  const __m512i w0 = w[0], w1 = w[step], w2 = w[2 * step];
  const __m512i sum = add16(w0, w2), far = add16(w0, times4(w2)), twice = add16(w1, w1);
  out[0] = w0;
  out[out_step] = add16(sum, w1);
  out[2 * out_step] = sub16(sum, w1);
  out[3 * out_step] = add16(far, twice);
  out[4 * out_step] = sub16(far, twice);
  out[5 * out_step] = w2;
}

// One panel's 16 pairs of an output, from 16 words per tap, to u[element * stride].
template <int Pair>
DYNPRUNE_INLINE void weight_pairs(const __m512i* taps, int32_t* u, int64_t stride) {
  __m512i w[kWeightTaps], columns[kInputTile * 3];
  DYNPRUNE_UNROLL for (int t = 0; t < kWeightTaps; ++t) w[t] = channel_pair<true, Pair>(taps[t]);
  DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) transform_weight_pairs(w + s, 3, columns + s, 3);
  DYNPRUNE_UNROLL for (int i = 0; i < kInputTile; ++i) {
    __m512i out[kInputTile];
    transform_weight_pairs(columns + 3 * i, 1, out, 1);
    DYNPRUNE_UNROLL for (int j = 0; j < kInputTile; ++j) {
      _mm512_store_si512(u + (i * kInputTile + j) * stride, out[j]);
    }
  }
}

// One output, whose row holds [9][words] words of weights, to its lines of the panels. Reads up to a cache line past
// the row; what it makes of that belongs to pairs beyond the last word.
inline void weight_row(const int8_t* row, int32_t words, int32_t* u, int64_t stride) {
  for (int32_t at = 0; at < words; at += kPanelWords, u += 2 * kPanelSize) {
    __m512i taps[kWeightTaps];
    DYNPRUNE_UNROLL for (int t = 0; t < kWeightTaps; ++t) {
      taps[t] = _mm512_loadu_si512(row + static_cast<int64_t>(t * words + at) * kChannelsPerWord);
    }
    weight_pairs<0>(taps, u, stride);
    weight_pairs<1>(taps, u + kPanelSize, stride);
  }
}

}  // namespace
}  // namespace dynprune::cpu
