// Quantised convolution for AVX-512 VNNI and VBMI.
//
// The direct convolution of conv_direct.cc with another multiply: a lane is one position of four input channels,
// a weight is one broadcast word of four channels, vpdpbusd adds their four products. Rows of weights are
// compacted to the live inputs, eight outputs at a time, immediately before the tiles that read them.
//
// s8 inputs are made unsigned by flipping the sign bit of every byte, pads and fillers included; the sums then start
// at -128 times the sum of the row.
#pragma once

#include <immintrin.h>

#include "cpu/grouped_rows.h"
#include "cpu/quantized_sums_vnni.h"
#include "cpu/row_compaction.h"

namespace dynprune::cpu {
namespace {

constexpr int64_t kAheadBytes = 128 << 10;  // weights of a layer that do not stay in the fast caches

// Vectors of positions that fit beside `rows` outputs in 32 registers.
constexpr int max_vectors(int rows) { return rows <= 4 ? 5 : rows <= 6 ? 4 : 3; }

// Up to eight outputs, their weights, and where they go.
struct RowBlock : OutputBlock {
  const uint8_t* weight[kTileRows];
  const uint8_t* next[kTileRows];  // rows of the next block, to be fetched meanwhile; null at the first: none
  int32_t start[kTileRows];        // where the sums start
};

struct ConvJob : OutputJob {
  const uint32_t* input;
  int64_t input_stride;
  int32_t words;      // live words per tap
  int64_t row_bytes;  // of a row that is not compacted
};

// Ahead: the rows of the next block are fetched into the first-level cache, a line per step or so. Weights that stream
// from memory are there when their turn comes.
template <int Rows, int Vectors, bool Signed, bool Ahead>
DYNPRUNE_INLINE void multiply(const ConvJob& job, const RowBlock& block, int64_t position,
                              __m512i (&acc)[Rows][Vectors]) {
  const uint8_t* weight[Rows];
  DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) {
    weight[k] = block.weight[k];
    const __m512i start = Signed ? _mm512_set1_epi32(block.start[k]) : _mm512_setzero_si512();
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[k][j] = start;
  }
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const int64_t stride = job.input_stride;
  const int32_t words = job.words;
  const int32_t fetches = Ahead ? (kTileRows + job.shape.taps - 1) / job.shape.taps : 1;  // rows per tap
  const int64_t fetch_step = Ahead ? job.row_bytes * fetches / words : 0;
  int64_t at = 0;
  for (int32_t t = 0; t < job.shape.taps; ++t) {
    const uint32_t* x = job.input + position + job.shape.tap_offset[t];
    const uint16_t* tap_mask = job.shape.tap_mask[t] + position / kBlock;
    __mmask16 inside[Vectors];
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) inside[j] = tap_mask[j];
    int32_t g = 0;
    for (int32_t part = 0; part < fetches; ++part) {
      const int32_t end = Ahead ? words * (part + 1) / fetches : words;
      const uint8_t* fetch = Ahead ? block.next[(t * fetches + part) % kTileRows] : nullptr;
      for (; g < end; ++g, x += stride, at += 4) {
        __m512i in[Vectors];
        DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
          in[j] = _mm512_maskz_loadu_epi32(inside[j], x + 16 * j);
          if (Signed) in[j] = _mm512_xor_si512(in[j], flip);
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
          DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) add_products(acc[k][j], in[j], w);
        }
      }
    }
  }
}

template <int Rows, int Vectors, bool Signed, bool Ahead>
void write_tile(const ConvJob& job, const RowBlock& block, int64_t position) {
  __m512i acc[Rows][Vectors];
  multiply<Rows, Vectors, Signed, Ahead>(job, block, position, acc);
  write_sums<Rows, Vectors>(job, block, position, job.shape.out.store_mask + position / kBlock, acc);
}

template <int Rows, int Vectors, bool Signed, bool Ahead>
void add_tile(const ConvJob& job, const RowBlock& block, int64_t position) {
  __m512i acc[Rows][Vectors];
  multiply<Rows, Vectors, Signed, Ahead>(job, block, position, acc);
  add_sums<Rows, Vectors>(job, block, position, job.shape.out.store_mask + position / kBlock, acc);
}

// A few positions at the end of a map, which would leave most lanes of a vector idle: their inputs are gathered into
// columns in the order of the weights, and every output is a dot product of two runs of bytes.
struct Leftover {
  int32_t positions;  // 0: none
  int64_t first;
  int64_t bytes;     // of a column, in whole vectors; zeros after the last word
  uint8_t* columns;  // [positions][bytes]
};

constexpr int kMaxLeftover = 8;

// Dot products spend about ten instructions per output and position on adding up lanes.
DYNPRUNE_INLINE bool dots_pay(int positions, int64_t words) {
  return positions > 0 && positions <= kMaxLeftover && words * (kBlock - positions) > int64_t{160} * positions;
}

void gather_columns(const ConvJob& job, const Leftover& leftover) {
  const uint32_t flip = job.shape.in_type == QuantizedType::kS8 ? 0x80808080u : 0u;
  for (int32_t l = 0; l < leftover.positions; ++l) {
    const int64_t position = leftover.first + l;
    auto* column = reinterpret_cast<uint32_t*>(leftover.columns + l * leftover.bytes);
    int64_t at = 0;
    for (int32_t t = 0; t < job.shape.taps; ++t) {
      const bool inside = job.shape.tap_mask[t][position / kBlock] >> (position % kBlock) & 1;
      const uint32_t* x = job.input + position + job.shape.tap_offset[t];
      for (int32_t g = 0; g < job.words; ++g, ++at) column[at] = (inside ? x[g * job.input_stride] : 0u) ^ flip;
    }
    for (; at * 4 < leftover.bytes; ++at) column[at] = 0;
  }
}

// Sums of the leftover positions for Rows outputs, as the first lanes of one vector.
template <int Rows>
void leftover_sums(const Leftover& leftover, const RowBlock& block, bool is_signed, __m512i (&acc)[Rows][1]) {
  alignas(64) int32_t sums[Rows][kBlock] = {};
  for (int32_t l = 0; l < leftover.positions; ++l) {
    const uint8_t* column = leftover.columns + l * leftover.bytes;
    __m512i dot[Rows];
    DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) dot[k] = _mm512_setzero_si512();
    for (int64_t i = 0; i < leftover.bytes; i += 64) {
      const __m512i x = _mm512_load_si512(column + i);
      DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) add_products(dot[k], x, _mm512_loadu_si512(block.weight[k] + i));
    }
    DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) sums[k][l] =
        _mm512_reduce_add_epi32(dot[k]) + (is_signed ? block.start[k] : 0);
  }
  DYNPRUNE_UNROLL for (int k = 0; k < Rows; ++k) acc[k][0] = _mm512_load_si512(sums[k]);
}

template <int Rows>
void write_leftover(const ConvJob& job, const RowBlock& block, const Leftover& leftover) {
  __m512i acc[Rows][1];
  leftover_sums<Rows>(leftover, block, job.shape.in_type == QuantizedType::kS8, acc);
  write_sums<Rows, 1>(job, block, leftover.first, job.shape.out.store_mask + leftover.first / kBlock, acc);
}

template <int Rows>
void add_leftover(const ConvJob& job, const RowBlock& block, const Leftover& leftover) {
  __m512i acc[Rows][1];
  leftover_sums<Rows>(leftover, block, job.shape.in_type == QuantizedType::kS8, acc);
  add_sums<Rows, 1>(job, block, leftover.first, job.shape.out.store_mask + leftover.first / kBlock, acc);
}

using LeftoverFn = void (*)(const ConvJob&, const RowBlock&, const Leftover&);
constexpr LeftoverFn kWriteLeftover[2] = {&write_leftover<4>, &write_leftover<8>};
constexpr LeftoverFn kAddLeftover[kTileRows] = {&add_leftover<1>, &add_leftover<2>, &add_leftover<3>, &add_leftover<4>,
                                                &add_leftover<5>, &add_leftover<6>, &add_leftover<7>, &add_leftover<8>};

using TileFn = void (*)(const ConvJob&, const RowBlock&, int64_t);
#define TILES_3(TILE, R, S, A) &TILE<R, 1, S, A>, &TILE<R, 2, S, A>, &TILE<R, 3, S, A>
#define TILES_4(TILE, R, S) TILES_3(TILE, R, S, false), &TILE<R, 4, S, false>
#define TILES_5(TILE, R, S) TILES_4(TILE, R, S), &TILE<R, 5, S, false>
// [s8 inputs][words of outputs - 1][vectors - 1]
constexpr TileFn kWriteTile[2][2][kMaxVectors] = {
    {{TILES_5(write_tile, 4, false)}, {TILES_3(write_tile, 8, false, false)}},
    {{TILES_5(write_tile, 4, true)}, {TILES_3(write_tile, 8, true, false)}}};
// [s8 inputs][outputs - 1][vectors - 1]
#define ADD_TILES(S)                                                                                            \
  {                                                                                                             \
    {TILES_5(add_tile, 1, S)}, {TILES_5(add_tile, 2, S)}, {TILES_5(add_tile, 3, S)}, {TILES_5(add_tile, 4, S)}, \
        {TILES_4(add_tile, 5, S)}, {TILES_4(add_tile, 6, S)}, {TILES_3(add_tile, 7, S, false)}, {               \
      TILES_3(add_tile, 8, S, false)                                                                            \
    }                                                                                                           \
  }
constexpr TileFn kAddTile[2][kTileRows][kMaxVectors] = {ADD_TILES(false), ADD_TILES(true)};
// Eight outputs of u8 inputs that fetch the next rows. [residual][vectors - 1]
constexpr TileFn kAheadTile[2][kMaxVectors] = {{TILES_3(write_tile, 8, false, true)},
                                               {TILES_3(add_tile, 8, false, true)}};

// How the scratch of one thread is used.
struct Scratch {
  Scratch(const QuantizedConvShape& shape, void* memory) {
    auto* at = static_cast<uint8_t*>(memory);
    slots = reinterpret_cast<__m512i*>(at);
    at += kSlotBytes;
    table = at;
    at += table_bytes(shape);
    columns = at;
    at += kMaxLeftover * row_capacity(shape);
    rows = at;
  }
  static size_t table_bytes(const QuantizedConvShape& shape) {
    const auto groups = static_cast<size_t>(GroupPositions::table_bytes(shape.groups) + 63) / 64 * 64;
    return shape.groups > 1 ? groups : RowCompaction<int8_t>::table_bytes(quantized_row_channels(shape.in_channels));
  }
  static int64_t row_capacity(const QuantizedConvShape& shape) {
    const int64_t row = static_cast<int64_t>(shape.taps) * quantized_row_channels(shape.in_channels);
    return (row + 2 * 64 + 63) / 64 * 64;  // RowCompaction writes past the end
  }
  __m512i* slots;
  uint8_t* table;
  uint8_t* columns;
  uint8_t* rows;
};

size_t quantized_conv_scratch(const QuantizedConvShape& shape) {
  return kSlotBytes + Scratch::table_bytes(shape) +
         static_cast<size_t>((kMaxLeftover + kTileRows) * Scratch::row_capacity(shape));
}

// Computes the sums of a block and stores them; `blocks` of positions, the leftover excluded.
void run_tiles(const ConvJob& job, const RowBlock& block, int32_t blocks) {
  const bool adds = job.shape.residual_scale != 0.0f;
  const bool is_signed = job.shape.in_type == QuantizedType::kS8;
  if (adds) clear_slots(job, block);
  const TileFn* tiles = adds ? kAddTile[is_signed][block.rows - 1] : kWriteTile[is_signed][block.rows / 4 - 1];
  const int32_t most = max_vectors(block.rows);
  const int32_t parts = (blocks + most - 1) / most;
  for (int32_t part = 0; part < parts; ++part) {
    const auto begin = static_cast<int64_t>(blocks) * part / parts;
    const auto end = static_cast<int64_t>(blocks) * (part + 1) / parts;
    if (part == parts - 1 && block.next[0]) tiles = kAheadTile[adds];
    tiles[end - begin - 1](job, block, begin * kBlock);
  }
}

// Every block reads the words of its own groups. Where a block lies in one group, whose inputs are all live and fill
// their words, rows are read as they are.
void grouped_conv(const QuantizedConvShape& shape, const QuantizedWeights& weights, const QuantizedConvCall& call,
                  int32_t first, int32_t last, void* memory) {
  const bool is_signed = shape.in_type == QuantizedType::kS8;
  const int32_t group_inputs = shape.in_channels / shape.groups, group_outputs = shape.out_channels / shape.groups;
  const int32_t row_channels = quantized_row_channels(group_inputs);
  const int64_t row_bytes = static_cast<int64_t>(shape.taps) * row_channels;
  const bool aligned = call.n_in == shape.in_channels && row_channels == group_inputs;
  Scratch scratch(shape, memory);
  const GroupPositions groups(shape.groups, group_inputs, call.in_channel, call.n_in, scratch.table);
  const int64_t capacity = Scratch::row_capacity(shape);
  for (int32_t entry = first; entry < last; entry += kTileRows) {
    const int32_t count = last - entry < kTileRows ? last - entry : kTileRows;
    RowBlock block;
    place_outputs(shape, weights, call, entry, count, block);
    block.next[0] = nullptr;
    const int32_t low = call.out_channel[entry] / group_outputs;
    const int32_t high = call.out_channel[entry + count - 1] / group_outputs;
    const GroupPositions::Window window = groups.window(low, high, kChannelsPerWord);
    for (int32_t k = 0; k < block.rows; ++k) {
      const int32_t channel = call.out_channel[entry + (k < count ? k : count - 1)];
      const int8_t* row = weights.rows + channel * row_bytes;
      if (aligned && low == high) {
        block.weight[k] = reinterpret_cast<const uint8_t*>(row);
        block.start[k] = -128 * weights.row_sum[channel];
      } else if (k < count) {
        uint8_t* out = scratch.rows + k * capacity;
        const int32_t size = shape.taps * window.words * kChannelsPerWord;
        groups.spread(row, row_channels, shape.taps, channel / group_outputs, window, kChannelsPerWord,
                      reinterpret_cast<int8_t*>(out));
        block.weight[k] = out;
        block.start[k] = is_signed ? -128 * sum_of_row(out, size) : 0;
      } else {
        block.weight[k] = block.weight[k - 1];
        block.start[k] = block.start[k - 1];
      }
    }
    const uint32_t* input = call.input.data + window.first * call.input.stride;
    run_tiles({{shape, scratch.slots}, input, call.input.stride, window.words, row_bytes}, block, shape.out.blocks);
  }
}

void quantized_conv(const QuantizedConvShape& shape, const QuantizedWeights& weights, const QuantizedConvCall& call,
                    int32_t first, int32_t last, void* memory) {
  if (first >= last) return;
  if (shape.groups > 1) return grouped_conv(shape, weights, call, first, last, memory);
  const bool adds = shape.residual_scale != 0.0f;
  const bool is_signed = shape.in_type == QuantizedType::kS8;
  const int32_t row_channels = quantized_row_channels(shape.in_channels);
  const int64_t row_bytes = static_cast<int64_t>(shape.taps) * row_channels;
  const bool compact = call.n_in < shape.in_channels;
  Scratch scratch(shape, memory);
  RowCompaction<int8_t> compaction;
  if (compact)
    compaction.plan(row_channels, quantized_row_channels(call.n_in), shape.taps, call.in_channel, call.n_in,
                    scratch.table);
  const ConvJob job{{shape, scratch.slots}, call.input.data, call.input.stride, (call.n_in + 3) / 4, row_bytes};
  const bool ahead = !is_signed && row_bytes * shape.out_channels >= kAheadBytes && job.words >= kTileRows;
  const int64_t capacity = Scratch::row_capacity(shape);
  const int64_t row_words = static_cast<int64_t>(shape.taps) * job.words;
  const int32_t positions = (shape.out.height - 1) * shape.out.pitch + shape.out.width;
  Leftover leftover{positions % kBlock, positions / kBlock * kBlock, (row_words * 4 + 63) / 64 * 64, scratch.columns};
  if (!dots_pay(leftover.positions, row_words)) leftover.positions = 0;
  if (leftover.positions) gather_columns(job, leftover);
  const int32_t blocks = shape.out.blocks - (leftover.positions ? 1 : 0);
  for (int32_t entry = first; entry < last; entry += kTileRows) {
    const int32_t count = last - entry < kTileRows ? last - entry : kTileRows;
    RowBlock block;
    place_outputs(shape, weights, call, entry, count, block);
    block.next[0] = nullptr;
    for (int32_t k = 0; k < block.rows; ++k) {
      const int32_t from = k < count ? k : count - 1;
      const int32_t channel = call.out_channel[entry + from];
      const int8_t* row = weights.rows + channel * row_bytes;
      if (!compact) {
        block.weight[k] = reinterpret_cast<const uint8_t*>(row);
        block.start[k] = -128 * weights.row_sum[channel];
      } else if (k < count) {
        uint8_t* out = scratch.rows + k * capacity;
        compaction.run(row, reinterpret_cast<int8_t*>(out));
        block.weight[k] = out;
        block.start[k] = is_signed ? -128 * sum_of_row(out, compaction.out_size()) : 0;
      } else {
        block.weight[k] = block.weight[from];
        block.start[k] = block.start[from];
      }
    }
    if (ahead && block.rows == kTileRows && entry + kTileRows < last)
      for (int32_t k = 0; k < kTileRows; ++k) {
        const int32_t next = entry + kTileRows + k < last ? entry + kTileRows + k : last - 1;
        block.next[k] = reinterpret_cast<const uint8_t*>(weights.rows) + call.out_channel[next] * row_bytes;
      }
    run_tiles(job, block, blocks);
    if (leftover.positions)
      (adds ? kAddLeftover[block.rows - 1] : kWriteLeftover[block.rows / 4 - 1])(job, block, leftover);
  }
}

}  // namespace
}  // namespace dynprune::cpu
