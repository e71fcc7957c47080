// The CUDA kernels' only interface: parameter structs and launch functions. No CUDA types, so that the binding
// and the tests need no CUDA headers. All pointers are device memory; `stream` is a cudaStream_t.
//
// Maps are channels-last: [batch][h][w][pitch] elements (fp16, bf16, or fp32 for tf32 products), pitch = C up to a
// multiple of 8. With `stored` null the row of a pixel holds all C channels; otherwise it holds those of the image's
// channel set (index_math.h), packed at the row's start, and the rest of the row is undefined. Vectors are fp32 [N, C].
//
// No kernel uses atomics on floats, none synchronises with the host, and the order of additions for one result
// depends on the shapes and on that image's sets only, never on the batch.
#pragma once
#include <cstdint>
#include <string>

#include "cuda/index_math.h"

namespace dynprune::cuda {

// Counts changes of the kernels that change their speed: measured times of other versions are not used.
constexpr int kKernelsVersion = 3;

enum class Element : int { kHalf = 0, kBFloat = 1, kFloat = 2 };  // fp32 is multiplied as tf32

struct MapRef {
  void* data = nullptr;
  const void* stored = nullptr;  // channel sets, one per image; null = all channels
  int channels = 0;
  int h = 0, w = 0;

  DYNPRUNE_HD int pitch() const { return round_up(channels, kChunk); }
  DYNPRUNE_HD int pixels() const { return h * w; }
};

enum class SpatialKind : int { kMean, kSum, kMeanAbs, kSumAbs, kSumSquares, kL2, kMax, kMin, kMaxAbs };
constexpr int kMaxFusedReductions = 4;

// Reductions of a convolution's output, of what is stored and while it is stored: one result per group of 32 pixels
// (spatial_reduction.cuh), from which spatial_reduce makes those of the map.
struct GroupResults {
  float* data = nullptr;  // [count][batch][groups][K]; only channels that are computed and stored are written
  int count = 0;
  SpatialKind kinds[kMaxFusedReductions] = {};
};

struct LiveListParams {
  const uint8_t* mask;  // [batch, channels], 0 = not in the set
  void* sets;           // set_record_bytes(channels) per image
  int batch, channels;
};

// How a convolution's weights are stored, and with it which side is gathered (index_math.h).
enum class WeightLayout : int {
  kByInput = 0,   // rows of outputs, picked by the input's stored channels; outputs in aligned groups of 8
  kByOutput = 1,  // rows of inputs, picked by the computed outputs; the input stores all channels
  kTwoSided = 2,  // by input, with single elements picked by the computed outputs
  kDense = 3,     // by input, all inputs and all outputs: tiles of pixels run on from image to image
};

// v = sum + bias; clamp(inner); * gate; + shift; + residual; clamp(outer)
struct Epilogue {
  const float* bias;   // [K] or null
  const float* gate;   // [batch, K] or null
  const float* shift;  // [K], [batch, K] or null
  int shift_stride;    // from one image's shift to the next: 0 or K
  MapRef residual;     // data null = none
  float inner_low, inner_high, outer_low, outer_high;
};

struct ConvParams {
  MapRef x, y;
  const void* computed;  // channel sets of the outputs to compute; null = all
  const void* weights;   // elements, in `layout`; for conv_direct fp32 [taps][C / groups][K]
  Epilogue epilogue;
  ConvShape shape;
  WeightLayout layout;
  int batch, groups;
  // The sum over K is cut into `segments` that are added up in order: the bits of a result depend on their number
  // alone. With `partials`, gemm_partials() floats, every segment is a block's work of its own and conv_gemm_finish
  // must follow.
  int segments;
  float* partials;
  GroupResults group_results;
};

// Stored channels that a convolution does not compute: y = clamp(shift + residual, outer).
struct PassThroughParams {
  MapRef y;
  const void* computed;
  Epilogue epilogue;
  int batch;
};

enum class PoolKind : int { kMax = 0, kAverage = 1 };

struct PoolParams {
  MapRef x, y;
  PoolKind kind;
  int kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right, dilation_h, dilation_w;
  int count_include_pad, divisor;
  int adaptive;  // windows follow from the sizes alone
  int batch;
};

struct SpatialReduceParams {
  MapRef x;
  float* y;  // [batch, C]; 0 for channels that are not stored
  SpatialKind kind;
  const float* group_results;  // of one kind, from the convolution that made x; or null
  const void* computed;        // channel sets of the channels that have group results; null = all
  int batch;
};

// Between maps and fp32 [N, C, H, W]; channels that are not stored read as 0 and are not written.
struct RepackParams {
  MapRef map;
  float* planes;
  int batch;
};

struct LinearParams {
  const float* x;        // [rows, features]
  const float* weights;  // [outputs, features]
  const float* bias;     // [outputs] or null
  float* y;              // [rows, outputs]
  float low, high;
  int rows, features, outputs;
};

enum class ReduceKind : int { kSum, kMean, kMax, kMin, kProd, kL1, kL2 };

struct ReduceParams {
  const float* x;  // [outer, length, inner]
  float* y;        // [outer, inner]
  ReduceKind kind;
  int outer, length, inner;
};

// The first `keep` elements of each sorted line, NaN largest, of equal elements the lower index first.
struct SortParams {
  const float* x;  // [outer, length, inner]
  float* values;   // [outer, keep, inner]
  int64_t* index;  // [outer, keep, inner]
  int outer, length, inner, keep, descending;
};
constexpr int kMaxSortLength = 8192;

// Groups of pixels of one image.
DYNPRUNE_HD constexpr int group_count(int pixels) { return ceil_div(pixels, kGroupPixels); }
// Whether a convolution can make group results. Dense tiles run on from image to image, so that their groups are those
// of one image only where nothing is left over.
DYNPRUNE_HD constexpr bool makes_group_results(WeightLayout layout, int batch, int pixels) {
  return layout != WeightLayout::kDense || batch == 1 || pixels % kGroupPixels == 0;
}

// Launches return an empty string, or why the kernel cannot run.
std::string live_lists(const LiveListParams& p, void* stream);
std::string conv_gemm(const ConvParams& p, Element element, int blocks, void* stream);
std::string conv_gemm_finish(const ConvParams& p, Element element, int blocks, void* stream);
// Floats of `partials` for one convolution.
int64_t gemm_partials(const ConvShape& shape, int batch, int segments);
std::string conv_direct(const ConvParams& p, Element element, void* stream);
std::string pass_through(const PassThroughParams& p, Element element, void* stream);
std::string pool2d(const PoolParams& p, Element element, void* stream);
std::string spatial_reduce(const SpatialReduceParams& p, Element element, void* stream);
std::string pack_map(const RepackParams& p, Element element, void* stream);
std::string unpack_map(const RepackParams& p, Element element, void* stream);
std::string linear(const LinearParams& p, void* stream);
std::string reduce(const ReduceParams& p, void* stream);
std::string sort(const SortParams& p, void* stream);

// What this process can use; never throws.
struct Probe {
  int devices = 0;     // 0 with the reason below
  std::string reason;  // empty when there is a device
  int runtime_version = 0, driver_version = 0;
  bool emulated = false;
};
Probe probe();

struct DeviceFacts {
  std::string name;
  int major = 0, minor = 0, multiprocessors = 0;
};
// Facts about one device, or why they cannot be had.
std::string device_facts(int device, DeviceFacts& facts);

}  // namespace dynprune::cuda
