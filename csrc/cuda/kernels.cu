#include "cuda/conv_direct.cuh"
#include "cuda/conv_gemm.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/layout.cuh"
#include "cuda/live_lists.cuh"
#include "cuda/pooling.cuh"
#include "cuda/vectors.cuh"

namespace dynprune::cuda {
namespace {

// Shared memory of a block that every architecture from sm_80 on offers (sm_86, sm_89 and sm_120 have the least).
constexpr size_t kSharedLimit = 99 * 1024;

template <typename T>
std::string launch_gemm(const ConvParams& p, int blocks, void* stream) {
  const size_t shared = gemm_shared_bytes(p.shape.channels, p.batch);
  if (shared > kSharedLimit) {
    return "a batch of " + std::to_string(p.batch) + " images with " + std::to_string(p.shape.channels) +
           " channels needs more shared memory than a block has; split the batch";
  }
  switch (p.layout) {
    case WeightLayout::kByInput:
      return launch(conv_gemm_kernel<T, WeightLayout::kByInput>, blocks, kGemmThreads, shared, stream, p);
    case WeightLayout::kByOutput:
      return launch(conv_gemm_kernel<T, WeightLayout::kByOutput>, blocks, kGemmThreads, shared, stream, p);
    case WeightLayout::kTwoSided:
      return launch(conv_gemm_kernel<T, WeightLayout::kTwoSided>, blocks, kGemmThreads, shared, stream, p);
  }
  return "unknown weight layout";
}

std::string check_conv(const ConvParams& p) {
  const ConvShape& s = p.shape;
  if (p.batch < 1 || s.channels < 1 || s.outputs < 1 || s.taps() < 1 || s.out_pixels() < 1) return "empty convolution";
  if (s.channels > kMaxChannels || s.outputs > kMaxChannels) return "more than 65534 channels";
  if (p.x.channels != s.channels || p.y.channels != s.outputs) return "the maps' channels do not fit the weights";
  return {};
}

}  // namespace

std::string live_lists(const LiveListParams& p, void* stream) {
  if (p.channels > kMaxChannels) return "more than 65534 channels";
  return launch(live_lists_kernel, ceil_div(p.batch, kLiveListWarps), kLiveListWarps * 32, 0, stream, p);
}

std::string conv_gemm(const ConvParams& p, Element element, int blocks, void* stream) {
  if (std::string why = check_conv(p); !why.empty()) return why;
  if (p.groups != 1) return "grouped convolutions are not for the GEMM kernel";
  if (p.layout == WeightLayout::kByOutput && p.x.stored) return "weights by output need an input with all channels";
  return element == Element::kHalf ? launch_gemm<Half>(p, blocks, stream) : launch_gemm<BFloat>(p, blocks, stream);
}

std::string conv_direct(const ConvParams& p, Element element, void* stream) {
  if (std::string why = check_conv(p); !why.empty()) return why;
  if (p.groups < 1 || p.shape.channels % p.groups || p.shape.outputs % p.groups)
    return "channels do not divide into groups";
  const int64_t items = static_cast<int64_t>(p.batch) * p.shape.out_pixels() * p.shape.outputs;
  const int blocks = strided_blocks(items, kDirectThreads);
  return element == Element::kHalf ? launch(conv_direct_kernel<Half>, blocks, kDirectThreads, 0, stream, p)
                                   : launch(conv_direct_kernel<BFloat>, blocks, kDirectThreads, 0, stream, p);
}

std::string pass_through(const PassThroughParams& p, Element element, void* stream) {
  const int blocks = strided_blocks(static_cast<int64_t>(p.batch) * p.y.pixels() * p.y.channels, kLayoutThreads);
  return element == Element::kHalf ? launch(pass_through_kernel<Half>, blocks, kLayoutThreads, 0, stream, p)
                                   : launch(pass_through_kernel<BFloat>, blocks, kLayoutThreads, 0, stream, p);
}

std::string pool2d(const PoolParams& p, Element element, void* stream) {
  const int blocks = strided_blocks(static_cast<int64_t>(p.batch) * p.y.pixels() * p.y.channels, kLayoutThreads);
  return element == Element::kHalf ? launch(pool2d_kernel<Half>, blocks, kLayoutThreads, 0, stream, p)
                                   : launch(pool2d_kernel<BFloat>, blocks, kLayoutThreads, 0, stream, p);
}

std::string spatial_reduce(const SpatialReduceParams& p, Element element, void* stream) {
  const int64_t blocks = static_cast<int64_t>(p.batch) * ceil_div(p.x.channels, 32);
  const size_t shared = kSpatialWarps * 32 * sizeof(float);
  return element == Element::kHalf
             ? launch(spatial_reduce_kernel<Half>, blocks, kSpatialWarps * 32, shared, stream, p)
             : launch(spatial_reduce_kernel<BFloat>, blocks, kSpatialWarps * 32, shared, stream, p);
}

std::string pack_map(const RepackParams& p, Element element, void* stream) {
  const int blocks = strided_blocks(static_cast<int64_t>(p.batch) * p.map.pixels() * p.map.channels, kLayoutThreads);
  return element == Element::kHalf ? launch(pack_map_kernel<Half>, blocks, kLayoutThreads, 0, stream, p)
                                   : launch(pack_map_kernel<BFloat>, blocks, kLayoutThreads, 0, stream, p);
}

std::string unpack_map(const RepackParams& p, Element element, void* stream) {
  const int blocks = strided_blocks(static_cast<int64_t>(p.batch) * p.map.pixels() * p.map.channels, kLayoutThreads);
  return element == Element::kHalf ? launch(unpack_map_kernel<Half>, blocks, kLayoutThreads, 0, stream, p)
                                   : launch(unpack_map_kernel<BFloat>, blocks, kLayoutThreads, 0, stream, p);
}

std::string linear(const LinearParams& p, void* stream) {
  const int64_t results = static_cast<int64_t>(p.rows) * p.outputs;
  return launch(linear_kernel, (results + kVectorWarps - 1) / kVectorWarps, kVectorWarps * 32, 0, stream, p);
}

std::string reduce(const ReduceParams& p, void* stream) {
  const int64_t results = static_cast<int64_t>(p.outer) * p.inner;
  return launch(reduce_kernel, (results + kVectorWarps - 1) / kVectorWarps, kVectorWarps * 32, 0, stream, p);
}

std::string sort(const SortParams& p, void* stream) {
  if (p.length > kMaxSortLength) return "lines longer than " + std::to_string(kMaxSortLength) + " elements";
  const size_t shared = static_cast<size_t>(p.length) * sizeof(float);
  return launch(sort_kernel, static_cast<int64_t>(p.outer) * p.inner, kSortThreads, shared, stream, p);
}

#if defined(__CUDACC__)
Probe probe() {
  Probe result;
  cudaRuntimeGetVersion(&result.runtime_version);
  if (cudaDriverGetVersion(&result.driver_version) != cudaSuccess) result.driver_version = 0;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    result.reason = cudaGetErrorString(error);
    cudaGetLastError();  // leave no error behind for the next call
  } else if (count == 0) {
    result.reason = "no CUDA device";
  }
  result.devices = error == cudaSuccess ? count : 0;
  return result;
}

std::string device_facts(int device, DeviceFacts& facts) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return cudaGetErrorString(error);
  }
  facts.name = properties.name;
  facts.major = properties.major;
  facts.minor = properties.minor;
  facts.multiprocessors = properties.multiProcessorCount;
  return {};
}
#else
Probe probe() {
  Probe result;
  result.devices = 1;
  result.emulated = true;
  return result;
}

std::string device_facts(int, DeviceFacts& facts) {
  facts = DeviceFacts{"CTA emulator", 9, 0, 2};
  return {};
}
#endif

}  // namespace dynprune::cuda
