// Winograd convolution F(4x4, 3x3) of int8 maps in exact integer arithmetic: stride 1, padding 1, AVX-512 VNNI.
//
// Transformed inputs and weights fit 16 bits (quantized_winograd_input.h, quantized_winograd_weights.h), products are
// summed modulo 2^32 by vpdpwssd, and the output side divides exactly (quantized_winograd_output.h). So the sums are
// those of the direct kernel, bit for bit, and which kernel runs is a matter of speed alone. 36 products of 16 bits
// take the place of 144 of 8 bits, at half as many per instruction.
//
// Weights are transformed from the rows that the direct kernel reads, live inputs and outputs only: stored, the
// transformed ones would be eight times their size. Rows of tiles are taken in bands whose V and M stay in the
// second-level cache.
#pragma once

#include "cpu/quantized_winograd_multiply.h"
#include "cpu/quantized_winograd_output.h"
#include "cpu/row_compaction.h"

namespace dynprune::cpu {
namespace {

constexpr int64_t kBandBytes = 704 << 10;        // of V and M (measured: 256 KB 8 to 19 % slower, 1536 KB 2 %)
constexpr int64_t kKeptWeightBytes = 320 << 10;  // of U, kept from band to band

int64_t matrix_bytes(int64_t words_per_element) { return kElements * words_per_element * int64_t{sizeof(int32_t)}; }

// Of V and M of some rows of tiles for `words` words of inputs.
int64_t band_bytes(const TileGrid& grid, int32_t words) {
  return matrix_bytes(matrix_stride(grid, 2 * words) + matrix_stride(grid, kPanelOutputs));
}

// How many of `rows` rows of tiles a band takes.
int32_t rows_of_band(const PlaneShape& map, TileRows rows, int32_t words) {
  const int32_t unit = tile_grid(map, kOutputTile, kLanes).rows_per_vector();
  const int32_t units = ceil_div(rows.last - rows.first, unit);
  int32_t bands = 1;
  while (bands < units &&
         band_bytes(tile_grid(map, kOutputTile, kLanes, {0, ceil_div(units, bands) * unit}), words) > kBandBytes)
    ++bands;
  return ceil_div(units, bands) * unit;
}

int64_t group_weight_bytes(int32_t words) { return matrix_bytes(panels_stride(words)); }

// How the scratch of one thread is used.
struct WinogradScratch {
  WinogradScratch(const QuantizedConvShape& shape, void* memory) {
    auto* at = static_cast<uint8_t*>(memory);
    const auto take = [&](int64_t bytes) {
      uint8_t* taken = at;
      at += bytes;
      return taken;
    };
    slots = reinterpret_cast<__m512i*>(take(kSlotBytes));
    table = take(static_cast<int64_t>(RowCompaction<int8_t>::table_bytes(quantized_row_channels(shape.in_channels))));
    row = reinterpret_cast<int8_t*>(take(row_bytes(shape)));
    u = reinterpret_cast<int32_t*>(take(weight_bytes(shape)));
    band = reinterpret_cast<int32_t*>(at);
  }
  static int64_t row_bytes(const QuantizedConvShape& shape) {
    return (kWeightTaps * quantized_row_channels(shape.in_channels) + 2 * 64 + 63) / 64 * 64;
  }
  static int64_t weight_bytes(const QuantizedConvShape& shape) {
    const int64_t group = group_weight_bytes(quantized_row_channels(shape.in_channels) / kChannelsPerWord);
    return group > kKeptWeightBytes ? group : kKeptWeightBytes;
  }
  static size_t bytes(const QuantizedConvShape& shape) {
    const int32_t channels = quantized_row_channels(shape.in_channels);
    const TileGrid grid = tile_grid(shape.out, kOutputTile, kLanes);
    const TileGrid unit = tile_grid(shape.out, kOutputTile, kLanes, {0, grid.rows_per_vector()});
    const int64_t least = band_bytes(unit, channels / kChannelsPerWord);
    return kSlotBytes + RowCompaction<int8_t>::table_bytes(channels) +
           static_cast<size_t>(row_bytes(shape) + weight_bytes(shape) + (least > kBandBytes ? least : kBandBytes));
  }
  __m512i* slots;
  uint8_t* table;
  int8_t* row;
  int32_t* u;
  int32_t* band;
};

size_t quantized_winograd_scratch(const QuantizedConvShape& shape) { return WinogradScratch::bytes(shape); }

// V of the first `words` words of the input: pairs in the order of the panels of U.
void transform_words(const TileGrid& grid, const QuantizedConvShape& shape, const QuantizedConvCall& call,
                     int32_t words, int32_t* v, int64_t v_matrix) {
  const bool is_signed = shape.in_type == QuantizedType::kS8;
  for (int32_t first = 0; first < words; first += kPanelWords) {
    const int32_t in_panel = words - first < kPanelWords ? words - first : kPanelWords;
    for (int32_t i = 0; i < in_panel; ++i) {
      input_group_plane(grid, shape.out, is_signed, call.input.data + (first + i) * call.input.stride,
                        v + (2 * first + i) * grid.stride, in_panel * grid.stride, v_matrix);
    }
  }
}

// U of entries [first, last), at most a panel of them.
void transform_rows(const QuantizedWeights& weights, const QuantizedConvCall& call, int64_t row_bytes,
                    const RowCompaction<int8_t>* compaction, int32_t words, int32_t first, int32_t last, int8_t* buffer,
                    int32_t* u) {
  for (int32_t i = first; i < last; ++i) {
    const int8_t* row = weights.rows + call.out_channel[i] * row_bytes;
    if (compaction) {
      compaction->run(row, buffer);
      row = buffer;
    }
    weight_row(row, words, u + (i - first) * kPanelWords, panels_stride(words));
  }
}

// Fetches the rows of the next outputs, some lines behind every element (measured in ResNet-18, 14x14 with 256
// channels: the transform of weights 199 to 69 us, with prefetcht1 79).
struct RowPrefetch {
  const QuantizedWeights& weights;
  const QuantizedConvCall& call;
  int64_t row_bytes;
  int32_t first, last;
  // Inline, or GCC 12 drops it: a function that only fetches has no effect to it.
  DYNPRUNE_INLINE void operator()(int32_t element) const {
    for (int32_t i = first; i < last; ++i) {
      const int8_t* row = weights.rows + call.out_channel[i] * row_bytes;
      const int64_t lines = (row_bytes + 63) / 64;
      for (int64_t at = lines * element / kElements; at < lines * (element + 1) / kElements; ++at)
        __builtin_prefetch(row + at * 64, 0, 3);
    }
  }
};

void quantized_winograd(const QuantizedConvShape& shape, const QuantizedWeights& weights, const QuantizedConvCall& call,
                        TileRows rows, int32_t first, int32_t last, void* memory) {
  if (first >= last) return;
  const int32_t row_channels = quantized_row_channels(shape.in_channels);
  const int32_t live_channels = quantized_row_channels(call.n_in), words = live_channels / kChannelsPerWord;
  const int64_t row_bytes = int64_t{kWeightTaps} * row_channels;
  const WinogradScratch scratch(shape, memory);
  const OutputJob job{shape, scratch.slots};
  RowCompaction<int8_t> compaction;
  const bool compact = call.n_in < shape.in_channels;
  if (compact) compaction.plan(row_channels, live_channels, kWeightTaps, call.in_channel, call.n_in, scratch.table);
  const int32_t band_rows = rows_of_band(shape.out, rows, words);
  const int64_t u_matrix = panels_stride(words), u_group = u_matrix * kElements;
  const bool kept = group_weight_bytes(words) * ceil_div(last - first, kPanelOutputs) <= kKeptWeightBytes;
  for (int32_t band = rows.first; band < rows.last; band += band_rows) {
    const TileGrid grid =
        tile_grid(shape.out, kOutputTile, kLanes, {band, band + band_rows < rows.last ? band + band_rows : rows.last});
    const int64_t v_matrix = matrix_stride(grid, 2 * words), m_matrix = matrix_stride(grid, kPanelOutputs);
    int32_t* v = scratch.band;
    int32_t* m = v + v_matrix * kElements;
    transform_words(grid, shape, call, words, v, v_matrix);
    for (int32_t entry = first; entry < last; entry += kPanelOutputs) {
      const int32_t end = entry + kPanelOutputs < last ? entry + kPanelOutputs : last;
      const int32_t next = end + kPanelOutputs < last ? end + kPanelOutputs : last;
      int32_t* u = scratch.u + (kept ? (entry - first) / kPanelOutputs * u_group : 0);
      if (band == rows.first || !kept)
        transform_rows(weights, call, row_bytes, compact ? &compaction : nullptr, words, entry, end, scratch.row, u);
      const DirectSplit& split = position_split(TileUse::kMultiply, kLanes, end - entry, grid.vectors, grid.half());
      multiply_all_pairs({words, grid.stride, grid.stride}, split, end - entry, u, u_matrix, v, v_matrix, m, m_matrix,
                         RowPrefetch{weights, call, row_bytes, end, next});
      for (int32_t k = entry; k < end; k += kChannelsPerWord) {
        const int32_t count = end - k < kChannelsPerWord ? end - k : kChannelsPerWord;
        OutputBlock block;
        place_outputs(shape, weights, call, k, count, block);
        if (shape.residual_scale != 0.0f) clear_slots(job, block);
        output_block(grid, job, block, count, m + (k - entry) * grid.stride, grid.stride, m_matrix);
      }
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
