// int8 depthwise convolution: a plane of four channels meets, per tap, four words of weights of which each holds one
// channel's weight in that channel's byte.
#include "cpu/vec.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#include "cpu/quantized_vector.h"
#else
#include "cpu/quantized_scalar.h"
#endif

namespace dynprune::cpu {
namespace {

// The channels of one plane; fillers have no weights and scale 0.
struct WordChannels {
  const int8_t* row[kChannelsPerWord];  // null for a filler
  int32_t start[kChannelsPerWord];
  ChannelScale scale[kChannelsPerWord];
};

WordChannels channels_of(const QuantizedConvShape& shape, const QuantizedWeights& weights,
                         const QuantizedConvCall& call, int32_t plane) {
  WordChannels word;
  for (int32_t a = 0; a < kChannelsPerWord; ++a) {
    const int32_t entry = plane * kChannelsPerWord + a;
    word.row[a] = nullptr;
    word.start[a] = 0;
    word.scale[a] = {0.0f, 0.0f};
    if (entry >= call.n_out) continue;
    const int32_t channel = call.out_channel[entry];
    word.row[a] = weights.rows + static_cast<int64_t>(channel) * shape.taps * kChannelsPerWord;
    word.start[a] = shape.in_type == QuantizedType::kS8 ? -128 * weights.row_sum[channel] : 0;
    word.scale[a] = channel_scale(weights, call, channel);
  }
  return word;
}

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

constexpr int kVectors = 4;

template <int Vectors>
void depthwise_tile(const QuantizedConvShape& shape, const WordChannels& word, const uint32_t* plane, uint32_t* y,
                    int64_t position) {
  __m512i acc[kChannelsPerWord][Vectors];
  for (int a = 0; a < kChannelsPerWord; ++a)
    for (int j = 0; j < Vectors; ++j) acc[a][j] = _mm512_set1_epi32(word.start[a]);
  const bool is_signed = shape.in_type == QuantizedType::kS8;
  const __m512i flip = is_signed ? _mm512_set1_epi8(static_cast<char>(0x80)) : _mm512_setzero_si512();
  for (int32_t t = 0; t < shape.taps; ++t) {
    const uint32_t* x = plane + position + shape.tap_offset[t];
    __m512i in[Vectors];
    for (int j = 0; j < Vectors; ++j) in[j] = _mm512_xor_si512(_mm512_loadu_si512(x + 16 * j), flip);
    DYNPRUNE_UNROLL for (int a = 0; a < kChannelsPerWord; ++a) {
      const int32_t weight = word.row[a] ? word.row[a][t * kChannelsPerWord] : 0;
      const __m512i w = _mm512_set1_epi32(static_cast<int32_t>((static_cast<uint32_t>(weight) & 255u) << (8 * a)));
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) add_products(acc[a][j], in[j], w);
    }
  }
  for (int j = 0; j < Vectors; ++j) {
    __m512i rounded[4];
    for (int a = 0; a < kChannelsPerWord; ++a) rounded[a] = round_to_int(scaled(acc[a][j], word.scale[a]));
    store_pixels(y + position + 16 * j, shape.out.store_mask[position / kBlock + j],
                 shape.out_type == QuantizedType::kS8 ? pack_s8(rounded) : pack_u8(rounded));
  }
}

void depthwise_plane(const QuantizedConvShape& shape, const WordChannels& word, const uint32_t* plane, uint32_t* y) {
  int32_t block = 0;
  for (; block + kVectors <= shape.out.blocks; block += kVectors)
    depthwise_tile<kVectors>(shape, word, plane, y, static_cast<int64_t>(block) * kBlock);
  for (; block < shape.out.blocks; ++block)
    depthwise_tile<1>(shape, word, plane, y, static_cast<int64_t>(block) * kBlock);
}

#else

void depthwise_plane(const QuantizedConvShape& shape, const WordChannels& word, const uint32_t* plane, uint32_t* y) {
  for (int64_t p = 0; p < static_cast<int64_t>(shape.out.blocks) * kBlock; ++p) {
    if (!is_pixel(shape.out, p)) continue;
    uint32_t result = 0;
    for (int32_t a = 0; a < kChannelsPerWord; ++a) {
      if (!word.row[a]) continue;
      int32_t sum = 0;
      for (int32_t t = 0; t < shape.taps; ++t)
        sum += byte_of(plane[p + shape.tap_offset[t]], a, shape.in_type) * word.row[a][t * kChannelsPerWord];
      result = with_byte(result, a, finish(shape, sum, word.scale[a], 0));
    }
    y[p] = result;
  }
}

#endif

void quantized_depthwise(const QuantizedConvShape& shape, const QuantizedWeights& weights,
                         const QuantizedConvCall& call, int32_t first, int32_t last) {
  for (int32_t plane = first; plane < last; ++plane)
    depthwise_plane(shape, channels_of(shape, weights, call, plane), call.input.data + plane * call.input.stride,
                    call.output.data + plane * call.output.stride);
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_quantized_depthwise)(QuantizedKernels& table) { table.depthwise = quantized_depthwise; }

}  // namespace dynprune::cpu
