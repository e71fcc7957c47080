// The interface between the executor and the per-ISA CPU kernels.
//
// Every kernel works on one image. Maps are planar: a plane pointer points at pixel (0,0), rows are
// `pitch` floats apart, the floats between width and pitch and the guards around a plane are zero.
// Work is done in blocks of 16 consecutive floats; `store_mask[b]` bit i is set where position 16*b+i
// is a pixel. Kernels read up to one block past the last pixel row and never write a non-pixel, except
// that they may store zeros there. Sizes are in elements (floats) unless said otherwise.
//
// The same source of each kernel family is compiled once per ISA; `kernel_table(isa)` hands out the
// function pointers. Preconditions stand beside each entry; kernels do not check them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dynprune::cpu {

constexpr int kBlock = 16;  // floats per block of positions, on every ISA

struct Clamp {
  float lo, hi;  // NaN passes; (-inf, inf) is the identity
};

// Geometry of a planar map.
struct PlaneShape {
  int32_t height, width, pitch;
  int32_t blocks;              // ceil(((height - 1) * pitch + width) / 16)
  const uint16_t* store_mask;  // [blocks]
};

// ---- convolution ------------------------------------------------------------------------------

// What is done to a finished sum; see docs/internals.md. Arrays are indexed by the entries of
// ConvCall::out_channel; `residual` by position in that list. Null = absent.
struct Epilogue {
  const float* bias;
  const float* gate;
  const float* shift;
  const float* const* residual;
  Clamp inner, outer;
};

// One image, one group. Lists ascend. Live planes only: nothing else is read or written.
struct ConvCall {
  const float* const* input;  // [n_in] planes (for a phase-split map: plane of phase 0)
  const int32_t* in_channel;  // [n_in] column of the weights
  int32_t n_in;
  float* const* output;        // [n_out] planes; may alias residual planes, never input planes
  const int32_t* out_channel;  // [n_out] row of the weights
  int32_t n_out;
  Epilogue epilogue;
};

// Direct planar convolution. out[p] = sum over c, t of w[k][c][t] * in_c[p + tap_offset[t]].
struct DirectShape {
  int32_t in_channels, out_channels;  // of the group
  int32_t taps;
  const int32_t* tap_offset;  // [taps] floats; includes padding, dilation and the phase planes
  PlaneShape out;             // pitch equals the input's (or phase planes') pitch
};
// weights: [out_channels][in_channels][taps], as in the model. first_block..last_block: the blocks of
// positions to compute, so that threads may split pixels; the n_out list may be split as well.
using ConvDirectFn = void (*)(const DirectShape&, const float* weights, const ConvCall&, int32_t first_block,
                              int32_t last_block);

// The same sums for maps of at most kBlock pixels, from pixels gathered in the scratch: no lane is spent on pads.
inline bool fits_small_map(const DirectShape& shape) { return shape.out.height * shape.out.width <= kBlock; }
using SmallMapScratchFn = size_t (*)(const DirectShape&);  // floats per thread
using ConvSmallMapFn = void (*)(const DirectShape&, const float* weights, const ConvCall&, float* thread_scratch);

// Depthwise: output channel k reads input channel k / multiplier. Same addressing as above.
// input[i] is the plane that feeds output[i], or null where that input is exactly zero.
using ConvDepthwiseFn = void (*)(const DirectShape&, const float* weights, const ConvCall&);

// A convolution that reads its input map as it is, whatever the stride: out[y][x] = sum over c, t of
// w[k][c][t] * in_c[y * stride_h * in_pitch + x * stride_w + tap_offset[t]].
struct StridedShape {
  int32_t in_channels, out_channels;  // of the group
  int32_t taps;
  const int32_t* tap_offset;  // [taps] floats; includes padding and dilation
  int32_t in_pitch;
  int32_t stride_h, stride_w;  // stride_w is 1 or 2
  PlaneShape out;
};

// Depthwise with stride_w 2. May read two blocks past the last pixel that a tap needs.
using ConvDepthwiseStridedFn = void (*)(const StridedShape&, const float* weights, const ConvCall&);

// Output channels in the lanes: a vector of weights times a broadcast pixel. No lane is spent on pad columns, which
// suits small and strided maps; the direct kernel skips single outputs at no cost, this one moves the weights of the
// live ones together first.
struct ChannelLanesSizes {
  size_t weights;         // floats of packed weights
  size_t thread_scratch;  // floats per thread
};
using ChannelLanesSizesFn = ChannelLanesSizes (*)(const StridedShape&);
// [out_channels][in_channels][taps] to [out_channels / 16][in_channels][taps][16].
using ChannelLanesPackFn = void (*)(const StridedShape&, const float* weights, float* packed);
// Computes rows [first_row, last_row) of the live outputs; the n_out list may be split as well.
using ConvChannelLanesFn = void (*)(const StridedShape&, const float* packed, const ConvCall&, int32_t first_row,
                                    int32_t last_row, float* thread_scratch);

// Convolution 7x7, stride 2, padding 3, of at most kMaxStemInputs channels.
constexpr int32_t kMaxStemInputs = 4;
struct StemShape {
  int32_t in_channels, out_channels;
  PlaneShape in, out;
};
struct StemSizes {
  size_t weights;         // floats of packed weights
  size_t thread_scratch;  // floats per thread
};
using StemSizesFn = StemSizes (*)(const StemShape&);
using StemPackFn = void (*)(const StemShape&, const float* weights, float* packed);
// Computes rows [4 * first_row, 4 * last_row) of the live outputs.
using ConvStemFn = void (*)(const StemShape&, const float* packed, const ConvCall&, int32_t first_row, int32_t last_row,
                            float* thread_scratch);

// Winograd F(m x m, 3x3), stride 1, padding 1, dilation 1. m is 2 or 4.
struct WinogradShape {
  int32_t in_channels, out_channels;
  int32_t m;
  PlaneShape out;  // same height, width and pitch as the input
};
enum class WinogradWeights : int32_t {
  kTransformed,   // stored transformed: (m+2)^2 matrices; for small layers
  kOnTheFly,      // stored as [K/16][C][9][16], live pairs transformed per image; 4x less memory
  kChannelLanes,  // stored like kOnTheFly; for maps that winograd_fits_channel_lanes(), needs has_channel_lanes
};
// Maps of so few tiles that these, in the lanes, would leave most empty: 2 x 2 of F(4x4), or F(2x2).
inline bool winograd_fits_channel_lanes(const WinogradShape& shape) {
  const auto fits = [&](int32_t side) { return side > shape.m && side <= 2 * shape.m; };
  return fits(shape.out.height) && fits(shape.out.width);
}
struct WinogradSizes {
  size_t weights;         // floats of packed weights
  size_t input_scratch;   // floats of V for all inputs live, shared by the threads of one image
  size_t thread_scratch;  // floats per thread for winograd_output
};
using WinogradSizesFn = WinogradSizes (*)(const WinogradShape&, WinogradWeights);
using WinogradPackFn = void (*)(const WinogradShape&, WinogradWeights, const float* weights, float* packed);
// Rows of tiles of m x m outputs. A map may be worked through in bands of rows, so that V stays in the caches.
struct TileRows {
  int32_t first, last;
};
// Transforms entries [first, last) of call.input, or of those that `positions` lists (planar forms only; null = all),
// into v. All must be done before winograd_output for these rows.
using WinogradInputFn = void (*)(const WinogradShape&, TileRows, WinogradWeights, const ConvCall&,
                                 const int32_t* positions, int32_t first, int32_t last, float* v);
// Multiplies, transforms back and finishes live outputs [first, last). v as written for all n_in.
using WinogradOutputFn = void (*)(const WinogradShape&, TileRows, WinogradWeights, const float* packed, const float* v,
                                  const ConvCall&, int32_t first, int32_t last, float* thread_scratch);

// ---- planar elementwise, pooling, layout ------------------------------------------------------

enum class Unary : int32_t {
  kRelu,
  kClamp,
  kLeakyRelu,
  kSigmoid,
  kTanh,
  kSilu,
  kHardswish,
  kHardsigmoid,
  kMish,
  kSoftplus,
  kElu,
  kGelu,
  kGeluTanh,
  kNeg,
  kAbs,
  kSqrt,
  kRsqrt,
  kExp,
  kLog,
  kReciprocal,
  kRound,
  kFloor,
  kCeil,
  kTrunc,
  kSign,
  kNot,
  kIsNan,
  kErf,
  kSquare,
  kSin,
  kCos,
  kPowScalar,
  kAffine /* x*a + b */,
  kCastInt,
  kCastBool,
};
enum class Binary : int32_t {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kMaximum,
  kMinimum,
  kPow,
  kRemainder,
  kFloorDivide,
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kAnd,
  kOr,
  kXor,
};
enum class Reduce : int32_t { kMean, kSum, kMeanAbs, kSumAbs, kSumSquares, kL2, kMax, kMin, kMaxAbs };

// y = f(x; a, b) on one plane; y may be x. Pads of y stay zero.
using PlaneUnaryFn = void (*)(Unary, float a, float b, const PlaneShape&, const float* x, float* y);
// y = f(x0, x1) on one plane, then clamp. A null operand stands for the constant plane of value `scalar`.
using PlaneBinaryFn = void (*)(Binary, Clamp, const PlaneShape&, const float* x0, const float* x1, float scalar,
                               float* y);
using PlaneFillFn = void (*)(const PlaneShape&, float value, float* y);
// y[p] = reduction over the pixels of plane x[p], in one fixed order (block lanes, then a fixed tree).
using PlaneReduceFn = void (*)(Reduce, const PlaneShape&, const float* const* x, int32_t n, float* y);

struct PoolShape {
  PlaneShape in, out;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  int32_t count_include_pad;  // average only
  int32_t pad_bottom, pad_right;
  int32_t divisor;  // average only; 0 = the number of taps
};
using PlanePoolFn = void (*)(const PoolShape&, const float* x,
                             float* y);  // windows that leave the map see -inf (max) or 0
using PlaneAdaptivePoolFn = void (*)(const PlaneShape& in, const PlaneShape& out, bool average, const float* x,
                                     float* y);

// Splits one plane into stride_h * stride_w phase planes `phase_stride` floats apart: phase
// r * stride_w + s holds rows r, r + stride_h, ... and columns s, s + stride_w, ... of the input;
// `phase` gives height, width and pitch of the phase planes (rows or columns beyond the input are zero).
// phase_stride 0: phase 0 alone.
using PhaseSplitFn = void (*)(const PlaneShape& in, const PlaneShape& phase, int32_t stride_h, int32_t stride_w,
                              int64_t phase_stride, const float* x, float* y);

// Contiguous [H][W] floats to a plane and back.
using PlaneLoadFn = void (*)(const PlaneShape&, const float* dense, float* y);
using PlaneStoreFn = void (*)(const PlaneShape&, const float* x, float* dense);

// y[k] = clamp(sum_c w[k][c] * x[c] + bias[k]); c ascends, so that the result does not depend on zeros being skipped.
// Weights are packed from [K][C]; x [C]. Computes panels [first_panel, last_panel) of kLinearPanel outputs.
constexpr int32_t kLinearPanel = 64;
using LinearSizeFn = size_t (*)(int32_t out_features, int32_t in_features);
using LinearPackFn = void (*)(int32_t out_features, int32_t in_features, const float* weights, float* packed);
using LinearFn = void (*)(int32_t out_features, int32_t in_features, const float* packed, const float* bias,
                          const float* x, Clamp, int32_t first_panel, int32_t last_panel, float* y);

// ---- flat tensors -----------------------------------------------------------------------------

constexpr int kMaxRank = 8;
struct Tensor {  // contiguous, one image: the batch dimension is gone
  float* data;
  int32_t rank;
  int64_t shape[kMaxRank];
};
// One operator on flat tensors. ints/floats carry the attributes in the order that
// backends/cpu/flat_ops.py writes them; operands that a node lacks are left out. No allocation:
// `scratch` has the floats that flat_ops.py asks for.
struct FlatCall {
  const Tensor* in;
  int32_t n_in;
  Tensor* out;
  int32_t n_out;
  const int64_t* ints;
  int32_t n_ints;
  const float* floats;
  int32_t n_floats;
  float* scratch;
};
using FlatFn = void (*)(const FlatCall&);
struct FlatOp {
  const char* name;  // as encoded by backends/cpu/flat_ops.py; several IR operators may share one kernel
  FlatFn run;
};

// ---- the table --------------------------------------------------------------------------------

struct QuantizedKernels;  // cpu/quantized_kernels.h
struct Bf16Kernels;       // cpu/bf16_kernels.h

struct KernelTable {
  const char* isa;
  int32_t lanes;
  // Register tiles: live outputs and blocks that the direct kernel handles at once (for the cost model and for
  // splitting work).
  int32_t direct_tile_channels, direct_tile_blocks;
  ConvDirectFn conv_direct;
  SmallMapScratchFn small_map_scratch;
  ConvSmallMapFn conv_small_map;
  ConvDepthwiseFn conv_depthwise;
  ConvDepthwiseStridedFn conv_depthwise_strided;
  bool has_channel_lanes;
  ChannelLanesSizesFn channel_lanes_sizes;
  ChannelLanesPackFn channel_lanes_pack;
  ConvChannelLanesFn conv_channel_lanes;
  bool has_stem;
  StemSizesFn stem_sizes;
  StemPackFn stem_pack;
  ConvStemFn conv_stem;
  bool has_winograd;
  WinogradSizesFn winograd_sizes;
  WinogradPackFn winograd_pack;
  WinogradInputFn winograd_input;
  WinogradOutputFn winograd_output;
  PlaneUnaryFn plane_unary;
  PlaneBinaryFn plane_binary;
  PlaneFillFn plane_fill;
  PlaneReduceFn plane_reduce;
  PlanePoolFn plane_max_pool, plane_avg_pool;
  PlaneAdaptivePoolFn plane_adaptive_pool;
  PhaseSplitFn phase_split;
  PlaneLoadFn plane_load;
  PlaneStoreFn plane_store;
  LinearSizeFn linear_size;
  LinearPackFn linear_pack;
  LinearFn linear;
  const FlatOp* flat_ops;
  int32_t n_flat_ops;
  const QuantizedKernels* quantized;
  const Bf16Kernels* bf16;
};

// Each family fills its part; defined once per ISA in the family's source, e.g. fill_conv_direct_avx512.
#define DYNPRUNE_DECLARE_FAMILIES(ISA)              \
  void fill_conv_direct_##ISA(KernelTable&);        \
  void fill_conv_depthwise_##ISA(KernelTable&);     \
  void fill_conv_channel_lanes_##ISA(KernelTable&); \
  void fill_conv_stem_##ISA(KernelTable&);          \
  void fill_conv_small_map_##ISA(KernelTable&);     \
  void fill_conv_winograd_##ISA(KernelTable&);      \
  void fill_plane_elementwise_##ISA(KernelTable&);  \
  void fill_plane_pooling_##ISA(KernelTable&);      \
  void fill_plane_layout_##ISA(KernelTable&);       \
  void fill_linear_##ISA(KernelTable&);             \
  void fill_flat_ops_##ISA(KernelTable&);
DYNPRUNE_DECLARE_FAMILIES(generic)
DYNPRUNE_DECLARE_FAMILIES(avx2)
DYNPRUNE_DECLARE_FAMILIES(avx512)

}  // namespace dynprune::cpu
