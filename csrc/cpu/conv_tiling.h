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

// Bytes of weights that other layers evict from the first-level cache between two images.
constexpr int64_t kEvictedWeights = 48 << 10;

// Register tiles of one ISA. A tile of c channels and v vectors needs c*v accumulators, v inputs, one weight.
struct DirectTiles {
  int max_vectors[kMaxTileChannels];   // by channels - 1; 0 = no such tile
  int max_pairs[kMaxHalfVectors + 1];  // half-block tiles: pairs of channels, by full vectors; 0 = none
  int usual_vectors;                   // of the tile that large layers use
  // Measured on Zen 4 and Zen 5 (per vector of the ISA).
  double fma_per_cycle, load_cycles /* unaligned */, broadcast_cycles, overlap_loss;
  double weight_cycles;  // per channel and tile: weights come from beyond the first-level cache
  double narrow_cycles;  // per channel of a tile of half vectors alone; 0 = as other tiles
};

constexpr DirectTiles direct_tiles(int lanes) {
  return lanes == 16  ? DirectTiles{{7, 7, 7, 6, 5, 4, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1},
                                    {8, 6, 4, 3, 2},
                                    3,
                                    1.0,
                                    1.5,
                                    1.0,
                                    0.03,
                                    0.1,
                                    0.6}
         : lanes == 8 ? DirectTiles{{7, 5, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1}, {}, 3, 2.0, 0.75, 0.5, 0.25, 0.1, 0.0}
                      : DirectTiles{{6, 4, 3, 2, 1, 1, 1, 1}, {}, 2, 1.0, 0.75, 0.5, 0.25, 0.1, 0.0};
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
  const double latency = 5.0;
  return (cycles > latency ? cycles : latency) + tiles.weight_cycles * channels;
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
  if (vectors == 0 && tiles.narrow_cycles > 0) {
    const double cycles = 2.0 * pairs / parts * tiles.narrow_cycles;
    return parts * ((cycles > 5.0 ? cycles : 5.0) + tiles.weight_cycles * 2.0 * pairs / parts);
  }
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
  constexpr int kFewVectors = 16;  // above, half a vector is not worth a special tile
  double full[kMaxTileVectors + 2] = {}, with_half[kMaxHalfVectors + 1] = {};
  for (int v = 1; v <= kMaxTileVectors && v <= vectors && v <= tiles.max_vectors[0]; ++v) {
    full[v] = column_cycles(tiles, channels, v);
  }
  DirectSplit best{};
  const auto consider = [&](int rest, bool half_tile, int in_half) {
    for (int width = 1; width <= kMaxTileVectors; ++width) {
      const int parts = ceil_div(rest, width);
      // Balanced parts are `narrow` or `narrow + 1` wide.
      const int narrow = parts ? rest / parts : 0;
      const int wide = parts ? rest % parts : 0;
      if (narrow + (wide ? 1 : 0) > tiles.max_vectors[0]) continue;
      const double cycles =
          (half_tile ? with_half[in_half] : 0.0) + (parts - wide) * full[narrow] + wide * full[narrow + 1];
      if (best.cycles == 0.0 || cycles < best.cycles) best = DirectSplit{rest, parts, half_tile, in_half, cycles};
      if (parts <= 1) break;
    }
  };
  consider(vectors, false, 0);
  if (half && vectors <= kFewVectors) {
    for (int v = 0; v <= kMaxHalfVectors && v < vectors; ++v) {
      if (tiles.max_pairs[v] == 0) continue;
      with_half[v] = half_column_cycles(tiles, channels, v);
      consider(vectors - 1 - v, true, v);
    }
  }
  return best;
}

// The multiplications of Winograd convolution: fewer vectors, aligned loads.
constexpr int multiply_vectors(int lanes) { return lanes == 16 ? 4 : 3; }
constexpr DirectTiles multiply_tiles(int lanes) {
  DirectTiles tiles = direct_tiles(lanes);
  for (int& most : tiles.max_vectors) most = most < multiply_vectors(lanes) ? most : multiply_vectors(lanes);
  tiles.max_pairs[kMaxHalfVectors] = 0;
  tiles.load_cycles = tiles.broadcast_cycles;
  tiles.broadcast_cycles *= 0.95;  // of adjoining weights
  tiles.weight_cycles = 0;
  tiles.narrow_cycles = 0;
  return tiles;
}

// What positions are cut for.
enum class TileUse { kDirect, kMultiply };

// split_positions, remembered: searching costs as much as a small layer's arithmetic.
inline const DirectSplit& position_split(TileUse use, int lanes, int channels, int vectors, bool half) {
  struct Entry {
    int64_t key = -1;
    DirectSplit split{};
  };
  constexpr int kEntries = 256;
  static thread_local Entry entries[kEntries];
  const int64_t key = static_cast<int64_t>(vectors) << 32 | channels << 8 | lanes << 2 | (half ? 2 : 0) |
                      (use == TileUse::kMultiply ? 1 : 0);
  Entry& entry = entries[static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u >> 56];
  if (entry.key != key) {
    entry = {key, split_positions(use == TileUse::kMultiply ? multiply_tiles(lanes) : direct_tiles(lanes), channels,
                                  vectors, half)};
  }
  return entry.split;
}

}  // namespace
}  // namespace dynprune::cpu
