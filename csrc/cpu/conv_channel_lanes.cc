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
  const ChannelLanesShape& shape;
  const ConvCall& call;
  bool plain;
  Clamp clamp;  // of the plain epilogue
};

// Weights of up to kMaxLaneBlocks blocks, and which outputs their lanes are.
struct ChannelGroup {
  int blocks;
  const float* weight[kMaxLaneBlocks];  // row (input * taps + tap) is `step` floats further
  int64_t step;
  const int32_t* column;                             // input of the call -> row of inputs; null: they are in order
  const float* ahead[kMaxLaneBlocks];                // the next group's weights, to be fetched; same rows
  int32_t position[kMaxLaneBlocks * kChannelBlock];  // in the list of live outputs, -1 = none
};

// One register tile.
struct Tile {
  int64_t origin;       // floats of the first pixel's input in a plane
  int64_t next_origin;  // the same of a pixel of the next tile
  const float* ahead;   // weights to fetch
};

DYNPRUNE_INLINE void fetch(const float* p) { __builtin_prefetch(p, 0, 2); }

// sums[block][pixel][16].
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
  const int64_t step = group.step, ahead_step = kChannelBlock;
  const float* weight[Blocks];
  DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) weight[b] = group.weight[b];
  const float* ahead = tile.ahead;
  for (int32_t i = 0; i < n_in; ++i) {
    const float* x = input[i] + tile.origin;
    fetch(input[i] + tile.next_origin);
    const int64_t row = static_cast<int64_t>(column ? column[i] : i) * taps;
    for (int32_t t = 0; t < taps; ++t) {
      const float* pixel = x + tap_offset[t];
      const int64_t at = (row + t) * step;
      fetch(ahead + (row + t) * ahead_step);
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
  DYNPRUNE_UNROLL for (int v = 0; v < kVectors; ++v) {
    DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) {
      store(sums + (v / kVecsPerBlock * kPixels + p) * kChannelBlock + v % kVecsPerBlock * kLanes, acc[v][p]);
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

// Transposes the sums of a tile, finishes and stores them. `sums` has room for kLanes pixels behind every block.
template <bool Plain>
void finish_tile(const Job& job, const ChannelGroup& group, const Place& place, const float* sums) {
  const PlainFinish plain(job.clamp);
  const FullFinish full(job.call.epilogue);
  const PlaneShape& out = job.shape.out;
  const int pixels = place.rows * place.columns;
  const int64_t first = static_cast<int64_t>(place.y) * out.pitch + place.x;
  const uint32_t row_bits = (1u << place.columns) - 1;
  for (int v = 0; v < group.blocks * kVecsPerBlock; ++v) {
    const float* block = sums + v / kVecsPerBlock * pixels * kChannelBlock + v % kVecsPerBlock * kLanes;
    Vec rows[kLanes];
    transpose_lanes(block, kChannelBlock, rows);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int32_t at = group.position[v * kLanes + lane];
      if (at < 0) continue;
      const ChannelEpilogue c = channel_epilogue(job.call.epilogue, job.call.out_channel[at], at);
      for (int r = 0; r < place.rows; ++r) {
        // Lane 0 of the vector belongs to pixel 0 of the tile, in whatever row.
        const int64_t position = first + static_cast<int64_t>(r) * (out.pitch - place.columns);
        const uint32_t bits = row_bits << (r * place.columns);
        const Vec value =
            Plain ? plain(rows[lane], broadcast(c.bias))
                  : full(rows[lane], c, c.residual ? load_lanes(c.residual + position, lane_mask(bits)) : zero());
        store_lanes(job.call.output[at] + position, bits, value);
      }
    }
  }
}

// Rows [y0, y1) of a group of channels.
void group_rows(const Job& job, const ChannelGroup& group, const PixelTiling& tiling, int32_t y0, int32_t y1) {
  const ChannelLanesShape& shape = job.shape;
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
      const Tile tile{origin, next, group.ahead[tile_number < group.blocks ? tile_number : 0]};
      ++tile_number;
      const int64_t first = static_cast<int64_t>(y) * shape.out.pitch + x;
      for (int lane = 0; lane < group.blocks * kChannelBlock; ++lane) {
        if (group.position[lane] >= 0) prefetch_for_write(job.call.output[group.position[lane]] + first);
      }
      tile_function(group.blocks, rows, columns, shape.stride_w)(job, group, tile, sums);
      (job.plain ? finish_tile<true> : finish_tile<false>)(job, group, place, sums);
    }
  }
}

int64_t block_floats(const ChannelLanesShape& shape) {
  return static_cast<int64_t>(shape.in_channels) * shape.taps * kChannelBlock;
}

int32_t block_of(const ConvCall& call, int32_t position) { return call.out_channel[position] / kChannelBlock; }

// Where stored blocks serve as they are: up to `most` blocks from live output `first` on; returns the next output.
int32_t stored_group(const ChannelLanesShape& shape, const float* packed, const ConvCall& call, int32_t first, int most,
                     ChannelGroup& group) {
  group.blocks = 0;
  group.step = kChannelBlock;
  group.column = call.in_channel;
  for (int32_t& position : group.position) position = -1;
  int32_t end = first;
  while (end < call.n_out) {
    const int32_t block = block_of(call, end);
    if (group.blocks == most) break;
    group.weight[group.blocks] = packed + block * block_floats(shape);
    for (; end < call.n_out && block_of(call, end) == block; ++end) {
      group.position[group.blocks * kChannelBlock + call.out_channel[end] % kChannelBlock] = end;
    }
    ++group.blocks;
  }
  return end;
}

// Moves the weights of `most` blocks' worth of live outputs together; returns the next output.
int32_t compact_group(const ChannelLanesShape& shape, const float* packed, const ConvCall& call, int32_t first,
                      int most, float* scratch, ChannelGroup& group) {
  const int32_t end = call.n_out - first < most * kChannelBlock ? call.n_out : first + most * kChannelBlock;
  group.blocks = ceil_div(end - first, kChannelBlock);
  group.step = static_cast<int64_t>(group.blocks) * kChannelBlock;
  group.column = nullptr;
  for (int i = 0; i < kMaxLaneBlocks * kChannelBlock; ++i) {
    group.position[i] = i < end - first ? first + i : -1;
  }
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
  float* row = scratch;
  for (int32_t i = 0; i < call.n_in; ++i) {
    const int64_t at = static_cast<int64_t>(call.in_channel[i]) * shape.taps * kChannelBlock;
    for (int32_t t = 0; t < shape.taps; ++t, row += group.step) {
      // Whole vectors: what is written beyond the live lanes is overwritten by the next vector or row.
      float* to = row;
      for (int s = 0; s < sources; to += source[s++].count) {
        store(to, choose_lanes(load(source[s].stored + at + t * kChannelBlock), source[s].choice));
      }
    }
  }
  return end;
}

int32_t blocks_with_live(const ConvCall& call) {
  int32_t blocks = 0;
  for (int32_t i = 0; i < call.n_out; ++i) blocks += i == 0 || block_of(call, i) != block_of(call, i - 1);
  return blocks;
}

ChannelLanesSizes channel_lanes_sizes(const ChannelLanesShape& shape) {
  const int64_t block = block_floats(shape);
  return {static_cast<size_t>(ceil_div(shape.out_channels, kChannelBlock) * block),
          static_cast<size_t>(kCompactBlocks * block + 2 * kChannelBlock)};
}

void channel_lanes_pack(const ChannelLanesShape& shape, const float* weights, float* packed) {
  const int64_t row = static_cast<int64_t>(shape.in_channels) * shape.taps;
  for (int32_t first = 0; first < shape.out_channels; first += kChannelBlock) {
    const int32_t channels = shape.out_channels - first < kChannelBlock ? shape.out_channels - first : kChannelBlock;
    for (int64_t at = 0; at < row; ++at, packed += kChannelBlock) {
      for (int32_t i = 0; i < kChannelBlock; ++i) packed[i] = i < channels ? weights[(first + i) * row + at] : 0.0f;
    }
  }
}

void conv_channel_lanes(const ChannelLanesShape& shape, const float* packed, const ConvCall& call, int32_t first_row,
                        int32_t last_row, float* thread_scratch) {
  if (call.n_out == 0) return;
  const Job job{shape, call, is_plain(call.epilogue), merged_clamp(call.epilogue)};
  const PixelTiling tiling = pixel_tiling(shape.out, kLanes, shape.stride_w);
  const int32_t panel = panel_rows(shape, call.n_in, tiling.rows);
  const bool compact = compaction_pays(blocks_with_live(call), call.n_out, panel * shape.out.width);
  const int most = compact && tiling.blocks > kCompactBlocks ? kCompactBlocks : tiling.blocks;
  for (int32_t y = first_row; y < last_row; y += panel) {
    const int32_t end = last_row - y < panel ? last_row : y + panel;
    ChannelGroup group, next;
    for (int32_t k = 0; k < call.n_out;) {
      if (compact) {
        k = compact_group(shape, packed, call, k, most, thread_scratch, group);
        for (int b = 0; b < group.blocks; ++b) group.ahead[b] = thread_scratch;
      } else {
        k = stored_group(shape, packed, call, k, most, group);
        stored_group(shape, packed, call, k < call.n_out ? k : 0, most, next);
        for (int b = 0; b < group.blocks; ++b) group.ahead[b] = next.weight[b < next.blocks ? b : 0];
      }
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
