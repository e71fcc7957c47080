// The interface between the executor and the int8 kernels.
//
// A quantised map holds four channels per 32-bit word (group_planes.h). Values are u8 (never negative) or s8 in two's
// complement, both with zero point 0.
//
// Results are the same bits on every ISA: sums are exact integers, and the float arithmetic after them is
// written as single multiplications and additions in a fixed order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/group_planes.h"
#include "cpu/kernels.h"

namespace dynprune::cpu {

constexpr int kChannelsPerWord = 4;

enum class QuantizedType : int32_t { kU8, kS8 };

// ---- convolution ------------------------------------------------------------------------------

struct QuantizedConvShape {
  int32_t in_channels, out_channels;  // of the model
  int32_t groups;                     // output k reads the inputs of group k / (out_channels / groups)
  int32_t taps;
  const int32_t* tap_offset;        // [taps] words, as in DirectShape
  const uint16_t* const* tap_mask;  // [taps][out.blocks]: a position whose bit is clear reads zero for this tap
  PlaneShape out;
  QuantizedType in_type, out_type;
  QuantizedType residual_type;
  // 0: no residual. With 1 and equal types the residual is added as an integer after rounding, else
  // as a float before it.
  float residual_scale;
  float inner_low;   // lower bound of the sum before a residual is added; -inf without one
  float inner_high;  // upper bound of the sum, which the gate scales too; inf with a residual or a shift
};

// Bytes of one tap of a row of weights: the inputs of a group rounded up to whole words.
static constexpr int32_t quantized_row_channels(int32_t in_channels) {
  return (in_channels + kChannelsPerWord - 1) / kChannelsPerWord * kChannelsPerWord;
}
// Per output channel. sum is that of a row's weights (for s8 inputs).
struct QuantizedWeights {
  const int8_t* rows;  // [out_channels][taps][quantized_row_channels(inputs of a group)], then kRowOverread bytes
  const int32_t* row_sum;
  const float* scale;
  const float* bias;
};

// One image. Without a residual, out_channel entry i is written to position i of `output`, whole words, fillers
// included. With one, `output` holds the residual, dense in fixed channel order: entry i replaces the byte of
// channel out_channel[i], and bytes of channels that are not listed stay as they are.
//   s = scale * gate, b = bias * gate + shift;  v = min(max(sum * s + b, inner_low), inner_high * gate);  see
//   QuantizedConvShape for the rest
struct QuantizedConvCall {
  GroupPlanes input;
  const int32_t* in_channel;  // [n_in], ascending; position i holds channel in_channel[i]
  int32_t n_in;
  GroupPlanes output;
  const int32_t* out_channel;  // [n_out], ascending
  int32_t n_out;
  const float* gate;   // [out_channels] or null
  const float* shift;  // [out_channels] or null
};

// Bytes of scratch per thread for quantized_conv, 64-byte aligned.
using QuantizedScratchFn = size_t (*)(const QuantizedConvShape&);
// Computes entries [first, last) of out_channel. No word may be shared with another thread's entries.
using QuantizedConvFn = void (*)(const QuantizedConvShape&, const QuantizedWeights&, const QuantizedConvCall&,
                                 int32_t first, int32_t last, void* scratch);

// The same sums by Winograd's algorithm, exactly, for 3x3 taps, stride 1, padding 1, one group. Every output's sum has
// to stay below kWinogradSumLimit for all inputs. Computes entries [first, last) of these rows of 4x4 tiles; a word is
// written whole. Null where an ISA has none.
constexpr int64_t kWinogradSumLimit = int64_t{1} << 25;
using QuantizedWinogradFn = void (*)(const QuantizedConvShape&, const QuantizedWeights&, const QuantizedConvCall&,
                                     TileRows rows, int32_t first, int32_t last, void* scratch);

// Depthwise: channel c of the output reads channel c of the input, or zeros where that is not listed.
// No residual. Computes planes [first, last).
using QuantizedDepthwiseFn = void (*)(const QuantizedConvShape&, const QuantizedWeights&, const QuantizedConvCall&,
                                      int32_t first, int32_t last);

// ---- other passes over group planes -------------------------------------------------------------

// Bytes of `y` whose bit is set in `lanes` (bit i = byte i of every word) hold a residual of type `from`; each
// becomes round(shift[i] + r * scale) of type `to`.
using QuantizedRescaleFn = void (*)(const PlaneShape&, uint32_t lanes, const float* shift, float scale,
                                    QuantizedType from, QuantizedType to, uint32_t* y);
// Four float maps (null = zeros) with rows `x_pitch` floats apart into one plane: round(x * inverse_scale).
using QuantizeFn = void (*)(const PlaneShape&, const float* const* x, int32_t x_pitch, float inverse_scale,
                            QuantizedType, uint32_t* y);
// round(x * inverse_scale) of one channel of an image as windows of its rows. scratch: bytes as window_scratch says.
using QuantizeWindowsFn = void (*)(const WindowShape&, const float* x, float inverse_scale, QuantizedType, uint32_t* y,
                                   void* scratch);
using WindowScratchFn = size_t (*)(const WindowShape&);
// One byte of each word into a float plane of equal size: byte * scale.
using DequantizeFn = void (*)(const PlaneShape& in, const PlaneShape& out, const uint32_t* x, int32_t byte, float scale,
                              QuantizedType, float* y);
// Exact reductions over the pixels of a plane's four channels.
enum class QuantizedReduce : int32_t { kSum, kSumAbs, kSumSquares, kMax };
constexpr int kQuantizedReductions = 4;
using QuantizedReduceFn = void (*)(const PlaneShape&, const uint32_t* x, QuantizedType, int32_t* reduced);
// Maximum over windows; what lies outside the map is not looked at. scratch: words as max_pool_scratch says.
using QuantizedMaxPoolScratchFn = size_t (*)(const PoolShape&);
using QuantizedMaxPoolFn = void (*)(const PoolShape&, QuantizedType, const uint32_t* x, uint32_t* y, uint32_t* scratch);

struct QuantizedKernels {
  const char* isa;  // what these kernels were written for: "vnni" or "portable"
  int32_t tile_channels, tile_blocks;
  QuantizedScratchFn conv_scratch;
  QuantizedConvFn conv;
  QuantizedScratchFn winograd_scratch;
  QuantizedWinogradFn winograd;
  QuantizedDepthwiseFn depthwise;
  QuantizedRescaleFn rescale;
  QuantizeFn quantize;
  WindowScratchFn window_scratch;
  QuantizeWindowsFn quantize_windows;
  DequantizeFn dequantize;
  QuantizedReduceFn reduce[kQuantizedReductions];  // by QuantizedReduce
  QuantizedMaxPoolScratchFn max_pool_scratch;
  QuantizedMaxPoolFn max_pool;
};

#define DYNPRUNE_DECLARE_QUANTIZED_FAMILIES(ISA)          \
  void fill_quantized_conv_##ISA(QuantizedKernels&);      \
  void fill_quantized_winograd_##ISA(QuantizedKernels&);  \
  void fill_quantized_depthwise_##ISA(QuantizedKernels&); \
  void fill_quantized_maps_##ISA(QuantizedKernels&);
DYNPRUNE_DECLARE_QUANTIZED_FAMILIES(generic)
DYNPRUNE_DECLARE_QUANTIZED_FAMILIES(avx2)
DYNPRUNE_DECLARE_QUANTIZED_FAMILIES(avx512)
DYNPRUNE_DECLARE_QUANTIZED_FAMILIES(avx512_vnni)

}  // namespace dynprune::cpu
