// bf16 depthwise convolution: the halves of the input are widened to float32, where one multiply-add per tap does.
#include "cpu/vec.h"

#if defined(__AVX512BF16__)
#include "cpu/bf16_vector.h"
#else
#include "cpu/bf16_scalar.h"
#endif

namespace dynprune::cpu {
namespace {

Bf16Pair pair_of(const Bf16ConvShape& shape, const Bf16Weights& weights, const Bf16ConvCall& call,
                 const int32_t* in_position, int32_t plane) {
  Bf16Pair pair;
  for (int32_t a = 0; a < kBf16PerWord; ++a) {
    const int32_t entry = plane * kBf16PerWord + a;
    pair.row[a] = nullptr;
    pair.plane[a] = call.input.data;
    pair.half[a] = 0;
    pair.filler[a] = entry >= call.n_out;
    if (pair.filler[a]) continue;
    const int32_t channel = call.out_channel[entry], position = in_position[channel];
    pair.channel[a] = bf16_channel(weights, channel);
    if (position < 0) continue;
    pair.row[a] = weights.rows + static_cast<int64_t>(channel) * shape.taps * kBf16PerWord;
    pair.plane[a] = call.input.data + (position / kBf16PerWord) * call.input.stride;
    pair.half[a] = position % kBf16PerWord;
  }
  return pair;
}

DYNPRUNE_INLINE float weight_of(const Bf16Pair& pair, int a, int32_t tap) {
  return float_of_bits(static_cast<uint32_t>(pair.row[a][tap * kBf16PerWord]) << 16);
}

#if defined(__AVX512BF16__)

constexpr int kVectors = 4;

// Whether the inputs of both channels are the halves of one word, in order.
bool share_words(const Bf16Pair& pair) {
  return pair.row[0] && pair.row[1] && pair.plane[0] == pair.plane[1] && pair.half[0] == 0 && pair.half[1] == 1;
}

// Sums of two channels whose inputs share their words: one load for both.
template <int Vectors>
DYNPRUNE_INLINE void sum_shared_words(const Bf16ConvShape& shape, const Bf16Pair& pair, int64_t position,
                                      __m512 (&acc)[kBf16PerWord][Vectors]) {
  DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[0][j] = acc[1][j] = _mm512_setzero_ps();
  for (int32_t t = 0; t < shape.taps; ++t) {
    const uint32_t* x = pair.plane[0] + position + shape.tap_offset[t];
    const uint16_t* mask = shape.tap_mask[t] + position / kBlock;
    const __m512 low = _mm512_set1_ps(weight_of(pair, 0, t)), high = _mm512_set1_ps(weight_of(pair, 1, t));
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      const __m512i words = _mm512_maskz_loadu_epi32(mask[j], x + 16 * j);
      acc[0][j] = _mm512_fmadd_ps(low_floats(words), low, acc[0][j]);
      acc[1][j] = _mm512_fmadd_ps(high_floats(words), high, acc[1][j]);
    }
  }
}

template <int Vectors>
DYNPRUNE_INLINE void sum_channels(const Bf16ConvShape& shape, const Bf16Pair& pair, int64_t position,
                                  __m512 (&acc)[kBf16PerWord][Vectors]) {
  DYNPRUNE_UNROLL for (int a = 0; a < kBf16PerWord; ++a) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[a][j] = _mm512_setzero_ps();
    if (!pair.row[a]) continue;
    // The wanted half moves to the top, the other one is cut off.
    const __m128i up = _mm_cvtsi32_si128(pair.half[a] ? 0 : 16);
    for (int32_t t = 0; t < shape.taps; ++t) {
      const uint32_t* x = pair.plane[a] + position + shape.tap_offset[t];
      const uint16_t* mask = shape.tap_mask[t] + position / kBlock;
      const __m512 w = _mm512_set1_ps(weight_of(pair, a, t));
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
        const __m512i words = _mm512_sll_epi32(_mm512_maskz_loadu_epi32(mask[j], x + 16 * j), up);
        acc[a][j] = _mm512_fmadd_ps(high_floats(words), w, acc[a][j]);
      }
    }
  }
}

// Plain: bias and one clamp are all there is, in registers for all vectors of a tile.
template <int Vectors, bool Shared, bool Plain>
void depthwise_tile(const Bf16ConvShape& shape, const Bf16Pair& pair, uint32_t* y, int64_t position) {
  __m512 acc[kBf16PerWord][Vectors];
  if (Shared)
    sum_shared_words<Vectors>(shape, pair, position, acc);
  else
    sum_channels<Vectors>(shape, pair, position, acc);
  DYNPRUNE_UNROLL for (int a = 0; a < kBf16PerWord; ++a) {
    if (pair.filler[a]) {
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[a][j] = _mm512_setzero_ps();
    } else if (Plain) {
      const Clamp clamp = {clamp_float(shape.inner.lo, shape.outer), clamp_float(shape.inner.hi, shape.outer)};
      const __m512 bias = _mm512_set1_ps(pair.channel[a].bias);
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[a][j] = clamp_floats(_mm512_add_ps(acc[a][j], bias), clamp);
    } else {
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
        acc[a][j] = finish_floats(acc[a][j], pair.channel[a], shape.inner, shape.outer, _mm512_setzero_ps());
      }
    }
  }
  DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
    _mm512_mask_storeu_epi32(y + position + 16 * j, shape.out.store_mask[position / kBlock + j],
                             round_pairs(acc[0][j], acc[1][j]));
  }
}

using TileFn = void (*)(const Bf16ConvShape&, const Bf16Pair&, uint32_t*, int64_t);
#define TILES(SHARED, PLAIN)                                                                                \
  {&depthwise_tile<1, SHARED, PLAIN>, &depthwise_tile<2, SHARED, PLAIN>, &depthwise_tile<3, SHARED, PLAIN>, \
   &depthwise_tile<4, SHARED, PLAIN>}
// [plain][shared words][vectors - 1]
constexpr TileFn kTile[2][2][kVectors] = {{TILES(false, false), TILES(true, false)},
                                          {TILES(false, true), TILES(true, true)}};
#undef TILES

void depthwise_plane(const Bf16ConvShape& shape, const Bf16Pair& pair, bool plain, uint32_t* y) {
  const TileFn* tiles = kTile[plain][share_words(pair)];
  for (int32_t block = 0; block < shape.out.blocks; block += kVectors) {
    const int32_t left = shape.out.blocks - block;
    tiles[(left < kVectors ? left : kVectors) - 1](shape, pair, y, static_cast<int64_t>(block) * kBlock);
  }
}

#else

void depthwise_plane(const Bf16ConvShape& shape, const Bf16Pair& pair, bool, uint32_t* y) {
  for (int64_t block = 0; block < shape.out.blocks; ++block) {
    const int64_t position = block * kBlock;
    uint32_t result[kBlock] = {};
    for (int32_t a = 0; a < kBf16PerWord; ++a) {
      if (pair.filler[a]) continue;
      float sums[kBlock] = {};
      for (int32_t t = 0; pair.row[a] && t < shape.taps; ++t) {
        const uint32_t* x = pair.plane[a] + position + shape.tap_offset[t];
        const uint32_t mask = shape.tap_mask[t][block];
        const float w = weight_of(pair, a, t);
        for (int i = 0; i < kBlock; ++i) sums[i] += half_of(x[i] & -(mask >> i & 1u), pair.half[a]) * w;
      }
      for (int i = 0; i < kBlock; ++i)
        result[i] |= round_to_bf16(finish_bf16(sums[i], pair.channel[a], shape.inner, shape.outer, 0.0f)) << (16 * a);
    }
    for (int i = 0; i < kBlock; ++i)
      if (shape.out.store_mask[block] >> i & 1) y[position + i] = result[i];
  }
}

#endif

void bf16_depthwise(const Bf16ConvShape& shape, const Bf16Weights& weights, const Bf16ConvCall& call,
                    const int32_t* in_position, int32_t first, int32_t last) {
  const bool plain = !weights.gate && !weights.shift;
  for (int32_t plane = first; plane < last; ++plane)
    depthwise_plane(shape, pair_of(shape, weights, call, in_position, plane), plain,
                    call.output.data + plane * call.output.stride);
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_bf16_depthwise)(Bf16Kernels& table) { table.depthwise = bf16_depthwise; }

}  // namespace dynprune::cpu
