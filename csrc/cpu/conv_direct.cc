// Direct planar convolution.
//
// Lanes are consecutive positions of a plane, a weight is one broadcast, a tap is a constant shift of the
// input plane. A register tile holds `channels` outputs times `vectors` of positions; per live input and tap it
// loads `vectors` vectors and issues channels * vectors fused multiply-adds. Skipping an input is a shorter
// list, skipping an output one row pointer less: neither copies weights nor leaves lanes idle.
//
// Every output element is one accumulator that starts at 0 and takes inputs ascending and taps in order, so
// its bits depend neither on the tile that computed it nor on which zero inputs were listed.
#include "conv_epilogue.h"
#include "conv_tiling.h"
#include "kernels.h"
#include "vec.h"

namespace dynprune::cpu {
namespace {

constexpr DirectTiles kTiles = direct_tiles(kLanes);

struct Job {
  const DirectShape& shape;
  const ConvCall& call;
  const float* weights;
  EpilogueKind epilogue;
  Clamp clamp;  // of the plain epilogue
};

// The outputs of one register tile.
struct TileChannels {
  const float* weight[kMaxTileChannels];
  float* output[kMaxTileChannels];
  ChannelEpilogue epilogue[kMaxTileChannels];
  bool fetches;                           // whether to fetch
  const float* coming[kMaxTileChannels];  // the rows of weights that the next tile reads
};

// Rows of one tap per input are short streams from beyond the caches, too many and too short for the hardware to see
// them: with every few inputs a tile fetches what the next one needs (160 to 960 channels of 7x7, 614 KB of weights,
// half of the outputs live: 118 to 92 us). With 16 registers it costs what it gains.
constexpr int kFetchInputs = 8;
template <int Taps>
constexpr bool kFetches = Taps == 1 && kLanes == 16;
template <int Channels>
DYNPRUNE_INLINE void fetch_coming(const TileChannels& tile, int64_t column) {
  DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) __builtin_prefetch(tile.coming[k] + column, 0, 3);
}
// The end of the inputs from `first` on that one fetch is for.
template <int Taps>
DYNPRUNE_INLINE int32_t fetched_end(const TileChannels& tile, int32_t first, int32_t n_in) {
  return kFetches<Taps> && tile.fetches && n_in - first > kFetchInputs ? first + kFetchInputs : n_in;
}

// Finishes sums[channels][vectors][kLanes] of the tile whose first vector is `v0`.
template <EpilogueKind Kind>
void finish_sums(const Job& job, const TileChannels& tile, int channels, int vectors, int64_t v0, const float* sums) {
  for (int k = 0; k < channels; ++k) {
    const ChannelEpilogue& c = tile.epilogue[k];
    const ChannelFinish<Kind> finish{job.call.epilogue, c};
    for (int64_t v = v0; v < v0 + vectors; ++v, sums += kLanes) {
      const Vec residual = finish.kMayAdd && c.residual ? load(c.residual + v * kLanes) : zero();
      store(tile.output[k] + v * kLanes, keep(vector_mask(job.shape.out.store_mask, v), finish(load(sums), residual)));
    }
  }
}

__attribute__((noinline)) void finish_tile(const Job& job, const TileChannels& tile, int channels, int vectors,
                                           int64_t v0, const float* sums) {
  constexpr decltype(&finish_sums<EpilogueKind::kFull>) kFinish[kEpilogueKinds] = {
      finish_sums<EpilogueKind::kPlain>, finish_sums<EpilogueKind::kGated>, finish_sums<EpilogueKind::kAdded>,
      finish_sums<EpilogueKind::kFull>};
  kFinish[static_cast<int>(job.epilogue)](job, tile, channels, vectors, v0, sums);
}

// Taps = 0: as many as the shape says, in a loop; otherwise unrolled.
template <int Channels, int Vectors, int Taps>
void direct_tile(const Job& job, const TileChannels& tile, int64_t v0) {
  Vec acc[Channels][Vectors];
  DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      acc[k][j] = zero();
      if (j % (16 / kLanes) == 0) prefetch_for_write(tile.output[k] + (v0 + j) * kLanes);
    }
  }
  const float* weight[Channels];
  DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) weight[k] = tile.weight[k];
  const int32_t* tap_offset = job.shape.tap_offset;
  const int taps = Taps ? Taps : job.shape.taps;
  const float* const* input = job.call.input;
  const int32_t* in_channel = job.call.in_channel;
  const int32_t n_in = job.call.n_in;
  for (int32_t i = 0; i < n_in;) {
    const int32_t end = fetched_end<Taps>(tile, i, n_in);
    if (kFetches<Taps> && tile.fetches) fetch_coming<Channels>(tile, in_channel[i]);
    for (; i < end; ++i) {
      const float* x = input[i] + v0 * kLanes;
      const int64_t column = static_cast<int64_t>(in_channel[i]) * taps;
      const auto accumulate = [&](int t) __attribute__((always_inline)) {
        const float* shifted = x + tap_offset[t];
        pin(shifted);
        Vec in[Vectors];
        DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
          in[j] = load(shifted + j * kLanes);
          pin(in[j]);
        }
        DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
          const Vec w = broadcast(weight[k][column + t]);
          DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[k][j] = fma(w, in[j], acc[k][j]);
        }
      };
      if constexpr (Taps) {
        DYNPRUNE_UNROLL for (int t = 0; t < Taps; ++t) accumulate(t);
      } else {
        for (int t = 0; t < taps; ++t) accumulate(t);
      }
    }
  }
  if (job.epilogue == EpilogueKind::kPlain) {
    const PlainFinish finish(job.clamp);
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      const uint32_t mask = vector_mask(job.shape.out.store_mask, v0 + j);
      DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
        store(tile.output[k] + (v0 + j) * kLanes, keep(mask, finish(acc[k][j], broadcast(tile.epilogue[k].bias))));
      }
    }
  } else if (job.epilogue == EpilogueKind::kAdded) {
    const Vec lo = broadcast(job.call.epilogue.outer.lo), hi = broadcast(job.call.epilogue.outer.hi);
    DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
      const ChannelEpilogue& c = tile.epilogue[k];
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
        const Vec v = add(add(acc[k][j], broadcast(c.bias)), load(c.residual + (v0 + j) * kLanes));
        const uint32_t mask = vector_mask(job.shape.out.store_mask, v0 + j);
        store(tile.output[k] + (v0 + j) * kLanes, keep(mask, limit(v, lo, hi)));
      }
    }
  } else {
    alignas(64) float sums[Channels * Vectors * kLanes];
    DYNPRUNE_UNROLL for (int k = 0; k < Channels; ++k) {
      DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) store(sums + (k * Vectors + j) * kLanes, acc[k][j]);
    }
    finish_tile(job, tile, Channels, Vectors, v0, sums);
  }
}

#if defined(__AVX512F__)

// Maps such as 7x7 end in a block whose upper half is empty. Two outputs share a vector for it: the half block
// is loaded into both halves and meets a vector of two weights. `Vectors` full vectors, at least one, come before it.
template <int Pairs, int Vectors, int Taps>
void direct_half_tile(const Job& job, const TileChannels& tile, int64_t v0, int channels) {
  constexpr int kChannels = 2 * Pairs;
  Vec acc[kChannels][Vectors], half[Pairs];
  DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[k][j] = zero();
    DYNPRUNE_UNROLL for (int j = 0; j <= Vectors; ++j) prefetch_for_write(tile.output[k] + (v0 + j) * kLanes);
  }
  DYNPRUNE_UNROLL for (int p = 0; p < Pairs; ++p) half[p] = zero();
  const float* weight[kChannels];
  DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) weight[k] = tile.weight[k];
  const int32_t* tap_offset = job.shape.tap_offset;
  const int taps = Taps ? Taps : job.shape.taps;
  const float* const* input = job.call.input;
  const int32_t* in_channel = job.call.in_channel;
  const int32_t n_in = job.call.n_in;
  for (int32_t i = 0; i < n_in;) {
    const int32_t end = fetched_end<Taps>(tile, i, n_in);
    if (kFetches<Taps> && tile.fetches) fetch_coming<kChannels>(tile, in_channel[i]);
    for (; i < end; ++i) {
      const float* x = input[i] + v0 * kLanes;
      const int64_t column = static_cast<int64_t>(in_channel[i]) * taps;
      const auto accumulate = [&](int t) __attribute__((always_inline)) {
        const float* shifted = x + tap_offset[t];
        pin(shifted);
        Vec in[Vectors];
        DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
          in[j] = load(shifted + j * kLanes);
          pin(in[j]);
        }
        Vec twice = load_half_twice(shifted + Vectors * kLanes);
        pin(twice);
        DYNPRUNE_UNROLL for (int p = 0; p < Pairs; ++p) {
          Vec w0 = broadcast(weight[2 * p][column + t]), w1 = broadcast(weight[2 * p + 1][column + t]);
          pin(w0);
          pin(w1);
          DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
            acc[2 * p][j] = fma(w0, in[j], acc[2 * p][j]);
            acc[2 * p + 1][j] = fma(w1, in[j], acc[2 * p + 1][j]);
          }
          half[p] = fma(upper_from(w1, w0), twice, half[p]);
        }
      };
      if constexpr (Taps) {
        DYNPRUNE_UNROLL for (int t = 0; t < Taps; ++t) accumulate(t);
      } else {
        for (int t = 0; t < taps; ++t) accumulate(t);
      }
    }
  }
  // The sums of an odd last output are there twice; `channels` says how many are wanted.
  constexpr int kTotal = Vectors + 1;
  alignas(64) float sums[kChannels * kTotal * kLanes];
  DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) store(sums + (k * kTotal + j) * kLanes, acc[k][j]);
    store(sums + (k * kTotal + Vectors) * kLanes, k % 2 ? upper_half(half[k / 2]) : half[k / 2]);
  }
  finish_tile(job, tile, channels, kTotal, v0, sums);
}

// A half block alone: one half vector per output.
template <int Pairs, int Taps>
void direct_narrow_tile(const Job& job, const TileChannels& tile, int64_t v0, int channels) {
  constexpr int kChannels = 2 * Pairs;
  HalfVec acc[kChannels];
  DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) {
    acc[k] = half_zero();
    prefetch_for_write(tile.output[k] + v0 * kLanes);
  }
  const float* weight[kChannels];
  DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) weight[k] = tile.weight[k];
  const int taps = Taps ? Taps : job.shape.taps;
  for (int32_t i = 0; i < job.call.n_in; ++i) {
    const float* x = job.call.input[i] + v0 * kLanes;
    const int64_t column = static_cast<int64_t>(job.call.in_channel[i]) * taps;
    const auto accumulate = [&](int t) __attribute__((always_inline)) {
      const HalfVec in = half_load(x + job.shape.tap_offset[t]);
      DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) {
        acc[k] = half_fma(half_broadcast(weight[k][column + t]), in, acc[k]);
      }
    };
    if constexpr (Taps) {
      DYNPRUNE_UNROLL for (int t = 0; t < Taps; ++t) accumulate(t);
    } else {
      for (int t = 0; t < taps; ++t) accumulate(t);
    }
  }
  alignas(64) float sums[kChannels * kLanes];
  DYNPRUNE_UNROLL for (int k = 0; k < kChannels; ++k) store(sums + k * kLanes, widen(acc[k]));
  finish_tile(job, tile, channels, 1, v0, sums);
}

using HalfTileFn = void (*)(const Job&, const TileChannels&, int64_t, int);
#define PAIRS_2(V, T) &direct_half_tile<1, V, T>, &direct_half_tile<2, V, T>
#define PAIRS_4(V, T) PAIRS_2(V, T), &direct_half_tile<3, V, T>, &direct_half_tile<4, V, T>
#define NARROW_4(P, T) \
  &direct_narrow_tile<P, T>, &direct_narrow_tile<P + 1, T>, &direct_narrow_tile<P + 2, T>, &direct_narrow_tile<P + 3, T>
#define HALF_TILES(T)                                                                                          \
  {                                                                                                            \
    {NARROW_4(1, T), NARROW_4(5, T)}, {PAIRS_4(1, T), &direct_half_tile<5, 1, T>, &direct_half_tile<6, 1, T>}, \
        {PAIRS_4(2, T)}, {PAIRS_2(3, T), &direct_half_tile<3, 3, T>}, {                                        \
      PAIRS_2(4, T)                                                                                            \
    }                                                                                                          \
  }
constexpr HalfTileFn kHalfTile[3][kMaxHalfVectors + 1][kMaxTileChannels / 2] = {HALF_TILES(0), HALF_TILES(1),
                                                                                HALF_TILES(9)};

#endif

using TileFn = void (*)(const Job&, const TileChannels&, int64_t);

#define TILES_1(K, T) &direct_tile<K, 1, T>
#define TILES_2(K, T) TILES_1(K, T), &direct_tile<K, 2, T>
#define TILES_3(K, T) TILES_2(K, T), &direct_tile<K, 3, T>
#define TILES_4(K, T) TILES_3(K, T), &direct_tile<K, 4, T>
#define TILES_5(K, T) TILES_4(K, T), &direct_tile<K, 5, T>
#define TILES_6(K, T) TILES_5(K, T), &direct_tile<K, 6, T>
#define TILES_7(K, T) TILES_6(K, T), &direct_tile<K, 7, T>

// Rows: outputs of the tile minus 1; columns: vectors minus 1. conv_tiling.h has the same limits as numbers.
#if defined(__AVX512F__)
#define TILES(T)                                                                                                 \
  {                                                                                                              \
    {TILES_7(1, T)}, {TILES_7(2, T)}, {TILES_7(3, T)}, {TILES_6(4, T)}, {TILES_5(5, T)}, {TILES_4(6, T)},        \
        {TILES_3(7, T)}, {TILES_3(8, T)}, {TILES_2(9, T)}, {TILES_2(10, T)}, {TILES_2(11, T)}, {TILES_2(12, T)}, \
        {TILES_1(13, T)}, {TILES_1(14, T)}, {TILES_1(15, T)}, {                                                  \
      TILES_1(16, T)                                                                                             \
    }                                                                                                            \
  }
#elif defined(__AVX2__)
#define TILES(T)                                                                                          \
  {                                                                                                       \
    {TILES_7(1, T)}, {TILES_5(2, T)}, {TILES_3(3, T)}, {TILES_3(4, T)}, {TILES_2(5, T)}, {TILES_2(6, T)}, \
        {TILES_1(7, T)}, {TILES_1(8, T)}, {TILES_1(9, T)}, {TILES_1(10, T)}, {TILES_1(11, T)}, {          \
      TILES_1(12, T)                                                                                      \
    }                                                                                                     \
  }
#else
#define TILES(T)                                                                                          \
  {                                                                                                       \
    {TILES_6(1, T)}, {TILES_4(2, T)}, {TILES_3(3, T)}, {TILES_2(4, T)}, {TILES_1(5, T)}, {TILES_1(6, T)}, \
        {TILES_1(7, T)}, {                                                                                \
      TILES_1(8, T)                                                                                       \
    }                                                                                                     \
  }
#endif
// The portable code has too few registers to gain from unrolled taps: it spills addresses (measured: 46 instead of
// 75 % of peak).
#if defined(__AVX2__)
constexpr TileFn kTile[3][kMaxTileChannels][kMaxTileVectors] = {TILES(0), TILES(1), TILES(9)};
DYNPRUNE_INLINE int taps_variant(int32_t taps) { return taps == 1 ? 1 : taps == 9 ? 2 : 0; }
#else
constexpr TileFn kTile[2][kMaxTileChannels][kMaxTileVectors] = {TILES(0), TILES(1)};
DYNPRUNE_INLINE int taps_variant(int32_t taps) { return taps == 1 ? 1 : 0; }
#endif

// Tiles of one width side by side: `tiles` times `vectors` vectors of positions from v0 on and, if `half`, the half
// block after them, for all outputs.
void position_tiles(const Job& job, int64_t v0, int vectors, int tiles, bool half) {
  const ConvCall& call = job.call;
  const int variant = taps_variant(job.shape.taps);
  const int64_t row = static_cast<int64_t>(job.shape.in_channels) * job.shape.taps;
  const bool fetches = row * job.shape.out_channels * static_cast<int64_t>(sizeof(float)) > kEvictedWeights;
  const int unit = half ? 2 : 1;
  const int units = (call.n_out + unit - 1) / unit;
  const int most = half ? kTiles.max_pairs[vectors] : max_channels(kTiles, vectors);
  const int parts = (units + most - 1) / most;
  for (int part = 0; part < parts; ++part) {
    const int first = balanced_begin(units, parts, part);
    const int n_units = balanced_begin(units, parts, part + 1) - first;
    const int k0 = first * unit;
    const int channels = call.n_out - k0 < n_units * unit ? call.n_out - k0 : n_units * unit;
    TileChannels tile;
    tile.fetches = fetches;
    for (int k = 0; k < n_units * unit; ++k) {
      const int at = k0 + (k < channels ? k : channels - 1);
      tile.weight[k] = job.weights + call.out_channel[at] * row;
      tile.output[k] = call.output[at];
      tile.epilogue[k] = channel_epilogue(call.epilogue, call.out_channel[at], at);
      const int coming = at + channels < call.n_out ? at + channels : call.n_out - 1;
      tile.coming[k] = job.weights + call.out_channel[coming] * row;
    }
    if (!half) {
      const TileFn run = kTile[variant][n_units - 1][vectors - 1];
      for (int t = 0; t < tiles; ++t) run(job, tile, v0 + t * vectors);
    } else {
#if defined(__AVX512F__)
      kHalfTile[variant][vectors][n_units - 1](job, tile, v0, channels);
#endif
    }
  }
}

// The tiles that a few outputs at a time go through: what they read of the inputs stays in the first-level cache, and
// what is prepared per output serves all of them.
constexpr int64_t kStripBytes = 32 << 10;

void conv_direct(const DirectShape& shape, const float* weights, const ConvCall& call, int32_t first_block,
                 int32_t last_block) {
  if (call.n_out == 0) return;
  const Job job{shape, call, weights, epilogue_kind(call.epilogue), merged_clamp(call.epilogue)};
  int64_t begin = static_cast<int64_t>(first_block) * kVecsPerBlock;
  int64_t end = static_cast<int64_t>(last_block) * kVecsPerBlock;
  while (end > begin && keep_none(vector_mask(shape.out.store_mask, end - 1))) --end;
  if (end == begin) return;
  const bool half = kLanes == 16 && (vector_mask(shape.out.store_mask, end - 1) & 0xff00u) == 0;
  const DirectSplit& split = position_split(TileUse::kDirect, kLanes, call.n_out, static_cast<int>(end - begin), half);
  const auto strips = [&](int64_t v0, int vectors, int tiles) {
    const int64_t tile_bytes = int64_t{call.n_in} * vectors * kLanes * sizeof(float) + 1;
    const int strip = kStripBytes > 2 * tile_bytes ? static_cast<int>(kStripBytes / tile_bytes) : 1;
    for (int t = 0; t < tiles; t += strip) {
      position_tiles(job, v0 + t * vectors, vectors, tiles - t < strip ? tiles - t : strip, false);
    }
  };
  if (split.parts > 0) {
    // Narrow tiles first: faster on 7x7 maps with AVX2, the same elsewhere.
    const int width = split.full_vectors / split.parts, wide = split.full_vectors % split.parts;
    const int narrow = split.parts - wide;
    strips(begin, width, narrow);
    strips(begin + narrow * width, width + 1, wide);
  }
  if (split.half_tile) position_tiles(job, begin + split.full_vectors, split.half_tile_vectors, 1, true);
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_conv_direct)(KernelTable& table) {
  table.direct_tile_channels = max_channels(kTiles, kTiles.usual_vectors);
  table.direct_tile_blocks = (kTiles.usual_vectors + kVecsPerBlock - 1) / kVecsPerBlock;
  table.conv_direct = conv_direct;
}

}  // namespace dynprune::cpu
