// Convolution 7x7, stride 2, padding 3, of a few input channels: the first layer of ResNets, DenseNets, GoogLeNets.
//
// Taken apart by the parities of rows and columns it is a sum of four convolutions of stride 1 with four by four taps
// (of even rows and columns one is zero), done by Winograd F(4x4, 4x4): 12 multiplications per output, input and four
// outputs instead of 49. Lanes are tiles side by side. There is little work per tile, so everything is done for 32
// tiles at a time, while it lies in the caches:
//
//     [input transform of all inputs and parities] -> for 8 live outputs at a time: [49 products] -> [output transform]
#include "kernels.h"

#if defined(__AVX512F__)

#include "stem_transforms.h"
#include "winograd_output.h"

namespace dynprune::cpu {
namespace {

constexpr int kParities = 4;
constexpr int kVectors = 2;  // of tiles side by side
constexpr int kOutputs = 4;  // at a time
constexpr int kElements = kStemElements * kStemElements;
constexpr int kTileColumns = 2 * kStemOutputs;  // of the input

alignas(64) constexpr float kNoRow[16] = {};

// Input pixel columns that one vector of tiles reads: from[i] is row i of the map at the first tile's own column.
struct TileColumns {
  LaneMask mask[8];        // of the 128 columns of the tiles
  LaneMask before, after;  // four columns before them in lanes 0..3, two behind them in lanes 4 and 5
};

TileColumns tile_columns(int32_t first, int32_t width) {
  TileColumns columns;
  const auto bits = [&](int32_t column, int n) {
    const int32_t inside = width - column;
    return inside <= 0 ? 0u : inside >= n ? (1u << n) - 1 : (1u << inside) - 1;
  };
  for (int j = 0; j < 8; ++j) columns.mask[j] = lane_mask(bits(first + 16 * j, 16));
  columns.before = lane_mask(first > 0 ? 0x0fu : 0u);
  columns.after = lane_mask(bits(first + 128, 2) << 4);
  return columns;
}

// residue[r] lane i = float 8 i + r of the eight vectors.
DYNPRUNE_INLINE void split_by_eight(const Vec* in, Vec* residue) {
  Vec half[8], quarter[8];
  DYNPRUNE_UNROLL for (int i = 0; i < 4; ++i) {  // [parity][vector]
    half[i] = permute2(in[2 * i], kEven, in[2 * i + 1]);
    half[4 + i] = permute2(in[2 * i], kOdd, in[2 * i + 1]);
  }
  DYNPRUNE_UNROLL for (int p = 0; p < 2; ++p) {
    DYNPRUNE_UNROLL for (int i = 0; i < 2; ++i) {  // [residue mod 4][vector]
      quarter[2 * p + i] = permute2(half[4 * p + 2 * i], kEven, half[4 * p + 2 * i + 1]);
      quarter[2 * (p + 2) + i] = permute2(half[4 * p + 2 * i], kOdd, half[4 * p + 2 * i + 1]);
    }
  }
  DYNPRUNE_UNROLL for (int r = 0; r < 4; ++r) {
    residue[r] = permute2(quarter[2 * r], kEven, quarter[2 * r + 1]);
    residue[r + 4] = permute2(quarter[2 * r], kOdd, quarter[2 * r + 1]);
  }
}

// Lane i of the tile before, with lane `Edge` of `edge` for the first; and of the tile behind.
template <int Edge>
DYNPRUNE_INLINE Vec of_tile_before(Vec v, Vec edge) {
  alignas(64) static constexpr int32_t kIndex[16] = {16 + Edge, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
  return permute2(v, kIndex, edge);
}
template <int Edge>
DYNPRUNE_INLINE Vec of_tile_behind(Vec v, Vec edge) {
  alignas(64) static constexpr int32_t kIndex[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 + Edge};
  return permute2(v, kIndex, edge);
}

// One channel, one vector of tiles: to v[(element * inputs + parity) * kVectors * 16].
void stem_input(const float* x, const PlaneShape& map, int32_t tile_row, int32_t first_tile, int64_t inputs, float* v) {
  const int32_t column = first_tile * kTileColumns;
  const TileColumns columns = tile_columns(column, map.width);
  const int64_t step = inputs * kVectors * kLanes;
  for (int row_parity = 0; row_parity < 2; ++row_parity) {
    const float* from[kStemElements];
    for (int i = 0; i < kStemElements; ++i) {
      const int32_t y = tile_row * kTileColumns - 4 + 2 * i + row_parity;
      from[i] = y >= 0 && y < map.height ? x + static_cast<int64_t>(y) * map.pitch + column : nullptr;
    }
    Vec rows[kStemElements][8], edges[kStemElements];
    DYNPRUNE_UNROLL for (int j = 0; j < 8; ++j) {
      Vec d[kStemElements], out[kStemElements];
      DYNPRUNE_UNROLL for (int i = 0; i < kStemElements; ++i) {
        d[i] = from[i] ? load_lanes(from[i] + j * kLanes, columns.mask[j]) : zero();
      }
      transform_stem_input(d, 1, out);
      DYNPRUNE_UNROLL for (int i = 0; i < kStemElements; ++i) rows[i][j] = out[i];
    }
    Vec d[kStemElements];
    DYNPRUNE_UNROLL for (int i = 0; i < kStemElements; ++i) {
      d[i] = zero();
      if (from[i]) d[i] = add(load_lanes(from[i] - 4, columns.before), load_lanes(from[i] + 124, columns.after));
    }
    transform_stem_input(d, 1, edges);
    for (int i = 0; i < kStemElements; ++i) {
      Vec residue[8], out[kStemElements];
      split_by_eight(rows[i], residue);
      const Vec edge = edges[i];
      const Vec pixel[14] = {of_tile_before<0>(residue[4], edge),
                             of_tile_before<1>(residue[5], edge),
                             of_tile_before<2>(residue[6], edge),
                             of_tile_before<3>(residue[7], edge),
                             residue[0],
                             residue[1],
                             residue[2],
                             residue[3],
                             residue[4],
                             residue[5],
                             residue[6],
                             residue[7],
                             of_tile_behind<4>(residue[0], edge),
                             of_tile_behind<5>(residue[1], edge)};
      float* to = v + i * kStemElements * step + 2 * row_parity * kVectors * kLanes;
      DYNPRUNE_UNROLL for (int p = 0; p < 2; ++p) {
        transform_stem_input(pixel + p, 2, out);
        DYNPRUNE_UNROLL for (int j = 0; j < kStemElements; ++j) store(to + j * step + p * kVectors * kLanes, out[j]);
      }
    }
  }
}

// Products of kOutputs outputs: m[output][element][vector][lane]. `weight` rows are [element][4 C]; column[i] of an
// input's first parity.
void stem_products(const float* const* weight, int64_t weight_step, const int32_t* column, int32_t n_in, const float* v,
                   float* m) {
  for (int64_t t = 0; t < kElements; ++t) {
    Vec acc[kOutputs][kVectors];
    DYNPRUNE_UNROLL for (int k = 0; k < kOutputs; ++k) {
      DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) acc[k][j] = zero();
    }
    for (int32_t i = 0; i < n_in; ++i) {
      const int64_t at = t * weight_step + column[i];
      DYNPRUNE_UNROLL for (int p = 0; p < kParities; ++p, v += kVectors * kLanes) {
        Vec in[kVectors];
        DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) {
          in[j] = load(v + j * kLanes);
          pin(in[j]);
        }
        DYNPRUNE_UNROLL for (int k = 0; k < kOutputs; ++k) {
          const Vec w = broadcast(weight[k][at + p]);
          DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) acc[k][j] = fma(w, in[j], acc[k][j]);
        }
      }
    }
    DYNPRUNE_UNROLL for (int k = 0; k < kOutputs; ++k) {
      DYNPRUNE_UNROLL for (int j = 0; j < kVectors; ++j) {
        store(m + ((k * kElements + t) * kVectors + j) * kLanes, acc[k][j]);
      }
    }
  }
}

// One output, one vector of tiles, of m[element * kVectors * 16].
template <EpilogueKind Kind>
void stem_output(const OutputPlane& plane, int32_t tile_row, int32_t first_tile, const float* m) {
  Vec half[kStemOutputs * kStemElements];
  DYNPRUNE_UNROLL for (int j = 0; j < kStemElements; ++j) {
    Vec in[kStemElements];
    DYNPRUNE_UNROLL for (int i = 0; i < kStemElements; ++i) {
      in[i] = load(m + (i * kStemElements + j) * kVectors * kLanes);
    }
    transform_stem_output(in, half + j, kStemElements);
  }
  const PlaneShape& map = *plane.map;
  const int32_t column = first_tile * kStemOutputs;
  const uint64_t bits = column_bits(column, map.width);
  const ChannelFinish<Kind> finish{*plane.epilogue, plane.channel};
  DYNPRUNE_UNROLL for (int i = 0; i < kStemOutputs; ++i) {
    const int32_t y = tile_row * kStemOutputs + i;
    Vec tile[kStemOutputs], row[kStemOutputs];
    transform_stem_output(half + i * kStemElements, tile, 1);
    join_tiles<kStemOutputs>(tile, row);
    if (y >= map.height) break;
    DYNPRUNE_UNROLL for (int j = 0; j < kStemOutputs; ++j) {
      const uint32_t pixels = static_cast<uint32_t>(bits >> (j * kLanes));
      if (pixels) finish_row<Kind>(plane, finish, int64_t{y} * map.pitch + column + j * kLanes, pixels, row[j]);
    }
  }
}

using StemOutputFn = void (*)(const OutputPlane&, int32_t, int32_t, const float*);
constexpr StemOutputFn kStemOutput[kEpilogueKinds] = {
    &stem_output<EpilogueKind::kPlain>, &stem_output<EpilogueKind::kGated>, &stem_output<EpilogueKind::kAdded>,
    &stem_output<EpilogueKind::kFull>};

StemSizes stem_sizes(const StemShape& shape) {
  const size_t vectors = size_t{kElements} * kVectors * kLanes;
  return {static_cast<size_t>(shape.out_channels) * kElements * kParities * static_cast<size_t>(shape.in_channels),
          vectors * (kParities * static_cast<size_t>(shape.in_channels) + kOutputs)};
}

// [K][C][7][7] to [K][element][C][parity].
void stem_pack(const StemShape& shape, const float* weights, float* packed) {
  const int64_t columns = int64_t{kParities} * shape.in_channels;
  for (int64_t k = 0; k < shape.out_channels; ++k) {
    for (int64_t c = 0; c < shape.in_channels; ++c) {
      const float* w = weights + (k * shape.in_channels + c) * 49;
      for (int parity = 0; parity < kParities; ++parity) {
        // Tap a of an odd row is row 2 a of the filter, of an even one row 2 a - 1.
        const int row = parity / 2 - 1, column = parity % 2 - 1;
        double taps[16], rows[kStemElements * 4], out[kElements];
        for (int a = 0; a < 4; ++a) {
          for (int b = 0; b < 4; ++b) {
            const int y = 2 * a + row, x = 2 * b + column;
            taps[a * 4 + b] = y < 0 || x < 0 ? 0.0 : w[y * 7 + x];
          }
        }
        for (int b = 0; b < 4; ++b) transform_stem_filter(taps + b, 4, rows + b, 4);
        for (int i = 0; i < kStemElements; ++i) transform_stem_filter(rows + 4 * i, 1, out + i * kStemElements, 1);
        for (int64_t t = 0; t < kElements; ++t) {
          packed[(k * kElements + t) * columns + c * kParities + parity] = static_cast<float>(out[t]);
        }
      }
    }
  }
}

void conv_stem(const StemShape& shape, const float* packed, const ConvCall& call, int32_t first_row, int32_t last_row,
               float* thread_scratch) {
  const int32_t tiles = ceil_div(shape.out.width, kStemOutputs);
  const int64_t inputs = int64_t{kParities} * call.n_in, columns = int64_t{kParities} * shape.in_channels;
  float* v = thread_scratch;
  float* m = thread_scratch + kElements * inputs * kVectors * kLanes;
  int32_t column[kMaxStemInputs];
  for (int32_t i = 0; i < call.n_in; ++i) column[i] = call.in_channel[i] * kParities;
  const StemOutputFn output = kStemOutput[static_cast<int>(epilogue_kind(call.epilogue))];
  for (int32_t row = first_row; row < last_row; ++row) {
    for (int32_t tile = 0; tile < tiles; tile += kVectors * kLanes) {
      for (int32_t i = 0; i < call.n_in; ++i) {
        for (int j = 0; j < kVectors; ++j) {
          stem_input(call.input[i], shape.in, row, tile + j * kLanes, inputs,
                     v + (int64_t{i} * kParities * kVectors + j) * kLanes);
        }
      }
      for (int32_t first = 0; first < call.n_out; first += kOutputs) {
        const float* weight[kOutputs];  // a last group that is not full repeats an output, and drops the copy
        for (int k = 0; k < kOutputs; ++k) {
          const int32_t at = first + k < call.n_out ? first + k : call.n_out - 1;
          weight[k] = packed + call.out_channel[at] * kElements * columns;
        }
        stem_products(weight, columns, column, call.n_in, v, m);
        for (int k = 0; k < kOutputs && first + k < call.n_out; ++k) {
          const OutputPlane plane{call.output[first + k], &shape.out, &call.epilogue,
                                  channel_epilogue(call.epilogue, call.out_channel[first + k], first + k)};
          for (int j = 0; j < kVectors && tile + j * kLanes < tiles; ++j) {
            output(plane, row, tile + j * kLanes, m + (int64_t{k} * kElements * kVectors + j) * kLanes);
          }
        }
      }
    }
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_conv_stem)(KernelTable& table) {
  table.has_stem = true;
  table.stem_sizes = stem_sizes;
  table.stem_pack = stem_pack;
  table.conv_stem = conv_stem;
}

}  // namespace dynprune::cpu

#else

#include "vec.h"

namespace dynprune::cpu {

// Written for registers that hold 16 tiles.
void DYNPRUNE_ISA_NAME(fill_conv_stem)(KernelTable& table) { table.has_stem = false; }

}  // namespace dynprune::cpu

#endif
