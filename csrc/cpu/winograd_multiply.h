// The matrix products of Winograd convolution: for every element t of a tile, M_t = U_t V_t, with tiles as lanes and
// a broadcast weight per multiply-add. One accumulator per output, inputs ascending: neither the register tile nor
// the set of zero inputs listed changes a bit.
#pragma once

#include "winograd_tiles.h"

namespace dynprune::cpu {
namespace {

// Where the weights of output k and input i are:
enum class WeightLayout {
  kCompact,  // u[k][i * step]: rows of live weights, as transformed on the fly; outputs adjoin
  kBlock,    // u[column[i] * step]: stored weights, outputs adjoin
  kRows,     // the same, outputs anywhere
};

// Raw weights of the next group of outputs, fetched while this one is multiplied: a few lines every few inputs, because
// a burst stalls, and only lines of live inputs.
class WeightPrefetcher {
 public:
  static constexpr int kMaxBlocks = 32;
  WeightPrefetcher() = default;
  // Inputs column[0..n) of blocks added by add_block(), `row_bytes` each, over the steps that spread() says.
  WeightPrefetcher(int64_t row_bytes, const int32_t* column, int32_t n)
      : row_bytes_(row_bytes), lines_(static_cast<int>((row_bytes + 63) / 64)), n_(n), column_(column) {}
  void add_block(const void* block) {
    if (blocks_ < kMaxBlocks) block_[blocks_++] = static_cast<const char*>(block);
  }
  void spread(int64_t steps) {
    const int64_t total = static_cast<int64_t>(blocks_) * n_ * lines_;
    per_step_ = steps > 0 ? static_cast<int>((total + steps - 1) / steps) : 0;
    if (per_step_ > kMaxPerStep) per_step_ = kMaxPerStep;
  }
  DYNPRUNE_INLINE void next() {
    for (int i = 0; i < per_step_; ++i) fetch_line();
  }

 private:
  static constexpr int kMaxPerStep = 6;
  DYNPRUNE_INLINE void fetch_line() {
    if (at_ == n_) return;
    __builtin_prefetch(block_[block_at_] + column_[at_] * row_bytes_ + line_ * 64, 0, 2);
    if (++line_ < lines_) return;
    line_ = 0;
    if (++block_at_ < blocks_) return;
    block_at_ = 0;
    ++at_;
  }
  const char* block_[kMaxBlocks];
  int64_t row_bytes_ = 0;
  int lines_ = 1, blocks_ = 0, per_step_ = 0;
  int32_t n_ = 0;
  const int32_t* column_ = nullptr;
  int line_ = 0, block_at_ = 0;
  int32_t at_ = 0;
};

struct Multiply {
  int32_t n_in;
  const int32_t* column;
  int64_t step;        // floats between inputs in the weights
  int64_t v_stride;    // between inputs in V
  int64_t out_stride;  // between outputs in M
  // kCompact: what to fetch meanwhile.
  WeightPrefetcher* prefetcher;
  // kBlock, kRows: floats to the weights of the next element of the tile, which follow these, or 0 if weights are
  // small enough to stay in the caches: without a hint, skipped inputs defeat the hardware's prefetching (measured:
  // 14x14 with 256 channels, half of the inputs live, 1500 instead of 450 us).
  int64_t next_element;
};

constexpr int kPrefetchDistance = 16;  // inputs

// Where the weights of a tile's outputs are; one pointer if they adjoin.
template <int Channels, WeightLayout Layout>
struct WeightRows {
  static constexpr bool kAdjoining = Layout != WeightLayout::kRows;
  const float* row[kAdjoining ? 1 : Channels];
  DYNPRUNE_INLINE explicit WeightRows(const float* const* weight) {
    DYNPRUNE_UNROLL for (int k = 0; k < (kAdjoining ? 1 : Channels); ++k) row[k] = weight[k];
  }
  DYNPRUNE_INLINE float at(int k, int64_t offset) const { return kAdjoining ? row[0][offset + k] : row[k][offset]; }
  DYNPRUNE_INLINE void fetch(int64_t offset) const {
    __builtin_prefetch(row[0] + offset, 0, 3);
    if constexpr (!kAdjoining) __builtin_prefetch(row[Channels - 1] + offset, 0, 3);
  }
};

// Calls accumulate(v, offset of the weights) for every input, fetching weights meanwhile.
template <int Channels, WeightLayout Layout, class Accumulate>
DYNPRUNE_INLINE void for_each_input(const Multiply& job, const WeightRows<Channels, Layout>& rows, const float* v,
                                    Accumulate&& accumulate) {
  const int64_t v_stride = job.v_stride, step = job.step;
  int32_t i = 0;
  if constexpr (Layout == WeightLayout::kCompact) {
    int64_t offset = 0;
    const auto next = [&]() __attribute__((always_inline)) {
      accumulate(v, offset);
      v += v_stride;
      offset += step;
    };
    for (; i + 4 <= job.n_in; i += 4) {
      next();
      next();
      next();
      next();
      job.prefetcher->next();
    }
    for (; i < job.n_in; ++i) next();
  } else {
    const int32_t* column = job.column;
    if (job.next_element) {
      for (; i + kPrefetchDistance < job.n_in; ++i, v += v_stride) {
        rows.fetch(column[i + kPrefetchDistance] * step);
        accumulate(v, column[i] * step);
      }
      for (int32_t ahead = 0; i < job.n_in; ++i, ++ahead, v += v_stride) {
        rows.fetch(column[ahead] * step + job.next_element);
        accumulate(v, column[i] * step);
      }
    }
    for (; i < job.n_in; ++i, v += v_stride) accumulate(v, column[i] * step);
  }
}

template <int Channels, int Vectors, WeightLayout Layout>
void multiply_tile(const Multiply& job, const float* const* weight, const float* v, float* out) {
  Vec acc[Channels][Vectors];
  DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[k][j] = zero();
  }
  const WeightRows<Channels, Layout> rows(weight);
  const auto accumulate = [&](const float* x, int64_t offset) __attribute__((always_inline)) {
    Vec in[Vectors];
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      in[j] = load(x + j * kLanes);
      pin(in[j]);
    }
    DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
      const Vec w = broadcast(rows.at(k, offset));
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[k][j] = fma(w, in[j], acc[k][j]);
    }
  };
  for_each_input<Channels, Layout>(job, rows, v, accumulate);
  DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) store(out + k * job.out_stride + j * kLanes, acc[k][j]);
  }
}

using MultiplyFn = void (*)(const Multiply&, const float* const*, const float*, float*);

#define MULTIPLY_1(K) &multiply_tile<K, 1, Layout>
#define MULTIPLY_2(K) MULTIPLY_1(K), &multiply_tile<K, 2, Layout>
#define MULTIPLY_3(K) MULTIPLY_2(K), &multiply_tile<K, 3, Layout>
#define MULTIPLY_4(K) MULTIPLY_3(K), &multiply_tile<K, 4, Layout>

constexpr int kMultiplyVectors = multiply_vectors(kLanes);
template <WeightLayout Layout>
struct MultiplyTiles {
#if defined(__AVX512F__)
  static constexpr MultiplyFn kTile[kChannelBlock][kMultiplyVectors] = {
      {MULTIPLY_4(1)},  {MULTIPLY_4(2)},  {MULTIPLY_4(3)},  {MULTIPLY_4(4)},  {MULTIPLY_4(5)},  {MULTIPLY_4(6)},
      {MULTIPLY_3(7)},  {MULTIPLY_3(8)},  {MULTIPLY_2(9)},  {MULTIPLY_2(10)}, {MULTIPLY_2(11)}, {MULTIPLY_2(12)},
      {MULTIPLY_1(13)}, {MULTIPLY_1(14)}, {MULTIPLY_1(15)}, {MULTIPLY_1(16)}};
#else
  static constexpr MultiplyFn kTile[kChannelBlock][kMultiplyVectors] = {
      {MULTIPLY_3(1)}, {MULTIPLY_3(2)}, {MULTIPLY_3(3)}, {MULTIPLY_3(4)},  {MULTIPLY_2(5)},  {MULTIPLY_2(6)},
      {MULTIPLY_1(7)}, {MULTIPLY_1(8)}, {MULTIPLY_1(9)}, {MULTIPLY_1(10)}, {MULTIPLY_1(11)}, {MULTIPLY_1(12)}};
#endif
};

#if defined(__AVX512F__)

// `Vectors` full vectors and a half one, which two outputs share as in the direct kernel (conv_direct.cc).
// `channels` is 2 * Pairs, or one less: the last output is then computed twice and stored once.
template <int Pairs, int Vectors, WeightLayout Layout>
void multiply_half_tile(const Multiply& job, const float* const* weight, const float* v, float* out, int channels) {
  constexpr int kChannels = 2 * Pairs;
  Vec acc[kChannels][Vectors ? Vectors : 1], half[Pairs];
  DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[k][j] = zero();
  }
  DYNPRUNE_UNROLL for (int p = 0; p < Pairs; ++p) half[p] = zero();
  const WeightRows<kChannels, Layout> rows(weight);
  const int64_t back = kChannels - channels;  // adjoining weights: there may be nothing after the last output
  const auto accumulate = [&](const float* x, int64_t offset) __attribute__((always_inline)) {
    Vec in[Vectors ? Vectors : 1];
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      in[j] = load(x + j * kLanes);
      pin(in[j]);
    }
    Vec twice = load_half_twice(x + Vectors * kLanes);
    pin(twice);
    DYNPRUNE_UNROLL for (int p = 0; p < Pairs; ++p) {
      const int64_t second = p == Pairs - 1 && Layout != WeightLayout::kRows ? offset - back : offset;
      Vec w0 = broadcast(rows.at(2 * p, offset)), w1 = broadcast(rows.at(2 * p + 1, second));
      pin(w0);
      pin(w1);
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
        acc[2 * p][j] = fma(w0, in[j], acc[2 * p][j]);
        acc[2 * p + 1][j] = fma(w1, in[j], acc[2 * p + 1][j]);
      }
      half[p] = fma(upper_from(w1, w0), twice, half[p]);
    }
  };
  for_each_input<kChannels, Layout>(job, rows, v, accumulate);
  DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) {
    if (k == channels) break;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) store(out + k * job.out_stride + j * kLanes, acc[k][j]);
    store(out + k * job.out_stride + Vectors * kLanes, k % 2 ? upper_half(half[k / 2]) : half[k / 2]);
  }
}

using MultiplyHalfFn = void (*)(const Multiply&, const float* const*, const float*, float*, int);

#define MULTIPLY_HALF_3(V) \
  &multiply_half_tile<1, V, Layout>, &multiply_half_tile<2, V, Layout>, &multiply_half_tile<3, V, Layout>
#define MULTIPLY_HALF_4(V) MULTIPLY_HALF_3(V), &multiply_half_tile<4, V, Layout>
#define MULTIPLY_HALF_6(V) MULTIPLY_HALF_4(V), &multiply_half_tile<5, V, Layout>, &multiply_half_tile<6, V, Layout>
#define MULTIPLY_HALF_8(V) MULTIPLY_HALF_6(V), &multiply_half_tile<7, V, Layout>, &multiply_half_tile<8, V, Layout>

template <WeightLayout Layout>
struct MultiplyHalfTiles {
  static constexpr MultiplyHalfFn kTile[kMaxHalfVectors][kMaxTileChannels / 2] = {
      {MULTIPLY_HALF_8(0)}, {MULTIPLY_HALF_6(1)}, {MULTIPLY_HALF_4(2)}, {MULTIPLY_HALF_3(3)}};
};

#endif

constexpr DirectTiles kMultiplyTiles = multiply_tiles(kLanes);  // the limits of the table above

// Register tiles of the product of some outputs and all vectors of tiles. The same list serves every element of a
// tile, so what it takes to cut it is paid once.
struct TileCall {
  int32_t channels, first_channel;
  int64_t first_lane;
  int32_t vectors;  // full ones
  bool half;
  bool first;  // of these channels: fetches the next element's weights meanwhile
};

// Calls `visit(TileCall)` for every register tile. Rows need a pointer register each: no more than 8 at once.
template <class Visit>
void for_each_tile(const DirectSplit& split, int n_out, bool rows, Visit&& visit) {
  for (int p = 0; p < split.parts; ++p) {
    const int first = balanced_begin(split.full_vectors, split.parts, p);
    const int vectors = balanced_begin(split.full_vectors, split.parts, p + 1) - first;
    const int limit = max_channels(kMultiplyTiles, vectors);
    const int groups = ceil_div(n_out, rows && limit > 8 ? 8 : limit);
    for (int g = 0; g < groups; ++g) {
      const int k0 = balanced_begin(n_out, groups, g), k1 = balanced_begin(n_out, groups, g + 1);
      visit(TileCall{k1 - k0, k0, int64_t{first} * kLanes, vectors, false, p == 0});
    }
  }
  if (split.half_tile) {
    const int limit = kMultiplyTiles.max_pairs[split.half_tile_vectors];
    const int pairs = ceil_div(n_out, 2), groups = ceil_div(pairs, rows && limit > 4 ? 4 : limit);
    for (int g = 0; g < groups; ++g) {
      const int k0 = 2 * balanced_begin(pairs, groups, g), k1 = 2 * balanced_begin(pairs, groups, g + 1);
      visit(TileCall{(k1 < n_out ? k1 : n_out) - k0, k0, int64_t{split.full_vectors} * kLanes, split.half_tile_vectors,
                     true, split.parts == 0});
    }
  }
}

template <WeightLayout Layout>
DYNPRUNE_INLINE void run_tile(const TileCall& tile, const Multiply& job, const float* const* weight, const float* v,
                              float* out) {
  const float* const* const rows = weight + tile.first_channel;
  float* const to = out + tile.first_channel * job.out_stride + tile.first_lane;
  if (!tile.half) {
    MultiplyTiles<Layout>::kTile[tile.channels - 1][tile.vectors - 1](job, rows, v + tile.first_lane, to);
    return;
  }
#if defined(__AVX512F__)
  MultiplyHalfTiles<Layout>::kTile[tile.vectors][(tile.channels - 1) / 2](job, rows, v + tile.first_lane, to,
                                                                          tile.channels);
#endif
}

// The products of all `elements` of a tile: `n_out` outputs, whose weights of element t start at
// weight[k] + t * matrix, by all vectors of tiles. weight[n_out] must be writable.
template <WeightLayout Layout>
void multiply_elements(const Multiply& job, const DirectSplit& split, int32_t elements, int n_out, const float** weight,
                       int64_t matrix, const float* v, int64_t v_matrix, float* out, int64_t out_matrix) {
  constexpr int kCalls = 64;  // larger maps are worked through that many at a time
  TileCall calls[kCalls];
  int n = 0;
  Multiply again = job;  // (A copy for each call cost 3 % of a CIFAR network in failed store forwarding.)
  again.next_element = 0;
  weight[n_out] = weight[n_out - 1];  // an odd last output is computed twice
  const auto flush = [&] {
    for (int32_t t = 0; t < elements; ++t) {
      for (int i = 0; i < n; ++i) {
        run_tile<Layout>(calls[i], calls[i].first ? job : again, weight, v + t * v_matrix, out + t * out_matrix);
      }
      for (int k = 0; k <= n_out; ++k) weight[k] += matrix;
    }
    for (int k = 0; k <= n_out; ++k) weight[k] -= elements * matrix;
    n = 0;
  };
  for_each_tile(split, n_out, Layout == WeightLayout::kRows, [&](const TileCall& call) {
    calls[n++] = call;
    if (n == kCalls) flush();
  });
  if (n > 0) flush();
}

}  // namespace
}  // namespace dynprune::cpu
