// The interface between the executor and the bf16 kernels.
//
// A bf16 map holds two channels per 32-bit word (group_planes.h), the even position in the low half. Products and
// sums are float32, and so is the epilogue; only maps and weights are bf16.
//
// Rounding to bf16 is to nearest even; results below 2^-63 become +0, so that no product of two bf16 numbers is a
// denormal: products are exact, and a fused multiply-add gives the bits of a multiplication and an addition. (A
// product beyond the range of float32 may still be infinite in one and not in the other.) Kernels run with
// denormals flushed, as every thread of the executor does.
//
// The sum of an output element starts at 0 and takes, tap by tap and word by word, the product of the high half and
// then that of the low half: what vdpbf16ps does (but see bf16_leftover). So its bits depend on which live channels
// share a word: lists of packed maps name the live channels first, with skipping off as well. Results are the same bits
// on every ISA, but for Winograd convolutions, which only AVX512_BF16 has.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/group_planes.h"
#include "cpu/kernels.h"

namespace dynprune::cpu {

constexpr int kBf16PerWord = 2;

// ---- convolution ------------------------------------------------------------------------------

struct Bf16ConvShape {
  int32_t in_channels, out_channels;  // of the model
  int32_t groups;                     // output k reads the inputs of group k / (out_channels / groups)
  int32_t taps;
  const int32_t* tap_offset;        // [taps] words, as in DirectShape
  const uint16_t* const* tap_mask;  // [taps][out.blocks]: a position whose bit is clear reads zero for this tap
  PlaneShape out;
  bool adds;  // the output holds a residual before the call
  Clamp inner, outer;
};

// Elements of one tap of a row of weights: the inputs of a group, in whole words.
static constexpr int32_t bf16_row_channels(int32_t in_channels) {
  return (in_channels + kBf16PerWord - 1) / kBf16PerWord * kBf16PerWord;
}

// The last positions of a map, where they would leave most lanes of a vector idle: 1 of 7x7, 4 of 14x14. There, lane l
// of 16 takes the words g of every tap with g % 16 == l, and the lanes are added in halves: l + 8, l + 4, l + 2, l + 1.
// Decided by the shape alone, since the order of additions depends on it.
static constexpr int32_t bf16_leftover(const Bf16ConvShape& shape) {
  const int32_t positions = (shape.out.height - 1) * shape.out.pitch + shape.out.width;
  return shape.groups == 1 && shape.in_channels >= 64 && positions > kBlock && positions % kBlock <= 4
             ? positions % kBlock
             : 0;
}

// Per output channel; null = absent. The epilogue is that of the float convolution (kernels.h: Epilogue).
struct Bf16Weights {
  const uint16_t* rows;  // [out_channels][taps][bf16_row_channels(inputs of a group)], then kRowOverread bytes
  const float* bias;
  const float* gate;
  const float* shift;
};

// One image. Without a residual, entry i of out_channel is written to position i of `output`, whole words, fillers
// included. With one, `output` holds it whole, in channel order: entry i replaces channel out_channel[i], and
// channels that are not listed stay as they are.
struct Bf16ConvCall {
  GroupPlanes input;
  const int32_t* in_channel;  // [n_in]; position i holds channel in_channel[i]
  int32_t n_in;
  GroupPlanes output;
  const int32_t* out_channel;  // [n_out]; ascending where a residual is added
  int32_t n_out;
};

// Bytes of scratch per thread for bf16_conv, 64-byte aligned.
using Bf16ScratchFn = size_t (*)(const Bf16ConvShape&);
// Computes entries [first, last) of out_channel. No word may be shared with another thread's entries.
using Bf16ConvFn = void (*)(const Bf16ConvShape&, const Bf16Weights&, const Bf16ConvCall&, int32_t first, int32_t last,
                            void* scratch);

// Depthwise: channel c of the output reads channel c of the input, which is at in_position[c], or zeros where that is
// negative. No residual. Computes planes [first, last).
using Bf16DepthwiseFn = void (*)(const Bf16ConvShape&, const Bf16Weights&, const Bf16ConvCall&,
                                 const int32_t* in_position, int32_t first, int32_t last);

// Winograd F(4x4, 3x3) for 3x3 taps, stride 1, padding 1, one group: transforms, products and sums in float32. Maps,
// epilogue and which entries are written are those of Bf16ConvFn; sums are other ones, within a few units of the last
// place of the largest summand. A value that is not finite, or so large that a sum of 100 of it is not, spoils the 6x6
// pixels of the tiles that read it.
static constexpr WinogradShape bf16_winograd_shape(const Bf16ConvShape& shape) {
  return {shape.in_channels, shape.out_channels, 4, shape.out};
}
// weights: numbers of packed weights; input_scratch and thread_scratch in floats.
using Bf16WinogradSizesFn = WinogradSizes (*)(const Bf16ConvShape&);
// [out_channels][in_channels][9] to [out_channels / 16][in_channels][9][16].
using Bf16WinogradPackFn = void (*)(const Bf16ConvShape&, const uint16_t* weights, uint16_t* packed);
// Transforms entries [first, last) of in_channel, or of those that `positions` lists (null = all), into v. All must be
// done before the output.
using Bf16WinogradInputFn = void (*)(const Bf16ConvShape&, TileRows, const Bf16ConvCall&, const int32_t* positions,
                                     int32_t first, int32_t last, float* v);
// Computes entries [first, last) of out_channel. No word may be shared with another thread's entries. `packed` holds
// the weights; those of `weights` are not read.
using Bf16WinogradOutputFn = void (*)(const Bf16ConvShape&, TileRows, const uint16_t* packed,
                                      const Bf16Weights& weights, const float* v, const Bf16ConvCall&, int32_t first,
                                      int32_t last, float* thread_scratch);

// ---- other passes over group planes -------------------------------------------------------------

// Halves whose bit is set in `lanes` become clamp(shift + half, outer): residuals of channels without a sum.
using Bf16PassFn = void (*)(const PlaneShape&, uint32_t lanes, const float* shift, Clamp outer, uint32_t* y);
// Two float maps (null = zeros) with rows `x_pitch` floats apart, rounded into one plane.
using Bf16PackFn = void (*)(const PlaneShape&, const float* const* x, int32_t x_pitch, uint32_t* y);
// One channel of an image, rounded, as windows of its rows. scratch: bytes as window_scratch says.
using Bf16WindowsFn = void (*)(const WindowShape&, const float* x, uint32_t* y, void* scratch);
using Bf16WindowScratchFn = size_t (*)(const WindowShape&);
// One half of each word into a float plane of equal size.
using Bf16UnpackFn = void (*)(const PlaneShape& in, const PlaneShape& out, const uint32_t* x, int32_t half, float* y);
// Sums, or sums of magnitudes, of both halves of a plane: block b of it is added to block b % kBf16SumBlocks of `low`
// and of `high`, which start at zero. That is the order of plane_reduce, which makes one number of them.
constexpr int kBf16SumBlocks = 4;
using Bf16SumFn = void (*)(const PlaneShape&, bool magnitudes, const uint32_t* x, float* low, float* high);
// Maximum over windows, NaN if there is one; what lies outside the map is not looked at.
using Bf16MaxPoolScratchFn = size_t (*)(const PoolShape&);  // in words
using Bf16MaxPoolFn = void (*)(const PoolShape&, const uint32_t* x, uint32_t* y, uint32_t* scratch);

// Weights of a linear layer as the kernel reads them, from end to end: groups of outputs, [inputs / 16][outputs of the
// group][16], zeros beyond the layer's outputs and inputs.
constexpr int kBf16LinearRows = 8;
static constexpr int64_t bf16_linear_group_size(int32_t in_features) {
  return int64_t{kBf16LinearRows} * ((in_features + kBlock - 1) / kBlock) * kBlock;
}
// y[k] = clamp(sum_c w[k][c] * x[c] + bias[k]) with bf16 weights and float arithmetic for groups [first, last).
using Bf16LinearFn = void (*)(int32_t out_features, int32_t in_features, const uint16_t* weights, const float* bias,
                              const float* x, Clamp, int32_t first, int32_t last, float* y);

struct Bf16Kernels {
  const char* isa;  // what these kernels were written for: "bf16" or "portable"
  Bf16ScratchFn conv_scratch;
  Bf16ConvFn conv;
  bool has_winograd;
  Bf16WinogradSizesFn winograd_sizes;
  Bf16WinogradPackFn winograd_pack;
  Bf16WinogradInputFn winograd_input;
  Bf16WinogradOutputFn winograd_output;
  Bf16DepthwiseFn depthwise;
  Bf16PassFn pass;
  Bf16PackFn pack;
  Bf16WindowScratchFn window_scratch;
  Bf16WindowsFn pack_windows;
  Bf16UnpackFn unpack;
  Bf16SumFn sum;
  Bf16MaxPoolScratchFn max_pool_scratch;
  Bf16MaxPoolFn max_pool;
  Bf16LinearFn linear;
};

#define DYNPRUNE_DECLARE_BF16_FAMILIES(ISA)     \
  void fill_bf16_conv_##ISA(Bf16Kernels&);      \
  void fill_bf16_depthwise_##ISA(Bf16Kernels&); \
  void fill_bf16_linear_##ISA(Bf16Kernels&);    \
  void fill_bf16_maps_##ISA(Bf16Kernels&);      \
  void fill_bf16_winograd_##ISA(Bf16Kernels&);
DYNPRUNE_DECLARE_BF16_FAMILIES(generic)
DYNPRUNE_DECLARE_BF16_FAMILIES(avx2)
DYNPRUNE_DECLARE_BF16_FAMILIES(avx512)
DYNPRUNE_DECLARE_BF16_FAMILIES(avx512_bf16)

}  // namespace dynprune::cpu
