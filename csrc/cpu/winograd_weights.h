// Weight side of Winograd convolution: U = G g G^T for 16 output channels at a time.
//
// Raw weights are stored as [K/16][C][9][16], transformed ones as [K/16][(m+2)^2][C][16]; channels beyond K are zero.
// Both come from the same instructions, so storing U or computing it on the fly gives the same bits. Raw weights may
// also be bf16.
#pragma once

#include "winograd_lanes.h"
#include "winograd_tiles.h"

namespace dynprune::cpu {
namespace {

constexpr int64_t kRawBlock = 9 * kChannelBlock;  // weights of one input of a block

DYNPRUNE_INLINE Vec load_weights(const float* p) { return load(p); }
#if defined(__AVX512F__)
DYNPRUNE_INLINE Vec load_weights(const uint16_t* p) { return load_bf16(p); }
#endif

// out = G w for one column of 3 elements, `step` apart in w; out `out_step` apart.
template <int M>
DYNPRUNE_INLINE void transform_weights(const Vec* w, int step, Vec* out, int out_step) {
  const Vec w0 = w[0], w1 = w[step], w2 = w[2 * step];
  if constexpr (M == 2) {
    const Vec half = broadcast(0.5f), sum = mul(half, add(w0, w2));
    out[0] = w0;
    out[out_step] = fma(half, w1, sum);
    out[2 * out_step] = fnma(half, w1, sum);
    out[3 * out_step] = w2;
  } else {
    // Rows of G times 4, -6, -6, 24, 24, 1, which transform_output takes back: weights are transformed more often.
    const Vec outer = add(w0, w2), far = fma(broadcast(4.0f), w2, w0), two = broadcast(2.0f);
    out[0] = w0;
    out[out_step] = add(outer, w1);
    out[2 * out_step] = sub(outer, w1);
    out[3 * out_step] = fma(two, w1, far);
    out[4 * out_step] = fnma(two, w1, far);
    out[5 * out_step] = w2;
  }
}

// Live output channels that fill one vector of transformed weights, out of one or two vectors of stored ones: where
// half of the channels are live, one transform does for two.
template <class Raw>
struct LiveLanes {
  LaneChoice choice;
  const Raw* raw = nullptr;     // weights of input 0, rows of 16
  const Raw* second = nullptr;  // null for one vector
  int32_t count = 0;
};

// As many of the live outputs [first, last) of the call as fill a vector, first < last.
template <class Raw>
LiveLanes<Raw> next_live_lanes(const WinogradShape& shape, const ConvCall& call, const Raw* raw, int32_t first,
                               int32_t last) {
  const auto stored = [&](int32_t vector) {
    const int64_t block = vector / kVecsPerBlock;
    return raw + block * shape.in_channels * kRawBlock + vector % kVecsPerBlock * kLanes;
  };
  const int32_t vector = call.out_channel[first] / kLanes;
  int32_t second = vector, count = 0;
  int32_t lanes[kLanes] = {};
  for (int32_t i = first; i < last && count < kLanes; ++i) {
    const int32_t own = call.out_channel[i] / kLanes;
    if (own != second && second != vector) break;
    second = own;
    lanes[count++] = call.out_channel[i] % kLanes + (own == vector ? 0 : kLanes);
  }
  return {LaneChoice(lanes), stored(vector), second == vector ? nullptr : stored(second), count};
}

// Transforms 16 (AVX2: 8) output channels of one input, w[t] for tap t, to u[e * stride]. Writes whole vectors.
template <int M>
DYNPRUNE_INLINE void weight_tile(const Vec* w, float* u, int64_t stride) {
  constexpr int kSize = M + 2;
  Vec columns[kSize * 3];
  DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) transform_weights<M>(w + s, 3, columns + s, 3);
  DYNPRUNE_UNROLL for (int i = 0; i < kSize; ++i) {
    Vec out[kSize];
    transform_weights<M>(columns + 3 * i, 1, out, 1);
    DYNPRUNE_UNROLL for (int j = 0; j < kSize; ++j) store(u + (i * kSize + j) * stride, out[j]);
  }
}

// Inputs column[0..n) of every vector to u[t][i][...], rows of `step` floats. What a vector writes beyond its live
// channels is overwritten by the next vector or the next row; after the last row there must be room for it.
template <int M, class Raw>
void weight_tiles(const LiveLanes<Raw>* live, int32_t vectors, const int32_t* column, int32_t n, float* u, int64_t step,
                  int64_t stride) {
  for (int32_t i = 0; i < n; ++i) {
    float* to = u + i * step;
    const int64_t at = column[i] * kRawBlock;
    const int64_t ahead = column[i + 2 < n ? i + 2 : n - 1] * kRawBlock;
    for (const LiveLanes<Raw>* lanes = live; lanes < live + vectors; to += lanes++->count) {
      for (int t = 0; t < 9; ++t) __builtin_prefetch(lanes->raw + ahead + t * kChannelBlock);
      if (lanes->second)
        for (int t = 0; t < 9; ++t) __builtin_prefetch(lanes->second + ahead + t * kChannelBlock);
      Vec w[9];
      const Raw* a = lanes->raw + at;
      if (lanes->second) {
        const Raw* b = lanes->second + at;
        DYNPRUNE_UNROLL for (int t = 0; t < 9; ++t) {
          w[t] = choose_lanes(load_weights(a + t * kChannelBlock), load_weights(b + t * kChannelBlock), lanes->choice);
        }
      } else {
        DYNPRUNE_UNROLL for (int t = 0; t < 9; ++t) {
          w[t] = choose_lanes(load_weights(a + t * kChannelBlock), lanes->choice);
        }
      }
      weight_tile<M>(w, to, stride);
    }
  }
}

inline int32_t channel_blocks(int32_t channels) { return ceil_div(channels, kChannelBlock); }

// [K][C][9] to [K/16][C][9][16].
template <class Raw>
void pack_raw(int32_t out_channels, int32_t in_channels, const Raw* weights, Raw* packed) {
  for (int32_t block = 0; block < channel_blocks(out_channels); ++block) {
    for (int32_t c = 0; c < in_channels; ++c) {
      for (int32_t t = 0; t < 9; ++t) {
        for (int32_t i = 0; i < kChannelBlock; ++i) {
          const int64_t k = static_cast<int64_t>(block) * kChannelBlock + i;
          *packed++ = k < out_channels ? weights[(k * in_channels + c) * 9 + t] : Raw{0};
        }
      }
    }
  }
}

// [K][C][9] to [K/16][(m+2)^2][C][16].
inline void pack_transformed(int32_t m, int32_t out_channels, int32_t in_channels, const float* weights,
                             float* packed) {
  const int64_t matrix = static_cast<int64_t>(in_channels) * kChannelBlock;
  const int64_t size = static_cast<int64_t>(m + 2) * (m + 2);
  for (int32_t block = 0; block < channel_blocks(out_channels); ++block) {
    for (int32_t c = 0; c < in_channels; ++c) {
      const int32_t first = block * kChannelBlock;
      alignas(64) float raw[kRawBlock];
      for (int32_t t = 0; t < 9; ++t) {
        for (int32_t i = 0; i < kChannelBlock; ++i) {
          const int64_t k = first + i;
          raw[t * kChannelBlock + i] = k < out_channels ? weights[(k * in_channels + c) * 9 + t] : 0.0f;
        }
      }
      float* u = packed + block * size * matrix + static_cast<int64_t>(c) * kChannelBlock;
      for (int32_t lane = 0; lane < kChannelBlock; lane += kLanes) {
        Vec w[9];
        for (int t = 0; t < 9; ++t) w[t] = load(raw + t * kChannelBlock + lane);
        (m == 4 ? weight_tile<4> : weight_tile<2>)(w, u + lane, matrix);
      }
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
