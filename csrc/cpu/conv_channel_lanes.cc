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

#if defined(__AVX512F__)

#include "channel_lanes_groups.h"
#include "lane_transpose.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

struct Job {
  const StridedShape& shape;
  const ConvCall& call;
  PixelTiling tiling;
  bool plain;
  Clamp inner;  // of a plain epilogue both clamps in one
};

// Where the pixels of a panel of output rows are.
struct Panel {
  int32_t first, last;        // output rows
  const float* const* input;  // [n_in] planes
  int64_t origin;             // of output (first, 0) in them
  const int32_t* tap_offset;
  int64_t row_pitch;  // floats from one output row to the next
  int32_t step;       // from one pixel to the next: 1 or 2
};

// One register tile, for the inputs of a chunk.
struct Tile {
  int64_t origin;       // floats of the first pixel's input in a plane
  int64_t next_origin;  // the same of a pixel of the next tile
  int32_t first, last;  // live inputs
  // With every live input i the weights of input i + distance are fetched: of the block at `ahead`, or where that is
  // null, because the tile is the only one to use them, of its own.
  const float* ahead;
  int32_t distance;
};

// Adds the chunk to sums[block][pixel][16]; after the last one also bias, inner clamp, gate and shift.
template <int Blocks, int Rows, int Columns, int Step>
void accumulate_tile(const Job& job, const Panel& panel, const ChannelGroup& group, const Tile& tile, float* sums) {
  constexpr int kPixels = Rows * Columns;
  const auto sum_of = [&](int b, int p)
                          __attribute__((always_inline)) { return sums + (b * kPixels + p) * kChannelBlock; };
  Vec acc[Blocks][kPixels];
  DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
    DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) acc[b][p] = zero();
  }
  if (tile.first > 0) {
    DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
      DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) acc[b][p] = load(sum_of(b, p));
    }
  }
  const float* const* input = panel.input;
  const int32_t* tap_offset = panel.tap_offset;
  const int32_t taps = job.shape.taps, n_in = job.call.n_in;
  const int64_t row_pitch = panel.row_pitch;
  const int32_t* in_channel = job.call.in_channel;
  const int64_t step = group.step;
  const float* weight[Blocks];
  DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) weight[b] = group.weight[b];
  const float* ahead = tile.ahead;
  for (int32_t i = tile.first; i < tile.last; ++i) {
    const float* x = input[i] + tile.origin;
    fetch(input[i] + tile.next_origin);
    const int64_t row = static_cast<int64_t>(group.moved ? i - tile.first : in_channel[i]) * taps;
    const int32_t coming = i + tile.distance < n_in ? i + tile.distance : n_in - 1;
    const int64_t later = static_cast<int64_t>(in_channel[coming]) * taps * kChannelBlock;
    for (int32_t t = 0; t < taps; ++t) {
      const float* pixel = x + tap_offset[t];
      const int64_t at = (row + t) * step;
      if (ahead) {
        fetch(ahead + later + t * kChannelBlock);
      } else {
        DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) fetch(weight[b] + later + t * kChannelBlock);
      }
      Vec w[Blocks];
      DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
        w[b] = load(weight[b] + at);
        pin(w[b]);
      }
      DYNPRUNE_UNROLL for (int r = 0; r < Rows; ++r) {
        DYNPRUNE_UNROLL for (int c = 0; c < Columns; ++c) {
          Vec in = broadcast(pixel[c * Step]);
          pin(in);
          DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
            acc[b][r * Columns + c] = fma(w[b], in, acc[b][r * Columns + c]);
          }
        }
        pixel += row_pitch;
      }
    }
  }
  if (tile.last < n_in) {
    DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
      DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) store(sum_of(b, p), acc[b][p]);
    }
    return;
  }
  // All steps up to the shift, lane by lane; what needs planes is left to finish_tile.
  const Vec lo = broadcast(job.inner.lo), hi = broadcast(job.inner.hi);
  DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) {
    const Vec bias = load(group.bias + b * kLanes);
    if (job.plain) {
      DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) store(sum_of(b, p), limit(add(acc[b][p], bias), lo, hi));
    } else {
      const Vec gate = load(group.gate + b * kLanes), shift = load(group.shift + b * kLanes);
      DYNPRUNE_UNROLL for (int p = 0; p < kPixels; ++p) {
        store(sum_of(b, p), add(mul(limit(add(acc[b][p], bias), lo, hi), gate), shift));
      }
    }
  }
}

using TileFn = void (*)(const Job&, const Panel&, const ChannelGroup&, const Tile&, float*);

template <int Blocks, int Rows, int Columns, int Step>
constexpr TileFn tile_or_null() {
  constexpr int kPixels = Rows * Columns;
  if constexpr (kPixels <= kMaxTilePixels && Blocks <= max_lane_blocks(kPixels)) {
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
  static constexpr TileFn kTile[kMaxTilePixels][kMaxLaneBlocks] = {
      BLOCKS(1), BLOCKS(2), BLOCKS(3),  BLOCKS(4),  BLOCKS(5),  BLOCKS(6),  BLOCKS(7),
      BLOCKS(8), BLOCKS(9), BLOCKS(10), BLOCKS(11), BLOCKS(12), BLOCKS(13), BLOCKS(14)};
#undef BLOCKS
};

// Rows: 1, 2 or 4.
TileFn tile_function(int blocks, int rows, int columns, int step) {
  const auto& tiles = rows == 1   ? (step == 1 ? Tiles<1, 1>::kTile : Tiles<1, 2>::kTile)
                      : rows == 2 ? (step == 1 ? Tiles<2, 1>::kTile : Tiles<2, 2>::kTile)
                                  : (step == 1 ? Tiles<4, 1>::kTile : Tiles<4, 2>::kTile);
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
  for (int b = 0; b < group.blocks; ++b) {
    Vec planes[kLanes];
    transpose_lanes(sums + b * pixels * kChannelBlock, kChannelBlock, planes);
    DYNPRUNE_UNROLL for (int lane = 0; lane < kLanes; ++lane) {
      float* output = group.output[b * kLanes + lane];
      if (!output) continue;
      const float* residual = group.residual[b * kLanes + lane];
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

// Live inputs [first, last) of a group, and what is to be fetched meanwhile: see Tile.
struct Chunk {
  int32_t first, last;
  bool one_tile;  // fetches its own weights
  int ahead_blocks;
  const float* const* ahead;
  int32_t distance;
};

// A chunk of inputs in the rows of a panel, for a group of channels. `sums` has room for those of the panel if there
// are several chunks, of one tile otherwise.
void group_panel(const Job& job, const Panel& panel, const ChannelGroup& group, const Chunk& chunk, float* sums) {
  const StridedShape& shape = job.shape;
  const PixelTiling& tiling = job.tiling;
  const bool last_chunk = chunk.last == job.call.n_in, only_chunk = chunk.first == 0 && last_chunk;
  int tile_number = 0;
  for (int32_t y = panel.first, rows; y < panel.last; y += rows) {
    rows = tiling.rows;
    while (rows > panel.last - y) rows /= 2;
    const int64_t row_origin = panel.origin + (y - panel.first) * panel.row_pitch;
    for (int part = 0; part < tiling.parts; ++part, ++tile_number) {
      const int32_t x = balanced_begin(shape.out.width, tiling.parts, part);
      const int columns = balanced_begin(shape.out.width, tiling.parts, part + 1) - x;
      const int64_t origin = row_origin + x * panel.step;
      const int64_t next =
          part + 1 < tiling.parts ? origin + (2 * columns - 1) * panel.step : row_origin + rows * panel.row_pitch;
      const float* ahead = chunk.ahead[tile_number < chunk.ahead_blocks ? tile_number : 0];
      const Tile tile{origin, next, chunk.first, chunk.last, chunk.one_tile ? nullptr : ahead, chunk.distance};
      if (last_chunk) {
        const int64_t first = static_cast<int64_t>(y) * shape.out.pitch + x;
        for (int lane = 0; lane < group.blocks * kChannelBlock; ++lane) {
          if (group.output[lane]) prefetch_for_write(group.output[lane] + first);
        }
      }
      tile_function(group.blocks, rows, columns, panel.step)(job, panel, group, tile, sums);
      if (last_chunk) {
        const Place place{y, x, rows, columns};
        (job.plain ? finish_tile<true> : finish_tile<false>)(job, group, place, sums);
      }
      if (!only_chunk) sums += static_cast<int64_t>(rows) * columns * group.blocks * kChannelBlock;
    }
  }
}

// Copies the pixels that a panel of a layer of one tap reads: rows of out.width for every input.
void gather_panel(const StridedShape& shape, const ConvCall& call, int32_t first, int32_t last, float* pixels,
                  const float** planes) {
  const int64_t width = shape.out.width;
  for (int32_t i = 0; i < call.n_in; ++i) {
    planes[i] = pixels;
    const float* row = call.input[i] + shape.tap_offset[0];
    row += static_cast<int64_t>(first) * shape.stride_h * shape.in_pitch;
    for (int32_t y = first; y < last; ++y, pixels += width, row += shape.stride_h * shape.in_pitch) {
      for (int64_t x = 0; x < width; x += kLanes) {
        Vec even, odd;
        const float* from = row + x * shape.stride_w;
        if (shape.stride_w == 1) {
          even = load_first(from, width - x);
        } else {
          const int64_t left = 2 * (width - x) - 1;
          deinterleave(load_first(from, left), load_first(from + kLanes, left - kLanes), even, odd);
        }
        store_first(pixels + x, width - x, even);
      }
    }
  }
}

// Parts of the thread's scratch, in floats: moved weights, sums that wait for the next chunk, gathered pixels, and
// pointers to those.
struct Scratch {
  int64_t weights, sums, pixels, planes;
  int64_t size() const { return weights + sums + pixels + planes; }
};

constexpr int64_t kFloatsPerPointer = sizeof(const float*) / 4;

constexpr Scratch scratch_parts(const StridedShape& shape) {
  const int32_t most = most_inputs(shape, 1, true);  // with more blocks fewer inputs, the same bytes
  const int64_t inputs = most < kMovedBlocks * shape.in_channels ? most : kMovedBlocks * shape.in_channels;
  const int64_t moved = (inputs * shape.taps + 2 + 8 * kMovedBlocks * shape.taps) * kChannelBlock;
  const int64_t waiting = chunked_pixels(shape) * kMaxLaneBlocks;
  const int64_t in_tile = kMaxLaneBlocks * kMaxTilePixels;
  const int64_t sums = ((waiting > in_tile ? waiting : in_tile) + kLanes) * kChannelBlock;
  if (!gathers_pixels(shape)) return {moved, sums, 0, 0};
  const int64_t pixels = kPanelBytes / 4 + int64_t{2} * kMaxTileRows * shape.in_channels * shape.out.width;
  return {moved, sums, (pixels + 15) / 16 * 16, kFloatsPerPointer * shape.in_channels};
}

ChannelLanesSizes channel_lanes_sizes(const StridedShape& shape) {
  return {static_cast<size_t>(ceil_div(shape.out_channels, kChannelBlock) * block_floats(shape)),
          static_cast<size_t>(scratch_parts(shape).size())};
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
  const bool plain = is_plain(call.epilogue), gathers = gathers_pixels(shape);
  const PixelTiling tiling = pixel_tiling(shape.out);
  const Job job{shape, call, tiling, plain, plain ? merged_clamp(call.epilogue) : call.epilogue.inner};
  const Scratch parts = scratch_parts(shape);
  float* sums = thread_scratch + parts.weights;
  float* pixels = sums + parts.sums;
  const float** planes = reinterpret_cast<const float**>(pixels + parts.pixels);
  const int32_t rows = panel_rows(shape, call.n_in, tiling.rows);
  const bool moves = moving_pays(blocks_with_live(call), call.n_out, rows * shape.out.width);
  const int most = moves && tiling.blocks > kMovedBlocks ? kMovedBlocks : tiling.blocks;
  const int32_t no_offset = 0;
  const int64_t row_pitch = static_cast<int64_t>(shape.in_pitch) * shape.stride_h;
  for (int32_t y = first_row; y < last_row; y += rows) {
    const int32_t end = last_row - y < rows ? last_row : y + rows;
    if (gathers) gather_panel(shape, call, y, end, pixels, planes);
    const Panel panel = gathers ? Panel{y, end, planes, 0, &no_offset, shape.out.width, 1}
                                : Panel{y, end, call.input, y * row_pitch, shape.tap_offset, row_pitch, shape.stride_w};
    const bool one_tile = tiling.parts == 1 && end - y <= tiling.rows && !moves;
    ChannelGroup group;
    for (int32_t k = 0, next; k < call.n_out; k = next) {
      next = moves ? moved_group(shape, packed, call, k, most, thread_scratch, group)
                   : stored_group(shape, packed, call, k, most, group);
      const float* coming[kMaxLaneBlocks];
      const int coming_blocks = stored_blocks(shape, packed, call, next < call.n_out ? next : 0, coming);
      const int32_t size = input_chunk(shape, call.n_in, group.blocks, moves, one_tile);
      int32_t i = 0;
      do {  // also for no inputs at all
        const int32_t i_end = call.n_in - i < size ? call.n_in : i + size;
        if (moves) move_weights(shape, packed, call, k, next, i, i_end, thread_scratch);
        const bool last = i_end == call.n_in;
        const Chunk chunk{i,
                          i_end,
                          one_tile,
                          last ? coming_blocks : group.stored_blocks,
                          last ? coming : group.stored,
                          one_tile ? fetch_distance(shape.taps)
                          : last   ? -i
                                   : size};
        group_panel(job, panel, group, chunk, sums);
        i = i_end;
      } while (i < call.n_in);
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

// 16 registers hold 6 pixels x 16 channels: too little work per input to pay for its addresses (measured with AVX2 on
// 1x1 layers: a third to a half of the direct kernel's rate).
void DYNPRUNE_ISA_NAME(fill_conv_channel_lanes)(KernelTable& table) { table.has_channel_lanes = false; }

}  // namespace dynprune::cpu

#endif
