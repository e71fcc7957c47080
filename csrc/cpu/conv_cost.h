// Estimated cycles of one convolution by each algorithm, as arithmetic on sizes and live counts. The executor picks
// the cheaper one per layer and image; because nothing is measured at run time, neither the choice nor therefore
// the result depends on the moment.
//
// Fitted on Zen 4 (csrc/tests/conv_bench.cc: minimum of many rounds, weights hot and cold) and checked against the
// figures of Zen 5. What counts is the ratio of the algorithms: a core that is twice as wide halves them all.
#pragma once

#include "channel_lanes_tiling.h"
#include "conv_tiling.h"
#include "kernels.h"
#include "winograd_tiles.h"

namespace dynprune::cpu {
namespace {

// Weights beyond this many bytes do not stay in the second-level cache from one image to the next. They come at this
// many bytes per cycle, while the kernels compute; slower where skipped inputs leave gaps that the hardware's
// prefetching does not see.
constexpr double kResidentWeights = 768 << 10;
constexpr double kStreamBytes = 3.0;
constexpr double kFetchedBytes = 4.0;    // where the kernel fetches ahead
constexpr double kAdjoiningBytes = 7.0;  // where all weights of a step adjoin
// Cycles that a layer of one tap per input waits per byte of weights that other layers evicted, although it fetches
// ahead: rows of the direct kernel, blocks with channels in the lanes.
constexpr double kRowWait = 0.12, kBlockWait = 0.10;

// Cycles to bring `bytes` of weights of which there are `all`, when a share `live` of the inputs is used.
constexpr double stream_cycles(double bytes, double all, double live) {
  return all > kResidentWeights ? bytes / kStreamBytes * (2.0 - live) : 0.0;
}

constexpr double power(double base, int exponent) {
  double result = 1.0;
  for (int i = 0; i < exponent; ++i) result *= base;
  return result;
}

// Expected number of blocks of `size` channels that hold one of `live` out of `channels`, were they random.
constexpr double blocks_touched(int32_t channels, int32_t live, int size) {
  return (1.0 - power(1.0 - static_cast<double>(live) / channels, size)) * ceil_div(channels, size);
}

constexpr double weight_bytes(const DirectShape& shape) {
  return static_cast<double>(shape.taps) * sizeof(float) * shape.in_channels * shape.out_channels;
}

// Rows of weights as they are in the model, of which the lines of live inputs are read.
struct RowTraffic {
  double bytes;   // read
  double gaps;    // how much longer that takes than without skipped inputs
  bool resident;  // in the caches from one image to the next
  double cycles(double bytes_per_cycle) const { return resident ? 0.0 : bytes / bytes_per_cycle * gaps; }
};
constexpr RowTraffic row_traffic(const DirectShape& shape, int32_t live_in, int32_t live_out) {
  const double row = static_cast<double>(shape.taps) * sizeof(float);  // of one input in the weights of an output
  const double line = row < 64 ? 64 : row;
  const double lines_of_row = shape.in_channels * row / line;
  const double share = static_cast<double>(live_in) / shape.in_channels;
  // A line holds the weights of many inputs of one tap: few lines are without a live one.
  const double touched = shape.taps == 1 ? lines_of_row * (1.0 - power(1.0 - share, static_cast<int>(line / row)))
                                         : (lines_of_row < live_in ? lines_of_row : live_in);
  const double bytes = live_out * touched * line;
  const double gaps = shape.taps > 1 && share < 0.5 ? 1.0 + 5.0 * (0.5 - share) : 1.0;
  return {bytes, gaps, weight_bytes(shape) <= kResidentWeights};
}

// Of conv_small_map.cc, for shapes that fits_small_map().
inline double small_map_cycles(const KernelTable& table, const DirectShape& shape, int32_t live_in, int32_t live_out) {
  const bool pairs = table.lanes == 16 && shape.out.height == 2 && shape.out.width == 2 && shape.taps == 9;
  const double outputs = ceil_div(live_out, 8) * 8;
  const double per_input = pairs ? 3.0 : 1.1 * shape.taps * kBlock / table.lanes;  // and output
  const double gather = pairs ? 20.0 : 12.0 * shape.taps, per_output = 40.0, start = 300.0;
  const double cycles = start + live_in * (gather + per_input * outputs) + per_output * outputs;
  const double stream = row_traffic(shape, live_in, live_out).cycles(kFetchedBytes);
  return cycles > stream ? cycles : stream;
}

inline double direct_cycles(const KernelTable& table, const DirectShape& shape, int32_t live_in, int32_t live_out) {
  if (live_out <= 0) return 0;
  const PlaneShape& out = shape.out;
  const int64_t end = static_cast<int64_t>(out.height - 1) * out.pitch + out.width;
  const int vectors = static_cast<int>((end + table.lanes - 1) / table.lanes);
  const bool half = table.lanes == 16 && (end - 1) % 16 < 8;
  const DirectTiles tiles = direct_tiles(table.lanes);
  const DirectSplit& split = position_split(TileUse::kDirect, table.lanes, live_out, vectors, half);
  const double per_output = 4.0;  // epilogue and store of a vector
  const double per_tile = 40.0;   // set-up of outputs * vectors / tile size
  const double start = 300.0;
  const double tile_count = static_cast<double>(live_out) * vectors / (8 * tiles.usual_vectors) + 1;
  const double cycles = static_cast<double>(shape.taps) * live_in * split.cycles + per_output * live_out * vectors +
                        per_tile * tile_count + start;
  const RowTraffic rows = row_traffic(shape, live_in, live_out);
  // A tile takes a few vectors of every plane: of more pages than the first-level translation buffer holds.
  const double pages = out.blocks * kBlock * sizeof(float) > 4096 && live_in > 64 ? 2.5 * live_in * tile_count : 0.0;
  const bool waits = shape.taps == 1 && weight_bytes(shape) > kEvictedWeights && rows.resident;
  const double wait = waits ? kRowWait * rows.bytes : 0.0;
  const double stream = rows.cycles(kStreamBytes);
  const double overlap = 0.75;  // of the shorter with the longer
  return (cycles > stream ? cycles + (1.0 - overlap) * stream : stream + (1.0 - overlap) * cycles) + wait + pages;
}

// Cycles of AVX-512, the only ISA that has the kernel.
inline double channel_lanes_cycles(const StridedShape& shape, int32_t live_in, int32_t live_out) {
  if (live_out <= 0) return 0;
  const PixelTiling tiling = pixel_tiling(shape.out);
  const int rows = panel_rows(shape, live_in, tiling.rows);
  const int touched = static_cast<int>(blocks_touched(shape.out_channels, live_out, kChannelBlock) + 0.5);
  const bool compact = moving_pays(touched, live_out, rows * shape.out.width);
  const int blocks = compact ? ceil_div(live_out, kChannelBlock) : touched;
  const int most = compact && tiling.blocks > kMovedBlocks ? kMovedBlocks : tiling.blocks;
  const int groups = ceil_div(blocks, most);
  const double weights = static_cast<double>(blocks) / groups;  // blocks of a group
  const double steps = static_cast<double>(shape.taps) * live_in;
  const double per_pixel = 1.8;  // to broadcast it
  const double per_step = 1.2, per_tile = 130.0;
  const double per_vector = 60.0 + 90.0 * tiling.rows;  // to transpose 16 x 16 sums and store each channel's rows
  const auto tile = [&](double pixels) {
    const double multiply_adds = weights * pixels;
    const double loads = weights + pixels * per_pixel;
    const double slower = multiply_adds > loads ? multiply_adds : loads;
    return steps * ((slower > 5.0 ? slower : 5.0) + per_step) + per_tile + per_vector * weights;
  };
  const double columns = static_cast<double>(shape.out.width) / tiling.parts;
  double all_tiles = shape.out.height / tiling.rows * tile(tiling.rows * columns);
  for (int rest = tiling.rows / 2; rest > 0; rest /= 2) {
    if (shape.out.height & rest) all_tiles += tile(rest * columns);
  }
  const int panels = ceil_div(shape.out.height, rows);
  const double moves = compact ? kMoveCycles * steps * touched * panels : 0.0;
  const double gathers = gathers_pixels(shape) ? 5.0 * live_in * shape.out.height * ceil_div(shape.out.width, 16) : 0.0;
  const double start = 300.0;
  const double cycles = groups * tiling.parts * all_tiles + moves + gathers + start;
  const double block_bytes = static_cast<double>(shape.taps) * kChannelBlock * sizeof(float);
  const double bytes = block_bytes * live_in * touched;
  const double all = block_bytes * shape.in_channels * ceil_div(shape.out_channels, kChannelBlock);
  const double gaps = 1.0 + 2.0 * (1.0 - static_cast<double>(live_in) / shape.in_channels);
  const double stream = all > kResidentWeights ? bytes / kAdjoiningBytes * gaps * panels : 0.0;
  const bool waits = shape.taps == 1 && all > kEvictedWeights && all <= kResidentWeights;
  return (waits ? kBlockWait * bytes : 0.0) + (cycles > stream ? cycles + 0.35 * stream : stream + 0.35 * cycles);
}

// Is a second copy of the weights worth its memory for a layer that the direct kernel can do as well?
inline bool channel_lanes_pay(const KernelTable& table, const StridedShape& shape) {
  const DirectShape direct{shape.in_channels, shape.out_channels, shape.taps, nullptr, shape.out};
  return channel_lanes_cycles(shape, shape.in_channels, shape.out_channels) <
         0.97 * direct_cycles(table, direct, shape.in_channels, shape.out_channels);
}

// Of conv_stem.cc, which works on two vectors of tiles at a time.
inline double stem_cycles(const StemShape& shape, int32_t live_in, int32_t live_out) {
  const double vectors = ceil_div(shape.out.height, 4) * 2.0 * ceil_div(shape.out.width, 128);
  const double input = 1200.0, output = 220.0;
  const double products = 49.0 * (4.5 * live_in + 2.0) * ceil_div(live_out, 8) * 8;
  return vectors * (input * live_in + output * live_out + products);
}

// What the parts of planar Winograd take: the transforms of one vector of tiles or weights, stores included, and the
// products beside what `position_split` expects. F(4x4): least squares over the sweep of conv_bench,
// to 6 % (AVX2: 10 %). F(2x2), which few maps take, by hand.
struct WinogradCycles {
  double input[3];  // by TileGrid::kind()
  double output[3];
  double weights;
  double products;
  double per_call;  // of a register tile
};
constexpr WinogradCycles winograd_parts(int lanes, int32_t m) {
  return lanes == 16 ? m == 4 ? WinogradCycles{{294, 209, 174}, {343, 266, 252}, 165, 1.07, 0}
                              : WinogradCycles{{95, 95, 110}, {90, 90, 130}, 80, 1.07, 5}
         : m == 4    ? WinogradCycles{{144, 102, 102}, {229, 164, 164}, 88, 1.22, 4}
                     : WinogradCycles{{40, 50, 50}, {45, 55, 55}, 110, 0.9, 35};
}

// Of WinogradWeights::kChannelLanes.
inline double winograd_channel_lanes_cycles(const WinogradShape& shape, int32_t live_in, int32_t live_out) {
  const double blocks = blocks_touched(shape.out_channels, live_out, kChannelBlock);
  const double full = ceil_div(live_out, kChannelBlock);
  const double fewest = full > blocks / 4 ? full : blocks / 4;  // out of at most four blocks each
  const double vectors = blocks <= 1.1 * fewest ? blocks : fewest;
  const double per_block = 28.0;  // of stored weights that are moved together
  const double per_pair = (shape.m == 4 ? 222.0 : 100.0) + per_block * blocks / vectors;
  const double per_vector = shape.m == 4 ? 1800.0 : 900.0;
  const double per_group = 400.0, per_input_group = 1300.0, start = 500.0;
  const double cycles = start + per_input_group * ceil_div(live_in, 16) +
                        vectors * (per_pair * live_in + per_group * ceil_div(live_in, 16) + per_vector);
  const double block_bytes = 9.0 * kChannelBlock * sizeof(float);
  const double all = block_bytes * shape.in_channels * ceil_div(shape.out_channels, kChannelBlock);
  const double dead = 1.0 - static_cast<double>(live_in) / shape.in_channels;
  const double stream = all > kResidentWeights ? block_bytes * live_in * blocks / kFetchedBytes : 0.0;
  const double waited = cycles + (0.25 + 0.5 * dead * dead) * stream;  // although others are multiplied meanwhile
  return waited > stream ? waited : stream;
}

// Of the products of all elements of the tiles, tiles in the lanes.
inline double winograd_product_cycles(const KernelTable& table, const WinogradShape& shape, const TileGrid& grid,
                                      int32_t live_in, int32_t live_out) {
  const DirectTiles tiles = multiply_tiles(table.lanes);
  const WinogradCycles parts = winograd_parts(table.lanes, shape.m);
  const double elements = (shape.m + 2) * (shape.m + 2);
  // Live outputs are multiplied in groups; how many tiles they make up.
  const int group = live_out < kChannelBlock ? live_out : kChannelBlock;
  const DirectSplit& split = position_split(TileUse::kMultiply, table.lanes, group, grid.vectors, grid.half());
  const double groups = static_cast<double>(live_out) / group;
  const int widest = split.parts ? ceil_div(split.full_vectors, split.parts) : split.half_tile_vectors + 1;
  const int calls = (split.parts + split.half_tile) * ceil_div(group, max_channels(tiles, widest));
  return elements * groups * (live_in * split.cycles * parts.products + parts.per_call * calls);
}

inline double winograd_cycles(const KernelTable& table, const WinogradShape& shape, WinogradWeights form,
                              int32_t live_in, int32_t live_out) {
  if (live_out <= 0) return 0;
  if (form == WinogradWeights::kChannelLanes) return winograd_channel_lanes_cycles(shape, live_in, live_out);
  const TileGrid grid = tile_grid(shape.out, shape.m, table.lanes);
  const WinogradCycles parts = winograd_parts(table.lanes, shape.m);
  const double elements = (shape.m + 2) * (shape.m + 2);
  const bool on_the_fly = form == WinogradWeights::kOnTheFly;
  const double start = 750.0;
  const double transforms = parts.input[grid.kind()] * live_in + parts.output[grid.kind()] * live_out;
  const double cycles =
      start + transforms * grid.transforms() + winograd_product_cycles(table, shape, grid, live_in, live_out);

  const double share = static_cast<double>(live_in) / shape.in_channels;
  const double blocks = blocks_touched(shape.out_channels, live_out, kChannelBlock);
  const double block_bytes = (on_the_fly ? 9 : elements) * kChannelBlock * sizeof(float);  // of one input
  const double bytes = block_bytes * live_in * blocks;
  const double stream =
      stream_cycles(bytes, block_bytes * shape.in_channels * ceil_div(shape.out_channels, kChannelBlock), share);
  if (!on_the_fly) return cycles > stream ? cycles : stream;
  const double groups = live_out < kChannelBlock ? 1.0 : static_cast<double>(live_out) / kChannelBlock;
  // What is transformed is fetched while the group before is multiplied. The first group's is waited for, and gaps are.
  const double touched = blocks_touched(shape.out_channels, live_out, table.lanes) / 2;  // two stored vectors make one
  const double full = ceil_div(live_out, table.lanes);
  const double with_transform = cycles + parts.weights * live_in * (full > touched ? full : touched) +
                                (1.0 / groups + 0.2 * (1.0 - share)) * stream;
  return with_transform > stream ? with_transform : stream;
}

}  // namespace
}  // namespace dynprune::cpu
