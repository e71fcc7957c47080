// Convolution with output channels in the lanes.
//
// A register tile holds one or more blocks of 16 output channels times some pixels of a row (of two rows where rows
// are short). Per live input and tap it loads the blocks' weights, which adjoin, and broadcasts each pixel: no lane
// is spent on pad columns and a stride is a step between pixels. In exchange finished sums have to be transposed
// into planes, and live outputs scattered over the blocks have to be moved together: per live input, tap and block
// one permutation, against one multiply-add per pixel.
//
// Every output element is one accumulator that starts at 0 and takes inputs ascending and taps in order, as in the
// direct kernel: its bits depend neither on the tile nor on which zero inputs were listed.
#include "vec.h"

#if defined(__AVX2__) || defined(__AVX512F__)

#include "channel_lanes_tiling.h"
#include "conv_epilogue.h"
#include "lane_transpose.h"
#include "winograd_lanes.h"

namespace dynprune::cpu {
namespace {

struct Job {
  const StridedShape& shape;
  const ConvCall& call;
  bool plain;
  Clamp inner;  // of a plain epilogue both clamps in one
};

// Weights of up to kMaxLaneBlocks blocks, and the outputs that their lanes are.
struct ChannelGroup {
  int blocks;
  const float* weight[kMaxLaneBlocks];  // row (input * taps + tap) is `step` floats further
  int64_t step;
  const int32_t* column;  // input of the call -> row of inputs; null: they are in order
  int ahead_blocks;
  const float* ahead[kMaxLaneBlocks];  // stored weights of the next group, to be fetched
  // Per lane; neutral values where the epilogue lacks the term or the lane has no output.
  alignas(64) float bias[kMaxLaneBlocks * kChannelBlock];
  alignas(64) float gate[kMaxLaneBlocks * kChannelBlock];
  alignas(64) float shift[kMaxLaneBlocks * kChannelBlock];
  float* output[kMaxLaneBlocks * kChannelBlock];  // null = none
  const float* residual[kMaxLaneBlocks * kChannelBlock];
};

// One register tile.
struct Tile {
  int64_t origin;       // floats of the first pixel's input in a plane
  int64_t next_origin;  // the same of a pixel of the next tile
  const float* ahead;   // weights to fetch
};

DYNPRUNE_INLINE void fetch(const float* p) { __builtin_prefetch(p, 0, 2); }

// sums[block][pixel][16], with bias, inner clamp, gate and shift.
template <int Blocks, int Rows, int Columns, int Step>
void accumulate_tile(const Job& job, const ChannelGroup& group, const Tile& tile, float* sums) {
  constexpr int kVectors = Blocks * kVecsPerBlock, kPixels = Rows * Columns;
  Vec acc[kVectors][kPixels];
  DYNPRUNE_UNROLL for (int v = 0; v < kVectors; ++v) {
    DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) acc[v][p] = zero();
  }
  const float* const* input = job.call.input;
  const int32_t* column = group.column;
  const int32_t* tap_offset = job.shape.tap_offset;
  const int32_t taps = job.shape.taps, n_in = job.call.n_in;
  const int64_t row_pitch = static_cast<int64_t>(job.shape.in_pitch) * job.shape.stride_h;
  const int32_t* in_channel = job.call.in_channel;
  const int64_t step = group.step;
  const float* weight[Blocks];
  DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) weight[b] = group.weight[b];
  const float* ahead = tile.ahead;
  for (int32_t i = 0; i < n_in; ++i) {
    const float* x = input[i] + tile.origin;
    fetch(input[i] + tile.next_origin);
    const int64_t row = static_cast<int64_t>(column ? column[i] : i) * taps;
    const float* later = ahead + static_cast<int64_t>(in_channel[i]) * taps * kChannelBlock;
    for (int32_t t = 0; t < taps; ++t) {
      const float* pixel = x + tap_offset[t];
      const int64_t at = (row + t) * step;
      fetch(later + t * kChannelBlock);
      Vec w[kVectors];
      DYNPRUNE_UNROLL for (int v = 0; v < kVectors; ++v) {
        w[v] = load(weight[v / kVecsPerBlock] + at + v % kVecsPerBlock * kLanes);
        pin(w[v]);
      }
      DYNPRUNE_UNROLL for (int r = 0; r < Rows; ++r) {
        DYNPRUNE_UNROLL for (int c = 0; c < Columns; ++c) {
          Vec in = broadcast(pixel[c * Step]);
          pin(in);
          DYNPRUNE_UNROLL for (int v = 0; v < kVectors; ++v) {
            acc[v][r * Columns + c] = fma(w[v], in, acc[v][r * Columns + c]);
          }
        }
        pixel += row_pitch;
      }
    }
  }
  // All steps up to the shift, lane by lane; what needs planes is left to finish_tile.
  const Vec lo = broadcast(job.inner.lo), hi = broadcast(job.inner.hi);
  DYNPRUNE_UNROLL for (int v = 0; v < kVectors; ++v) {
    const Vec bias = load(group.bias + v * kLanes);
    const auto put = [&](int p, Vec value) __attribute__((always_inline)) {
      store(sums + (v / kVecsPerBlock * kPixels + p) * kChannelBlock + v % kVecsPerBlock * kLanes, value);
    };
    if (job.plain) {
      DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) put(p, limit(add(acc[v][p], bias), lo, hi));
    } else {
      const Vec gate = load(group.gate + v * kLanes), shift = load(group.shift + v * kLanes);
      DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) {
        put(p, add(mul(limit(add(acc[v][p], bias), lo, hi), gate), shift));
      }
    }
  }
}

using TileFn = void (*)(const Job&, const ChannelGroup&, const Tile&, float*);

template <int Blocks, int Rows, int Columns, int Step>
constexpr TileFn tile_or_null() {
  constexpr int kPixels = Rows * Columns;
  if constexpr (kPixels <= max_tile_pixels(kLanes) && Blocks <= max_lane_blocks(kLanes, kPixels, Step)) {
    return &accumulate_tile<Blocks, Rows, Columns, Step>;
  } else {
    return nullptr;
  }
}

template <int Rows, int Step>
struct Tiles {
#define BLOCKS(C)                                                                                        \
  {tile_or_null<1, Rows, C, Step>(), tile_or_null<2, Rows, C, Step>(), tile_or_null<3, Rows, C, Step>(), \
   tile_or_null<4, Rows, C, Step>()}
  static constexpr TileFn kTile[kMaxTileColumns][kMaxLaneBlocks] = {
      BLOCKS(1), BLOCKS(2), BLOCKS(3),  BLOCKS(4),  BLOCKS(5),  BLOCKS(6),  BLOCKS(7),
      BLOCKS(8), BLOCKS(9), BLOCKS(10), BLOCKS(11), BLOCKS(12), BLOCKS(13), BLOCKS(14)};
#undef BLOCKS
};

TileFn tile_function(int blocks, int rows, int columns, int step) {
  const auto& tiles = rows == 1 ? (step == 1 ? Tiles<1, 1>::kTile : Tiles<1, 2>::kTile)
                                : (step == 1 ? Tiles<2, 1>::kTile : Tiles<2, 2>::kTile);
  return tiles[columns - 1][blocks - 1];
}

// Pixels of a tile in the planes: `rows` times `columns` of them from (y, x) on.
struct Place {
  int32_t y, x;
  int rows, columns;
};

// Transposes a tile into planes; adds the residual and applies the outer clamp unless the epilogue is plain. `sums` may
// be read up to kLanes pixels behind every block.
template <bool Plain>
void finish_tile(const Job& job, const ChannelGroup& group, const Place& place, const float* sums) {
  const Vec lo = broadcast(job.call.epilogue.outer.lo), hi = broadcast(job.call.epilogue.outer.hi);
  const PlaneShape& out = job.shape.out;
  const int pixels = place.rows * place.columns;
  const int64_t first = static_cast<int64_t>(place.y) * out.pitch + place.x;
  const uint32_t row_bits = (1u << place.columns) - 1;
  for (int v = 0; v < group.blocks * kVecsPerBlock; ++v) {
    Vec planes[kLanes];
    transpose_lanes(sums + v / kVecsPerBlock * pixels * kChannelBlock + v % kVecsPerBlock * kLanes, kChannelBlock,
                    planes);
    DYNPRUNE_UNROLL for (int lane = 0; lane < kLanes; ++lane) {
      float* output = group.output[v * kLanes + lane];
      if (!output) continue;
      const float* residual = group.residual[v * kLanes + lane];
      for (int r = 0; r < place.rows; ++r) {
        // Lane 0 of the vector belongs to pixel 0 of the tile, in whatever row.
        const int64_t position = first + static_cast<int64_t>(r) * (out.pitch - place.columns);
        const uint32_t bits = row_bits << (r * place.columns);
        Vec value = planes[lane];
        if constexpr (!Plain) {
          value = limit(add(value, residual ? load_lanes(residual + position, lane_mask(bits)) : zero()), lo, hi);
        }
        store_lanes(output + position, bits, value);
      }
    }
  }
}

// Rows [y0, y1) of a group of channels.
void group_rows(const Job& job, const ChannelGroup& group, const PixelTiling& tiling, int32_t y0, int32_t y1) {
  const StridedShape& shape = job.shape;
  alignas(64) float sums[(kMaxLaneBlocks * kMaxTileColumns + 16) * kChannelBlock];
  const int64_t row_pitch = static_cast<int64_t>(shape.in_pitch) * shape.stride_h;
  int tile_number = 0;
  for (int32_t y = y0; y < y1; y += tiling.rows) {
    const int rows = y1 - y < tiling.rows ? y1 - y : tiling.rows;
    for (int part = 0; part < tiling.parts; ++part) {
      const int32_t x = balanced_begin(shape.out.width, tiling.parts, part);
      const int columns = balanced_begin(shape.out.width, tiling.parts, part + 1) - x;
      const Place place{y, x, rows, columns};
      const int64_t origin = y * row_pitch + x * shape.stride_w;
      const int64_t next =
          part + 1 < tiling.parts ? origin + (2 * columns - 1) * shape.stride_w : (y + rows) * row_pitch;
      const Tile tile{origin, next, group.ahead[tile_number < group.ahead_blocks ? tile_number : 0]};
      ++tile_number;
      const int64_t first = static_cast<int64_t>(y) * shape.out.pitch + x;
      for (int lane = 0; lane < group.blocks * kChannelBlock; ++lane) {
        if (group.output[lane]) prefetch_for_write(group.output[lane] + first);
      }
      tile_function(group.blocks, rows, columns, shape.stride_w)(job, group, tile, sums);
      (job.plain ? finish_tile<true> : finish_tile<false>)(job, group, place, sums);
    }
  }
}

int64_t block_floats(const StridedShape& shape) {
  return static_cast<int64_t>(shape.in_channels) * shape.taps * kChannelBlock;
}

int32_t block_of(const ConvCall& call, int32_t position) { return call.out_channel[position] / kChannelBlock; }

// No outputs in any lane.
void clear_lanes(ChannelGroup& group) {
  for (int i = 0; i < kMaxLaneBlocks * kChannelBlock; ++i) {
    group.output[i] = nullptr;
    group.bias[i] = group.shift[i] = 0.0f;
    group.gate[i] = 1.0f;
  }
}

// Output `at` of the call's list is in `lane`.
void set_lane(const ConvCall& call, int lane, int32_t at, ChannelGroup& group) {
  const ChannelEpilogue terms = channel_epilogue(call.epilogue, call.out_channel[at], at);
  group.bias[lane] = terms.bias;
  group.gate[lane] = terms.gate;
  group.shift[lane] = terms.shift;
  group.residual[lane] = terms.residual;
  group.output[lane] = call.output[at];
}

// Where stored blocks serve as they are: up to `most` blocks from live output `first` on; returns the next output.
int32_t stored_group(const StridedShape& shape, const float* packed, const ConvCall& call, int32_t first, int most,
                     ChannelGroup& group) {
  group.blocks = 0;
  group.step = kChannelBlock;
  group.column = call.in_channel;
  clear_lanes(group);
  int32_t end = first;
  while (end < call.n_out) {
    const int32_t block = block_of(call, end);
    if (group.blocks == most) break;
    group.weight[group.blocks] = packed + block * block_floats(shape);
    for (; end < call.n_out && block_of(call, end) == block; ++end) {
      set_lane(call, group.blocks * kChannelBlock + call.out_channel[end] % kChannelBlock, end, group);
    }
    ++group.blocks;
  }
  return end;
}

// Moves the weights of `most` blocks' worth of live outputs together; returns the next output.
int32_t compact_group(const StridedShape& shape, const float* packed, const ConvCall& call, int32_t first, int most,
                      float* scratch, ChannelGroup& group) {
  const int32_t end = call.n_out - first < most * kChannelBlock ? call.n_out : first + most * kChannelBlock;
  group.blocks = ceil_div(end - first, kChannelBlock);
  group.step = static_cast<int64_t>(group.blocks) * kChannelBlock;
  group.column = nullptr;
  clear_lanes(group);
  for (int32_t i = first; i < end; ++i) set_lane(call, i - first, i, group);
  for (int b = 0; b < group.blocks; ++b) group.weight[b] = scratch + b * kChannelBlock;
  struct Source {
    LaneChoice choice;
    const float* stored;
    int32_t count;
  } source[kCompactBlocks * kChannelBlock];
  int sources = 0;
  for (int32_t i = first; i < end; ++sources) {
    const int32_t vector = call.out_channel[i] / kLanes;
    int32_t lanes[kLanes] = {}, count = 0;
    for (; i < end && call.out_channel[i] / kLanes == vector; ++i) lanes[count++] = call.out_channel[i] % kLanes;
    source[sources] = {LaneChoice(lanes),
                       packed + vector / kVecsPerBlock * block_floats(shape) + vector % kVecsPerBlock * kLanes, count};
  }
  const int32_t distance = ceil_div(16, shape.taps);  // inputs to fetch ahead
  float* row = scratch;
  for (int32_t i = 0; i < call.n_in; ++i) {
    const int32_t later = call.in_channel[i + distance < call.n_in ? i + distance : call.n_in - 1];
    const int64_t gap = static_cast<int64_t>(later - call.in_channel[i]) * shape.taps * kChannelBlock;
    const int64_t at = static_cast<int64_t>(call.in_channel[i]) * shape.taps * kChannelBlock;
    for (int32_t t = 0; t < shape.taps; ++t, row += group.step) {
      // Whole vectors: what is written beyond the live lanes is overwritten by the next vector or row.
      float* to = row;
      for (int s = 0; s < sources; to += source[s++].count) {
        const float* stored = source[s].stored + at + t * kChannelBlock;
        fetch(stored + gap);
        store(to, choose_lanes(load(stored), source[s].choice));
      }
    }
  }
  return end;
}

// Blocks of the live outputs from `first` on are what the tiles of `group` are to fetch.
void fetch_next(const StridedShape& shape, const float* packed, const ConvCall& call, int32_t first,
                ChannelGroup& group) {
  int32_t block = block_of(call, first < call.n_out ? first : 0);
  const int32_t last = block_of(call, call.n_out - 1);
  group.ahead_blocks = 0;
  do {
    group.ahead[group.ahead_blocks++] = packed + block++ * block_floats(shape);
  } while (block <= last && group.ahead_blocks < kMaxLaneBlocks);
}

int32_t blocks_with_live(const ConvCall& call) {
  int32_t blocks = 0;
  for (int32_t i = 0; i < call.n_out; ++i) blocks += i == 0 || block_of(call, i) != block_of(call, i - 1);
  return blocks;
}

ChannelLanesSizes channel_lanes_sizes(const StridedShape& shape) {
  const int64_t block = block_floats(shape);
  return {static_cast<size_t>(ceil_div(shape.out_channels, kChannelBlock) * block),
          static_cast<size_t>(kCompactBlocks * block + 2 * kChannelBlock)};
}

void channel_lanes_pack(const StridedShape& shape, const float* weights, float* packed) {
  const int64_t row = static_cast<int64_t>(shape.in_channels) * shape.taps;
  for (int32_t first = 0; first < shape.out_channels; first += kChannelBlock) {
    const int32_t channels = shape.out_channels - first < kChannelBlock ? shape.out_channels - first : kChannelBlock;
    for (int64_t at = 0; at < row; ++at, packed += kChannelBlock) {
      for (int32_t i = 0; i < kChannelBlock; ++i) packed[i] = i < channels ? weights[(first + i) * row + at] : 0.0f;
    }
  }
}

void conv_channel_lanes(const StridedShape& shape, const float* packed, const ConvCall& call, int32_t first_row,
                        int32_t last_row, float* thread_scratch) {
  if (call.n_out == 0) return;
  const bool plain = is_plain(call.epilogue);
  const Job job{shape, call, plain, plain ? merged_clamp(call.epilogue) : call.epilogue.inner};
  const PixelTiling tiling = pixel_tiling(shape.out, kLanes, shape.stride_w);
  const int32_t panel = panel_rows(shape, call.n_in, tiling.rows);
  const bool compact = compaction_pays(blocks_with_live(call), call.n_out, panel * shape.out.width);
  const int most = compact && tiling.blocks > kCompactBlocks ? kCompactBlocks : tiling.blocks;
  for (int32_t y = first_row; y < last_row; y += panel) {
    const int32_t end = last_row - y < panel ? last_row : y + panel;
    ChannelGroup group;
    for (int32_t k = 0; k < call.n_out;) {
      if (compact) {
        k = compact_group(shape, packed, call, k, most, thread_scratch, group);
      } else {
        k = stored_group(shape, packed, call, k, most, group);
      }
      fetch_next(shape, packed, call, k, group);
      group_rows(job, group, tiling, y, end);
    }
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_conv_channel_lanes)(KernelTable& table) {
  table.has_channel_lanes = true;
  table.channel_lanes_sizes = channel_lanes_sizes;
  table.channel_lanes_pack = channel_lanes_pack;
  table.conv_channel_lanes = conv_channel_lanes;
}

}  // namespace dynprune::cpu

#else

#include "kernels.h"

namespace dynprune::cpu {

// The portable code has too few registers for tiles of this kind.
void DYNPRUNE_ISA_NAME(fill_conv_channel_lanes)(KernelTable& table) { table.has_channel_lanes = false; }

}  // namespace dynprune::cpu

#endif
