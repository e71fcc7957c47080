// Direct convolution of maps of at most 16 pixels, stride 1, from the weights as they are in the model.
//
// The planar kernel spends lanes on the pads between rows: a 4x4 map takes two vectors, a 2x2 map a quarter of one.
// Here the pixels that the taps read are first gathered, once for all outputs:
// - per input and tap one block of the output's pixels, without pads; a weight is broadcast;
// - AVX-512, 2x2 under a 3x3 kernel: per input one vector, whose lanes are pairs of an input and an output pixel. The
// nine
//   weights of an input and an output become such a vector by one permutation: a multiply-add does for all taps.
#include "conv_epilogue.h"
#include "kernels.h"
#include "vec_select.h"
#if defined(__AVX512F__)
#include "winograd_lanes.h"
#endif

namespace dynprune::cpu {
namespace {

constexpr int kVectors = kBlock / kLanes;
constexpr int kOutputs = kLanes == 4 ? 2 : 8;  // at a time
// Inputs whose weights are fetched meanwhile: some 500 cycles ahead.
constexpr int kTapsAhead = 8, kPairsAhead = 24;

size_t small_map_scratch(const DirectShape& shape) {
  return static_cast<size_t>(shape.in_channels) * static_cast<size_t>(shape.taps) * kBlock + kBlock;
}

// out[input][tap][16]: the pixel that each output pixel reads there.
void gather_taps(const DirectShape& shape, const ConvCall& call, float* out) {
  const PlaneShape& map = shape.out;
  for (int32_t i = 0; i < call.n_in; ++i) {
    for (int32_t t = 0; t < shape.taps; ++t, out += kBlock) {
      const float* from = call.input[i] + shape.tap_offset[t];
      for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, zero());
      // Whole vectors: what lies beyond a row is overwritten by the next, or is no pixel.
      for (int32_t y = 0; y < map.height; ++y, from += map.pitch) {
        for (int32_t x = 0; x < map.width; x += kLanes)
          store(out + y * map.width + x, load_first(from + x, map.width - x));
      }
    }
  }
}

// The weights' rows of some outputs: one pointer each.
struct WeightRows {
  const float* row[kOutputs];
  DYNPRUNE_INLINE void fetch(int64_t offset) const {
    DYNPRUNE_UNROLL for (int k = 0; k < kOutputs; ++k) __builtin_prefetch(row[k] + offset, 0, 3);
  }
};

DYNPRUNE_INLINE int32_t column_ahead(const ConvCall& call, int32_t i) {
  return call.in_channel[i < call.n_in ? i : call.n_in - 1];
}

// sums[output][vector], inputs and taps ascending.
DYNPRUNE_INLINE void multiply_taps(const ConvCall& call, const WeightRows& rows, int32_t taps, const float* pixels,
                                   Vec (*sums)[kVectors]) {
  DYNPRUNE_UNROLL for (int k = 0; k < kOutputs; ++k) {
    DYNPRUNE_UNROLL for (int v = 0; v < kVectors; ++v) sums[k][v] = zero();
  }
  for (int32_t i = 0; i < call.n_in; ++i) {
    rows.fetch(int64_t{column_ahead(call, i + kTapsAhead)} * taps);
    const int64_t column = int64_t{call.in_channel[i]} * taps;
    for (int32_t t = 0; t < taps; ++t, pixels += kBlock) {
      Vec in[kVectors];
      DYNPRUNE_UNROLL for (int v = 0; v < kVectors; ++v) in[v] = load(pixels + v * kLanes);
      DYNPRUNE_UNROLL for (int k = 0; k < kOutputs; ++k) {
        const Vec w = broadcast(rows.row[k][column + t]);
        DYNPRUNE_UNROLL for (int v = 0; v < kVectors; ++v) sums[k][v] = fma(w, in[v], sums[k][v]);
      }
    }
  }
}

// Finishes one output, `line` [16] being its pixels without pads and 16 floats more.
void finish_output(const PlaneShape& map, const ConvCall& call, int32_t at, const float* line) {
  const ChannelEpilogue channel = channel_epilogue(call.epilogue, call.out_channel[at], at);
  const FullFinish finish(call.epilogue);
  for (int32_t y = 0; y < map.height; ++y) {
    const int64_t row = int64_t{y} * map.pitch;
    for (int32_t x = 0; x < map.width; x += kLanes) {
      const int32_t n = map.width - x;
      const Vec residual = channel.residual ? load_first(channel.residual + row + x, n) : zero();
      store_first(call.output[at] + row + x, n, finish(load(line + y * map.width + x), channel, residual));
    }
  }
}

#if defined(__AVX512F__)

bool is_two_by_two(const DirectShape& shape) {
  if (shape.out.height != 2 || shape.out.width != 2 || shape.taps != 9) return false;
  for (int32_t t = 0; t < 9; ++t) {
    if (shape.tap_offset[t] != (t / 3 - 1) * shape.out.pitch + t % 3 - 1) return false;
  }
  return true;
}

// out[input][16]: lane 4 * q + p is pixel q, for all outputs p.
void gather_pairs(const DirectShape& shape, const ConvCall& call, float* out) {
  for (int32_t i = 0; i < call.n_in; ++i) {
    for (int32_t q = 0; q < 4; ++q) {
      const float pixel = call.input[i][q / 2 * shape.out.pitch + q % 2];
      for (int32_t p = 0; p < 4; ++p) *out++ = pixel;
    }
  }
}

// Which of the nine taps leads from pixel q to output p, for lane 4 * q + p.
LaneChoice taps_of_pairs() {
  int32_t taps[kLanes];
  for (int32_t lane = 0; lane < kLanes; ++lane) {
    const int32_t q = lane / 4, p = lane % 4;
    taps[lane] = (q / 2 - p / 2 + 1) * 3 + q % 2 - p % 2 + 1;
  }
  return LaneChoice(taps);
}

DYNPRUNE_INLINE void multiply_pairs(const ConvCall& call, const WeightRows& rows, const float* pixels, Vec* sums) {
  const LaneChoice choice = taps_of_pairs();
  DYNPRUNE_UNROLL for (int k = 0; k < kOutputs; ++k) sums[k] = zero();
  for (int32_t i = 0; i < call.n_in; ++i, pixels += kLanes) {
    rows.fetch(int64_t{column_ahead(call, i + kPairsAhead)} * 9);
    const int64_t column = int64_t{call.in_channel[i]} * 9;
    const Vec in = load(pixels);
    DYNPRUNE_UNROLL for (int k = 0; k < kOutputs; ++k) {
      sums[k] = fma(choose_lanes(load_first(rows.row[k] + column, 9), choice), in, sums[k]);
    }
  }
}

#endif

void conv_small_map(const DirectShape& shape, const float* weights, const ConvCall& call, float* scratch) {
  bool pairs = false;
#if defined(__AVX512F__)
  pairs = is_two_by_two(shape);
  if (pairs) gather_pairs(shape, call, scratch);
#endif
  if (!pairs) gather_taps(shape, call, scratch);
  const int64_t row = int64_t{shape.in_channels} * shape.taps;
  for (int32_t first = 0; first < call.n_out; first += kOutputs) {
    WeightRows rows;
    for (int32_t k = 0; k < kOutputs; ++k) {  // a last one may be computed several times
      rows.row[k] = weights + call.out_channel[first + k < call.n_out ? first + k : call.n_out - 1] * row;
    }
    alignas(64) float line[kOutputs][2 * kBlock] = {};
    if (pairs) {
#if defined(__AVX512F__)
      Vec sums[kOutputs];
      multiply_pairs(call, rows, scratch, sums);
      for (int k = 0; k < kOutputs; ++k) {
        float* const to = line[k];
        store(to, sums[k]);
        for (int p = 0; p < 4; ++p) to[p] = (to[p] + to[4 + p]) + (to[8 + p] + to[12 + p]);
      }
#endif
    } else {
      Vec sums[kOutputs][kVectors];
      multiply_taps(call, rows, shape.taps, scratch, sums);
      for (int k = 0; k < kOutputs; ++k) {
        for (int v = 0; v < kVectors; ++v) store(line[k] + v * kLanes, sums[k][v]);
      }
    }
    for (int32_t k = 0; k < kOutputs && first + k < call.n_out; ++k) finish_output(shape.out, call, first + k, line[k]);
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_conv_small_map)(KernelTable& table) {
  table.small_map_scratch = small_map_scratch;
  table.conv_small_map = conv_small_map;
}

}  // namespace dynprune::cpu
