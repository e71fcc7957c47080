// How the direct convolution is cut into register tiles: which tiles exist on an ISA, and which of them a layer
// uses. Pure integer arithmetic on sizes, shared by the kernels and by the cost model (conv_cost.h). Results of
// the convolution never depend on it.
#pragma once

#include <cstdint>

namespace dynprune::cpu {
namespace {

constexpr int kMaxTileChannels = 16;
constexpr int kMaxTileVectors = 7;
constexpr int kMaxHalfVectors = 4;  // full vectors beside a half block

// Register tiles of one ISA. A tile of c channels and v vectors needs c*v accumulators, v inputs, one weight.
struct DirectTiles {
  int max_vectors[kMaxTileChannels];   // by channels - 1; 0 = no such tile
  int max_pairs[kMaxHalfVectors + 1];  // half-block tiles: pairs of channels, by full vectors; 0 = none
  int usual_vectors;                   // of the tile that large layers use
  // Measured on Zen 4 and Zen 5 (per vector of the ISA).
  double fma_per_cycle, load_cycles /* unaligned */, broadcast_cycles, overlap_loss;
};

constexpr DirectTiles direct_tiles(int lanes) {
  return lanes == 16
             ? DirectTiles{{7, 7, 7, 6, 5, 4, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1}, {8, 6, 4, 3, 2}, 3, 1.0, 1.5, 1.0, 0.03}
         : lanes == 8 ? DirectTiles{{7, 5, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1}, {}, 3, 2.0, 0.75, 0.5, 0.25}
                      : DirectTiles{{6, 4, 3, 2, 1, 1, 1, 1}, {}, 2, 1.0, 0.75, 0.5, 0.25};
}

// The most channels of a tile with so many vectors.
constexpr int max_channels(const DirectTiles& tiles, int vectors) {
  int channels = kMaxTileChannels;
  while (channels > 1 && tiles.max_vectors[channels - 1] < vectors) --channels;
  return channels;
}

// Start of part `part` when n things are cut into parts of sizes that differ by at most one.
constexpr int balanced_begin(int n, int parts, int part) {
  return static_cast<int>(static_cast<int64_t>(n) * part / parts);
}

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Cycles per tap and input that one register tile takes: multiply-adds or loads, whichever is slower, and what the
// other adds to it; at least the latency of a multiply-add, since taps of an output depend on each other. The last
// term is for the weights, which every tile of positions reads anew.
constexpr double tile_cycles(const DirectTiles& tiles, double channels, double vectors) {
  const double multiply_adds = channels * vectors / tiles.fma_per_cycle;
  const double loads = vectors * tiles.load_cycles + channels * tiles.broadcast_cycles;
  const double slower = multiply_adds > loads ? multiply_adds : loads;
  const double faster = multiply_adds > loads ? loads : multiply_adds;
  const double cycles = slower + tiles.overlap_loss * faster;
  const double latency = 4.0;
  return (cycles > latency ? cycles : latency) + 0.1 * channels;
}

// Cycles per tap and input of all outputs at `vectors` (full) vectors of positions.
constexpr double column_cycles(const DirectTiles& tiles, int channels, int vectors) {
  const int parts = ceil_div(channels, max_channels(tiles, vectors));
  return parts * tile_cycles(tiles, static_cast<double>(channels) / parts, vectors);
}

// The same with a half block after `vectors` full ones.
constexpr double half_column_cycles(const DirectTiles& tiles, int channels, int vectors) {
  const int pairs = ceil_div(channels, 2);
  const int parts = ceil_div(pairs, tiles.max_pairs[vectors]);
  return parts * tile_cycles(tiles, 2.0 * pairs / parts, vectors + 0.5);
}

// Positions cut into tiles: `parts` balanced tiles of full vectors, then perhaps one with the half block.
struct DirectSplit {
  int full_vectors, parts;
  bool half_tile;
  int half_tile_vectors;
  double cycles;  // per tap and input
};

constexpr DirectSplit split_positions(const DirectTiles& tiles, int channels, int vectors, bool half) {
  DirectSplit best{};
  for (int with_half = 0; with_half <= (half ? 1 : 0); ++with_half) {
    for (int in_half = 0; in_half <= (with_half ? kMaxHalfVectors : 0) && in_half + with_half <= vectors; ++in_half) {
      const int rest = with_half ? vectors - 1 - in_half : vectors;
      for (int width = 1; width <= (rest ? kMaxTileVectors : 1); ++width) {
        const int parts = ceil_div(rest, width);
        // Balanced parts are `small` or `small + 1` wide.
        const int small = parts ? rest / parts : 0;
        const int wide = parts ? rest % parts : 0;
        if (small + (wide ? 1 : 0) > tiles.max_vectors[0]) continue;
        double cycles = with_half ? half_column_cycles(tiles, channels, in_half) : 0.0;
        if (parts > wide) cycles += (parts - wide) * column_cycles(tiles, channels, small);
        if (wide) cycles += wide * column_cycles(tiles, channels, small + 1);
        if (best.cycles == 0.0 || cycles < best.cycles) {
          best = DirectSplit{rest, parts, with_half == 1, in_half, cycles};
        }
      }
    }
  }
  return best;
}

}  // namespace
}  // namespace dynprune::cpu
