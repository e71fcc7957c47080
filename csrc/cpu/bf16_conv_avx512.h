// bf16 convolution for AVX512_BF16.
//
// The direct convolution of conv_direct.cc with another multiply: a lane is one position of two input channels, a
// weight is one broadcast word of two channels, vdpbf16ps adds their two products. Rows of weights are compacted to
// the live inputs, eight outputs at a time, immediately before the tiles that read them.
#pragma once

#include <immintrin.h>

#include "cpu/bf16_vector.h"
#include "cpu/conv_epilogue.h"
#include "cpu/grouped_rows.h"
#include "cpu/row_compaction.h"

namespace dynprune::cpu {
namespace {

constexpr int kTileRows = 8;
constexpr int kMaxVectors = 5;
constexpr int64_t kAheadBytes = 128 << 10;  // weights of a layer that do not stay in the fast caches

// Vectors of positions that fit beside `rows` outputs in 32 registers.
constexpr int max_vectors(int rows) { return rows <= 4 ? 5 : rows <= 6 ? 4 : 3; }

// Up to eight outputs and where they go.
struct RowBlock {
  int32_t rows;  // outputs; a tile may compute one row more than a packed map has
  const uint16_t* weight[kTileRows];
  const uint16_t* next[kTileRows];  // rows of the next block, to be fetched meanwhile; null at the first: none
  int32_t channel[kTileRows];       // position in the output map
  bool whole_words;                 // rows 2i and 2i + 1 are the halves of one word
  Bf16Channel terms[kTileRows];
};

struct ConvJob {
  const Bf16ConvShape& shape;
  GroupPlanes input, output;
  int32_t words;     // live words per tap
  int64_t row_size;  // of a row that is not compacted, in elements
  bool plain;        // bias, residual and one clamp are all there is
  Clamp clamp;       // the merged clamp of a plain epilogue
  __m512* sums;      // [kTileRows][kMaxVectors]
};

// Ahead: the rows of the next block are fetched into the first-level cache, a line per step or so. Weights that stream
// from memory are there when their turn comes.
template <int Rows, int Vectors, bool Ahead>
DYNPRUNE_INLINE void multiply(const ConvJob& job, const RowBlock& block, int64_t position,
                              __m512 (&acc)[Rows][Vectors]) {
  const uint16_t* weight[Rows];
  DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) {
    weight[k] = block.weight[k];
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[k][j] = _mm512_setzero_ps();
  }
  const int64_t stride = job.input.stride;
  const int32_t words = job.words;
  const int32_t fetches = Ahead ? (kTileRows + job.shape.taps - 1) / job.shape.taps : 1;  // rows per tap
  const int64_t fetch_step = Ahead ? job.row_size * fetches / words : 0;
  int64_t at = 0;
  for (int32_t t = 0; t < job.shape.taps; ++t) {
    const uint32_t* x = job.input.data + position + job.shape.tap_offset[t];
    const uint16_t* tap_mask = job.shape.tap_mask[t] + position / kBlock;
    __mmask16 inside[Vectors];
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) inside[j] = tap_mask[j];
    int32_t g = 0;
    for (int32_t part = 0; part < fetches; ++part) {
      const int32_t end = Ahead ? words * (part + 1) / fetches : words;
      const uint16_t* fetch = Ahead ? block.next[(t * fetches + part) % kTileRows] : nullptr;
      for (; g < end; ++g, x += stride, at += kBf16PerWord) {
        __m512i in[Vectors];
        DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
          in[j] = _mm512_maskz_loadu_epi32(inside[j], x + 16 * j);
          asm volatile("" : "+v"(in[j]));  // one load, not one per use
        }
        if (Ahead) {
          _mm_prefetch(reinterpret_cast<const char*>(fetch), _MM_HINT_T0);
          fetch += fetch_step;
        }
        DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) {
          int32_t word;
          __builtin_memcpy(&word, weight[k] + at, sizeof word);
          const __m512i w = _mm512_set1_epi32(word);
          DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) add_pair_products(acc[k][j], in[j], w);
        }
      }
    }
  }
}

DYNPRUNE_INLINE __m512 finish_row(const ConvJob& job, const Bf16Channel& terms, bool plain, __m512 sum) {
  if (plain) return clamp_floats(_mm512_add_ps(sum, _mm512_set1_ps(terms.bias)), job.clamp);
  return finish_floats(sum, terms, job.shape.inner, job.shape.outer, _mm512_setzero_ps());
}

DYNPRUNE_INLINE __m512 finish_row(const ConvJob& job, const Bf16Channel& terms, bool plain, __m512 sum,
                                  __m512 residual) {
  if (plain) return clamp_floats(_mm512_add_ps(_mm512_add_ps(sum, _mm512_set1_ps(terms.bias)), residual), job.clamp);
  return finish_floats(sum, terms, job.shape.inner, job.shape.outer, residual);
}

// Finishes whole words without leaving the registers.
template <int Rows, int Vectors>
DYNPRUNE_INLINE void store_words(const ConvJob& job, const RowBlock& block, int64_t position, bool plain, bool adds,
                                 const __m512 (&acc)[Rows][Vectors]) {
  const uint16_t* store_mask = job.shape.out.store_mask + position / kBlock;
  DYNPRUNE_UNROLL for (int k = 0; k < Rows; k += kBf16PerWord) {
    uint32_t* y = job.output.data + block.channel[k] / kBf16PerWord * job.output.stride + position;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      __m512 low, high;
      if (adds) {
        const __m512i before = _mm512_loadu_si512(y + 16 * j);
        low = finish_row(job, block.terms[k], plain, acc[k][j], low_floats(before));
        high = finish_row(job, block.terms[k + 1], plain, acc[k + 1][j], high_floats(before));
      } else {
        low = finish_row(job, block.terms[k], plain, acc[k][j]);
        high = finish_row(job, block.terms[k + 1], plain, acc[k + 1][j]);
      }
      _mm512_mask_storeu_epi32(y + 16 * j, store_mask[j], round_pairs(low, high));
    }
  }
}

// job.sums as words of a map in list order; the last row may lack a partner.
template <int Vectors>
void write_sums(const ConvJob& job, const RowBlock& block, int64_t position) {
  const uint16_t* store_mask = job.shape.out.store_mask + position / kBlock;
  const __m512 zero = _mm512_setzero_ps();
  for (int32_t k = 0; k < block.rows; k += kBf16PerWord) {
    uint32_t* y = job.output.data + block.channel[k] / kBf16PerWord * job.output.stride + position;
    const __m512* sums = job.sums + k * kMaxVectors;
    const bool both = k + 1 < block.rows;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      const __m512 low = finish_row(job, block.terms[k], job.plain, sums[j]);
      const __m512 high = both ? finish_row(job, block.terms[k + 1], job.plain, sums[kMaxVectors + j]) : zero;
      _mm512_mask_storeu_epi32(y + 16 * j, store_mask[j], round_pairs(low, high));
    }
  }
}

// job.sums into the residual stream: both halves of a word at once where both are computed.
template <int Vectors>
void add_sums(const ConvJob& job, const RowBlock& block, int64_t position) {
  const uint16_t* store_mask = job.shape.out.store_mask + position / kBlock;
  const __m512 zero = _mm512_setzero_ps();
  for (int32_t k = 0; k < block.rows;) {
    const int32_t channel = block.channel[k];
    const bool low = channel % kBf16PerWord == 0;
    const bool both = low && k + 1 < block.rows && block.channel[k + 1] == channel + 1;
    uint32_t* y = job.output.data + channel / kBf16PerWord * job.output.stride + position;
    const __m512* sums = job.sums + k * kMaxVectors;
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
      const __m512i before = _mm512_loadu_si512(y + 16 * j);
      __m512i after;
      if (both) {
        after = round_pairs(finish_row(job, block.terms[k], job.plain, sums[j], low_floats(before)),
                            finish_row(job, block.terms[k + 1], job.plain, sums[kMaxVectors + j], high_floats(before)));
      } else {
        const __m512 v =
            finish_row(job, block.terms[k], job.plain, sums[j], low ? low_floats(before) : high_floats(before));
        after =
            _mm512_mask_mov_epi16(before, low ? 0x55555555u : 0xaaaaaaaau, round_pairs(low ? v : zero, low ? zero : v));
      }
      _mm512_mask_storeu_epi32(y + 16 * j, store_mask[j], after);
    }
    k += both ? 2 : 1;
  }
}

template <int Vectors>
__attribute__((noinline)) void store_sums(const ConvJob& job, const RowBlock& block, int64_t position) {
  if (job.shape.adds)
    add_sums<Vectors>(job, block, position);
  else
    write_sums<Vectors>(job, block, position);
}

template <int Rows, int Vectors, bool Ahead>
void compute_tile(const ConvJob& job, const RowBlock& block, int64_t position) {
  __m512 acc[Rows][Vectors];
  multiply<Rows, Vectors, Ahead>(job, block, position, acc);
  if constexpr (Rows % kBf16PerWord == 0) {
    if (block.whole_words) {
      if (job.shape.adds && job.plain) return store_words<Rows, Vectors>(job, block, position, true, true, acc);
      if (job.shape.adds) return store_words<Rows, Vectors>(job, block, position, false, true, acc);
      if (job.plain) return store_words<Rows, Vectors>(job, block, position, true, false, acc);
      return store_words<Rows, Vectors>(job, block, position, false, false, acc);
    }
  }
  DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) {
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) job.sums[k * kMaxVectors + j] = acc[k][j];
  }
  store_sums<Vectors>(job, block, position);
}

// Leftover positions: their inputs are gathered into columns in the order of the weights, and every sum is a dot
// product of two runs of words.
struct Leftover {
  int32_t positions;  // 0: none
  int64_t first;
  int32_t chunks;     // of 16 words per tap; zeros after the last word
  uint32_t* columns;  // [positions][taps][chunks][16]
};

void gather_columns(const ConvJob& job, const Leftover& leftover) {
  uint32_t* column = leftover.columns;
  for (int64_t position = leftover.first; position < leftover.first + leftover.positions; ++position)
    for (int32_t t = 0; t < job.shape.taps; ++t) {
      const bool inside = job.shape.tap_mask[t][position / kBlock] >> (position % kBlock) & 1;
      const uint32_t* x = job.input.data + position + job.shape.tap_offset[t];
      for (int32_t g = 0; g < leftover.chunks * kBlock; ++g)
        *column++ = inside && g < job.words ? x[g * job.input.stride] : 0u;
    }
}

// The sum of all lanes, added in halves.
DYNPRUNE_INLINE float sum_lanes(__m512 v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Sums of the leftover positions, as the first lanes of one vector per output.
template <int Rows>
void sum_leftover(const ConvJob& job, const RowBlock& block, const Leftover& leftover) {
  const int64_t tap_size = int64_t{job.words} * kBf16PerWord;
  alignas(64) float sums[Rows][kBlock] = {};
  const uint32_t* column = leftover.columns;
  for (int32_t l = 0; l < leftover.positions; ++l) {
    __m512 dot[Rows];
    DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) dot[k] = _mm512_setzero_ps();
    for (int32_t t = 0; t < job.shape.taps; ++t)
      for (int32_t chunk = 0; chunk < leftover.chunks; ++chunk, column += kBlock) {
        const __m512i x = _mm512_load_si512(column);
        const int64_t at = t * tap_size + chunk * kBlock * kBf16PerWord;
        DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k)
            add_pair_products(dot[k], x, _mm512_loadu_si512(block.weight[k] + at));
      }
    DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) sums[k][l] = sum_lanes(dot[k]);
  }
  DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) job.sums[k * kMaxVectors] = _mm512_load_ps(sums[k]);
}

using LeftoverFn = void (*)(const ConvJob&, const RowBlock&, const Leftover&);
constexpr LeftoverFn kSumLeftover[kTileRows] = {&sum_leftover<1>, &sum_leftover<2>, &sum_leftover<3>, &sum_leftover<4>,
                                                &sum_leftover<5>, &sum_leftover<6>, &sum_leftover<7>, &sum_leftover<8>};

using TileFn = void (*)(const ConvJob&, const RowBlock&, int64_t);
#define TILES_3(R, A) &compute_tile<R, 1, A>, &compute_tile<R, 2, A>, &compute_tile<R, 3, A>
#define TILES_4(R) TILES_3(R, false), &compute_tile<R, 4, false>
#define TILES_5(R) TILES_4(R), &compute_tile<R, 5, false>
// [outputs - 1][vectors - 1]
constexpr TileFn kTile[kTileRows][kMaxVectors] = {{TILES_5(1)}, {TILES_5(2)}, {TILES_5(3)},        {TILES_5(4)},
                                                  {TILES_4(5)}, {TILES_4(6)}, {TILES_3(7, false)}, {TILES_3(8, false)}};
// Eight outputs that fetch the next rows. [vectors - 1]
constexpr TileFn kAheadTile[kMaxVectors] = {TILES_3(8, true)};
#undef TILES_3
#undef TILES_4
#undef TILES_5

// How the scratch of one thread is used.
struct Scratch {
  Scratch(const Bf16ConvShape& shape, void* memory) {
    auto* at = static_cast<uint8_t*>(memory);
    sums = reinterpret_cast<__m512*>(at);
    at += sizeof(__m512) * kTileRows * kMaxVectors;
    table = at;
    at += table_bytes(shape);
    columns = reinterpret_cast<uint32_t*>(at);
    at += sizeof(uint32_t) * static_cast<size_t>(column_words(shape));
    rows = reinterpret_cast<uint16_t*>(at);
  }
  static size_t table_bytes(const Bf16ConvShape& shape) {
    const auto groups = static_cast<size_t>(GroupPositions::table_bytes(shape.groups) + 63) / 64 * 64;
    return shape.groups > 1 ? groups : RowCompaction<int16_t>::table_bytes(bf16_row_channels(shape.in_channels));
  }
  // Elements; RowCompaction writes past the end.
  static int64_t row_capacity(const Bf16ConvShape& shape) {
    const int64_t row = static_cast<int64_t>(shape.taps) * bf16_row_channels(shape.in_channels);
    return (row + 2 * 32 + 31) / 32 * 32;
  }
  static int64_t column_words(const Bf16ConvShape& shape) {
    return int64_t{bf16_leftover(shape)} * shape.taps * ((shape.in_channels + 31) / 32) * kBlock;
  }
  __m512* sums;
  void* table;
  uint32_t* columns;
  uint16_t* rows;
};

size_t bf16_conv_scratch(const Bf16ConvShape& shape) {
  return sizeof(__m512) * kTileRows * kMaxVectors + Scratch::table_bytes(shape) +
         sizeof(uint32_t) * static_cast<size_t>(Scratch::column_words(shape)) +
         sizeof(uint16_t) * static_cast<size_t>(kTileRows * Scratch::row_capacity(shape));
}

// True where the list is 0, 1, 2, ...: rows are then read as they are.
bool is_every_channel(const Bf16ConvCall& call, int32_t channels) {
  if (call.n_in < channels) return false;
  for (int32_t i = 0; i < channels; ++i)
    if (call.in_channel[i] != i) return false;
  return true;
}

// True where rows 2i and 2i + 1 of a block are the halves of one word.
bool has_whole_words(const RowBlock& block) {
  for (int32_t k = 0; k < block.rows; k += kBf16PerWord)
    if (k + 1 == block.rows || block.channel[k] % kBf16PerWord || block.channel[k + 1] != block.channel[k] + 1)
      return false;
  return true;
}

// Computes the sums of a block and stores them; `blocks` of positions, the leftover excluded.
void run_tiles(const ConvJob& job, const RowBlock& block, int32_t blocks) {
  const int32_t most = max_vectors(block.rows);
  const int32_t parts = (blocks + most - 1) / most;
  for (int32_t part = 0; part < parts; ++part) {
    const auto begin = static_cast<int64_t>(blocks) * part / parts;
    const auto end = static_cast<int64_t>(blocks) * (part + 1) / parts;
    const bool ahead = part == parts - 1 && block.next[0];
    (ahead ? kAheadTile : kTile[block.rows - 1])[end - begin - 1](job, block, begin * kBlock);
  }
}

// Every block reads the words of its own groups. Where a block lies in one group, whose inputs are all live and fill
// their words, rows are read as they are.
void grouped_conv(const Bf16ConvShape& shape, const Bf16Weights& weights, const Bf16ConvCall& call, ConvJob job,
                  int32_t first, int32_t last, Scratch& scratch) {
  const int32_t group_inputs = shape.in_channels / shape.groups, group_outputs = shape.out_channels / shape.groups;
  const int32_t row_channels = bf16_row_channels(group_inputs);
  const int64_t row_size = static_cast<int64_t>(shape.taps) * row_channels;
  const bool aligned = is_every_channel(call, shape.in_channels) && row_channels == group_inputs;
  const GroupPositions groups(shape.groups, group_inputs, call.in_channel, call.n_in, scratch.table);
  const int64_t capacity = Scratch::row_capacity(shape);
  for (int32_t entry = first; entry < last; entry += kTileRows) {
    RowBlock block;
    block.rows = last - entry < kTileRows ? last - entry : kTileRows;
    int32_t low = shape.groups, high = 0;
    for (int32_t k = 0; k < block.rows; ++k) {
      const int32_t g = call.out_channel[entry + k] / group_outputs;
      if (g < low) low = g;
      if (g > high) high = g;
    }
    const GroupPositions::Window window = groups.window(low, high, kBf16PerWord);
    for (int32_t k = 0; k < block.rows; ++k) {
      const int32_t channel = call.out_channel[entry + k];
      const uint16_t* row = weights.rows + channel * row_size;
      block.channel[k] = shape.adds ? channel : entry + k;
      block.terms[k] = bf16_channel(weights, channel);
      block.weight[k] = row;
      if (aligned && low == high) continue;
      uint16_t* out = scratch.rows + k * capacity;
      groups.spread(row, row_channels, shape.taps, channel / group_outputs, window, kBf16PerWord, out);
      block.weight[k] = out;
    }
    job.input.data = call.input.data + window.first * call.input.stride;
    job.words = window.words;
    block.next[0] = nullptr;
    block.whole_words = has_whole_words(block);
    run_tiles(job, block, shape.out.blocks);
  }
}

void bf16_conv(const Bf16ConvShape& shape, const Bf16Weights& weights, const Bf16ConvCall& call, int32_t first,
               int32_t last, void* memory) {
  if (first >= last) return;
  const int32_t row_channels = bf16_row_channels(shape.in_channels);
  const int64_t row_size = static_cast<int64_t>(shape.taps) * row_channels;
  const bool compact = !is_every_channel(call, shape.in_channels);
  Scratch scratch(shape, memory);
  ConvJob job{shape,
              call.input,
              call.output,
              bf16_row_channels(call.n_in) / kBf16PerWord,
              row_size,
              !weights.gate && !weights.shift && (!shape.adds || is_unbounded(shape.inner)),
              {clamp_float(shape.inner.lo, shape.outer), clamp_float(shape.inner.hi, shape.outer)},
              scratch.sums};
  if (shape.groups > 1) return grouped_conv(shape, weights, call, job, first, last, scratch);
  RowCompaction<int16_t> compaction;
  if (compact)
    compaction.plan(row_channels, bf16_row_channels(call.n_in), shape.taps, call.in_channel, call.n_in, scratch.table);
  const int64_t capacity = Scratch::row_capacity(shape);
  const int32_t blocks = shape.out.blocks - (bf16_leftover(shape) ? 1 : 0);
  const Leftover leftover{bf16_leftover(shape), int64_t{blocks} * kBlock, (job.words + kBlock - 1) / kBlock,
                          scratch.columns};
  if (leftover.positions) gather_columns(job, leftover);
  const bool ahead = row_size * 2 * shape.out_channels >= kAheadBytes && job.words >= kTileRows;
  for (int32_t entry = first; entry < last; entry += kTileRows) {
    RowBlock block;
    block.rows = last - entry < kTileRows ? last - entry : kTileRows;
    for (int32_t k = 0; k < block.rows; ++k) {
      const int32_t channel = call.out_channel[entry + k];
      const uint16_t* row = weights.rows + channel * row_size;
      block.channel[k] = shape.adds ? channel : entry + k;
      block.terms[k] = bf16_channel(weights, channel);
      block.weight[k] = row;
      if (!compact) continue;
      uint16_t* out = scratch.rows + k * capacity;
      compaction.run(reinterpret_cast<const int16_t*>(row), reinterpret_cast<int16_t*>(out));
      block.weight[k] = out;
    }
    block.whole_words = has_whole_words(block);
    block.next[0] = nullptr;
    if (ahead && entry + kTileRows < last)
      for (int32_t k = 0; k < kTileRows; ++k) {
        const int32_t next = entry + kTileRows + k < last ? entry + kTileRows + k : last - 1;
        block.next[k] = weights.rows + call.out_channel[next] * row_size;
      }
    run_tiles(job, block, blocks);
    if (leftover.positions) {
      kSumLeftover[block.rows - 1](job, block, leftover);
      store_sums<1>(job, block, leftover.first);
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
