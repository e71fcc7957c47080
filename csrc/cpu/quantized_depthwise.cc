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

// The channels of one plane of the output, and the plane and byte where each one's input is.
struct WordChannels {
  const int8_t* row[kChannelsPerWord];  // null for a filler, and where the input is exactly zero
  const uint32_t* plane[kChannelsPerWord];
  int32_t byte[kChannelsPerWord];
  int32_t start[kChannelsPerWord];
  ChannelScale scale[kChannelsPerWord];  // 0 for a filler
};

// Position of the first listed input that is not below `channel`.
int32_t lower_position(const QuantizedConvCall& call, int32_t channel) {
  int32_t low = 0, high = call.n_in;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (call.in_channel[middle] < channel)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// `next` is the position of the first listed input that is not below the first channel, and moves on.
WordChannels channels_of(const QuantizedConvShape& shape, const QuantizedWeights& weights,
                         const QuantizedConvCall& call, int32_t plane, int32_t& next) {
  WordChannels word;
  for (int32_t a = 0; a < kChannelsPerWord; ++a) {
    const int32_t entry = plane * kChannelsPerWord + a;
    word.row[a] = nullptr;
    word.plane[a] = call.input.data;
    word.byte[a] = word.start[a] = 0;
    word.scale[a] = {0.0f, 0.0f};
    if (entry >= call.n_out) continue;
    const int32_t channel = call.out_channel[entry];
    word.scale[a] = channel_scale(shape, weights, call, channel);
    while (next < call.n_in && call.in_channel[next] < channel) ++next;
    if (next == call.n_in || call.in_channel[next] != channel) continue;
    word.row[a] = weights.rows + static_cast<int64_t>(channel) * shape.taps * kChannelsPerWord;
    word.plane[a] = call.input.data + (next / kChannelsPerWord) * call.input.stride;
    word.byte[a] = next % kChannelsPerWord;
    word.start[a] = shape.in_type == QuantizedType::kS8 ? -128 * weights.row_sum[channel] : 0;
  }
  return word;
}

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

constexpr int kVectors = 4;

// Whether the inputs of all four channels are the bytes of one word. (A channel without a row has no weights.)
bool share_words(const WordChannels& word) {
  for (int32_t a = 0; a < kChannelsPerWord; ++a)
    if (!word.row[a] || word.plane[a] != word.plane[0]) return false;
  return true;
}

template <int Vectors, bool Shared>
void depthwise_tile(const QuantizedConvShape& shape, const WordChannels& word, uint32_t* y, int64_t position) {
  __m512i acc[kChannelsPerWord][Vectors];
  DYNPRUNE_UNROLL for (int a = 0; a < kChannelsPerWord; ++a) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[a][j] = _mm512_set1_epi32(word.start[a]);
  }
  const bool is_signed = shape.in_type == QuantizedType::kS8;
  const __m512i flip = is_signed ? _mm512_set1_epi8(static_cast<char>(0x80)) : _mm512_setzero_si512();
  for (int32_t t = 0; t < shape.taps; ++t) {
    const int64_t at = position + shape.tap_offset[t];
    const uint16_t* mask = shape.tap_mask[t] + position / kBlock;
    __m512i shared[Vectors];
    if (Shared) {
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) shared[j] =
          _mm512_xor_si512(_mm512_maskz_loadu_epi32(mask[j], word.plane[0] + at + 16 * j), flip);
    }
    DYNPRUNE_UNROLL for (int a = 0; a < kChannelsPerWord; ++a) {
      const uint32_t weight = word.row[a] ? static_cast<uint8_t>(word.row[a][t * kChannelsPerWord]) : 0u;
      const __m512i w = _mm512_set1_epi32(static_cast<int32_t>(weight << (8 * word.byte[a])));
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
        if (Shared) {
          add_products(acc[a][j], shared[j], w);
        } else {
          const __m512i in = _mm512_maskz_loadu_epi32(mask[j], word.plane[a] + at + 16 * j);
          add_products(acc[a][j], _mm512_xor_si512(in, flip), w);
        }
      }
    }
  }
  DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
    __m512i rounded[4];
    DYNPRUNE_UNROLL for (int a = 0; a < kChannelsPerWord; ++a) rounded[a] =
        round_to_int(scaled(acc[a][j], word.scale[a]), word.scale[a].high);
    store_pixels(y + position + 16 * j, shape.out.store_mask[position / kBlock + j],
                 shape.out_type == QuantizedType::kS8 ? pack_s8(rounded) : pack_u8(rounded));
  }
}

using TileFn = void (*)(const QuantizedConvShape&, const WordChannels&, uint32_t*, int64_t);
#define TILES(SHARED) \
  {&depthwise_tile<1, SHARED>, &depthwise_tile<2, SHARED>, &depthwise_tile<3, SHARED>, &depthwise_tile<4, SHARED>}
// [shared words][vectors - 1]
constexpr TileFn kTile[2][kVectors] = {TILES(false), TILES(true)};
#undef TILES

// Whether every channel of the output is its input as it is, or zero: a gate of ones and zeros leaves of a map that
// it masks just that.
bool only_moves(const QuantizedConvShape& shape, const WordChannels& word) {
  if (shape.taps != 1 || shape.in_type != shape.out_type) return false;
  for (int32_t a = 0; a < kChannelsPerWord; ++a) {
    const ChannelScale& c = word.scale[a];
    if (c.bias != 0.0f || c.high != kMaxRounded) return false;
    const bool unit = word.row[a] && word.row[a][0] == 1 && c.scale == 1.0f;
    if (!unit && word.row[a] && c.scale != 0.0f) return false;
  }
  return true;
}

void move_plane(const QuantizedConvShape& shape, const WordChannels& word, uint32_t* y) {
  const __m512i words = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
  __m512i from[kChannelsPerWord];
  __mmask64 to[kChannelsPerWord];
  for (int a = 0; a < kChannelsPerWord; ++a) {
    from[a] = _mm512_add_epi8(words, _mm512_set1_epi8(static_cast<char>(word.byte[a])));
    to[a] = word.row[a] && word.scale[a].scale != 0.0f ? 0x1111111111111111ull << a : 0;
  }
  for (int64_t block = 0; block < shape.out.blocks; ++block) {
    const uint16_t inside = shape.tap_mask[0][block];
    __m512i moved = _mm512_setzero_si512();
    DYNPRUNE_UNROLL for (int a = 0; a < kChannelsPerWord; ++a) {
      const __m512i in = load_pixels(word.plane[a] + block * kBlock + shape.tap_offset[0], inside);
      moved = _mm512_mask_shuffle_epi8(moved, to[a], in, from[a]);
    }
    store_pixels(y + block * kBlock, shape.out.store_mask[block], moved);
  }
}

void depthwise_plane(const QuantizedConvShape& shape, const WordChannels& word, uint32_t* y) {
  if (only_moves(shape, word)) return move_plane(shape, word, y);
  const TileFn* tiles = kTile[share_words(word)];
  for (int32_t block = 0; block < shape.out.blocks; block += kVectors) {
    const int32_t left = shape.out.blocks - block;
    tiles[(left < kVectors ? left : kVectors) - 1](shape, word, y, static_cast<int64_t>(block) * kBlock);
  }
}

#else

void depthwise_plane(const QuantizedConvShape& shape, const WordChannels& word, uint32_t* y) {
  for (int64_t p = 0; p < static_cast<int64_t>(shape.out.blocks) * kBlock; ++p) {
    if (!is_pixel(shape.out, p)) continue;
    uint32_t result = 0;
    for (int32_t a = 0; a < kChannelsPerWord; ++a) {
      int32_t sum = 0;
      for (int32_t t = 0; word.row[a] && t < shape.taps; ++t)
        if (shape.tap_mask[t][p / kBlock] >> (p % kBlock) & 1)
          sum += byte_of(word.plane[a][p + shape.tap_offset[t]], word.byte[a], shape.in_type) *
                 word.row[a][t * kChannelsPerWord];
      result = with_byte(result, a, finish(shape, sum, word.scale[a], 0));
    }
    y[p] = result;
  }
}

#endif

void quantized_depthwise(const QuantizedConvShape& shape, const QuantizedWeights& weights,
                         const QuantizedConvCall& call, int32_t first, int32_t last) {
  if (first >= last) return;
  int32_t next = lower_position(call, call.out_channel[first * kChannelsPerWord]);
  for (int32_t plane = first; plane < last; ++plane)
    depthwise_plane(shape, channels_of(shape, weights, call, plane, next),
                    call.output.data + plane * call.output.stride);
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_quantized_depthwise)(QuantizedKernels& table) { table.depthwise = quantized_depthwise; }

}  // namespace dynprune::cpu
