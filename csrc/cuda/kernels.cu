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

// Calls f with a value of the element's type.
template <typename F>
std::string by_element(Element element, F f) {
  switch (element) {
    case Element::kHalf:
      return f(Half{});
    case Element::kBFloat:
      return f(BFloat{});
    case Element::kFloat:
      return f(float{});
  }
  return "unknown element type";
}

template <WeightLayout L>
struct LayoutTag {
  static constexpr WeightLayout value = L;
};

// Calls f with the layout as a type.
template <typename F>
std::string by_layout(WeightLayout layout, F f) {
  switch (layout) {
    case WeightLayout::kByInput:
      return f(LayoutTag<WeightLayout::kByInput>{});
    case WeightLayout::kByOutput:
      return f(LayoutTag<WeightLayout::kByOutput>{});
    case WeightLayout::kTwoSided:
      return f(LayoutTag<WeightLayout::kTwoSided>{});
    case WeightLayout::kDense:
      return f(LayoutTag<WeightLayout::kDense>{});
  }
  return "unknown weight layout";
}

std::string check_shared(size_t bytes, const ConvParams& p) {
  if (bytes <= kSharedLimit) return {};
  return "a batch of " + std::to_string(p.batch) + " images with " + std::to_string(p.shape.channels) +
         " channels needs more shared memory than a block has; split the batch";
}

std::string check_conv(const ConvParams& p) {
  const ConvShape& s = p.shape;
  if (p.batch < 1 || s.channels < 1 || s.outputs < 1 || s.taps() < 1 || s.out_pixels() < 1) return "empty convolution";
  if (s.channels > kMaxChannels || s.outputs > kMaxChannels) return "more than 65534 channels";
  if (p.x.channels != s.channels || p.y.channels != s.outputs) return "the maps' channels do not fit the weights";
  return {};
}

std::string check_gemm(const ConvParams& p) {
  if (std::string why = check_conv(p); !why.empty()) return why;
  if (p.groups != 1) return "grouped convolutions are not for the GEMM kernel";
  const bool dense = p.layout == WeightLayout::kDense;
  if ((dense || p.layout == WeightLayout::kByOutput) && p.x.stored) {
    return "weights by output and dense convolutions need an input with all channels";
  }
  if (dense && p.computed) return "dense convolutions compute all outputs";
  if (p.segments < 1) return "no segments";
  if (p.group_results.count < 0 || p.group_results.count > kMaxFusedReductions) return "too many reductions";
  if (p.group_results.count && !makes_group_results(p.layout, p.batch, p.shape.out_pixels())) {
    return "tiles of several images are not reduced";
  }
  const int64_t tiles = gemm_partials(p.shape, p.batch, p.segments) / (kTile * kTile);
  const int64_t rows = static_cast<int64_t>(p.batch) * p.shape.out_pixels();
  if (std::max(tiles, rows) > 0x7FFFFF00) return "too many tiles; split the batch";
  return {};
}

}  // namespace

std::string live_lists(const LiveListParams& p, void* stream) {
  if (p.channels > kMaxChannels) return "more than 65534 channels";
  return launch(live_lists_kernel, ceil_div(p.batch, kLiveListWarps), kLiveListWarps * 32, 0, stream, p);
}

std::string conv_gemm(const ConvParams& p, Element element, int blocks, void* stream) {
  if (std::string why = check_gemm(p); !why.empty()) return why;
  const size_t shared = gemm_shared_bytes(p.shape.channels, p.batch, p.segments > 1 && !p.partials);
  if (std::string why = check_shared(shared, p); !why.empty()) return why;
  return by_element(element, [&](auto zero) {
    using T = decltype(zero);
    return by_layout(p.layout, [&](auto tag) {
      return launch(conv_gemm_kernel<T, decltype(tag)::value>, blocks, kGemmThreads, shared, stream, p);
    });
  });
}

std::string conv_gemm_finish(const ConvParams& p, Element element, int blocks, void* stream) {
  if (std::string why = check_gemm(p); !why.empty()) return why;
  if (!p.partials) return "there are no partial sums to finish";
  const size_t shared = finish_kept_offset(p.batch) + (p.group_results.count ? kKeptBytes : 0);
  if (std::string why = check_shared(shared, p); !why.empty()) return why;
  return by_element(element, [&](auto zero) {
    using T = decltype(zero);
    return by_layout(p.layout, [&](auto tag) {
      return launch(conv_gemm_finish_kernel<T, decltype(tag)::value>, blocks, kGemmThreads, shared, stream, p);
    });
  });
}

int64_t gemm_partials(const ConvShape& shape, int batch, int segments) {
  const int64_t tiles = static_cast<int64_t>(ceil_div(shape.out_pixels(), kTile)) * ceil_div(shape.outputs, kTile);
  return tiles * batch * segments * kTile * kTile;
}

std::string conv_direct(const ConvParams& p, Element element, void* stream) {
  if (std::string why = check_conv(p); !why.empty()) return why;
  if (p.groups < 1 || p.shape.channels % p.groups || p.shape.outputs % p.groups)
    return "channels do not divide into groups";
  const int64_t items = static_cast<int64_t>(p.batch) * p.shape.out_pixels() * p.shape.outputs;
  const int blocks = strided_blocks(items, kDirectThreads);
  return by_element(element, [&](auto zero) {
    return launch(conv_direct_kernel<decltype(zero)>, blocks, kDirectThreads, 0, stream, p);
  });
}

std::string pass_through(const PassThroughParams& p, Element element, void* stream) {
  const int blocks = strided_blocks(static_cast<int64_t>(p.batch) * p.y.pixels() * p.y.channels, kLayoutThreads);
  return by_element(element, [&](auto zero) {
    return launch(pass_through_kernel<decltype(zero)>, blocks, kLayoutThreads, 0, stream, p);
  });
}

std::string pool2d(const PoolParams& p, Element element, void* stream) {
  const int blocks = strided_blocks(static_cast<int64_t>(p.batch) * p.y.pixels() * p.y.channels, kLayoutThreads);
  return by_element(
      element, [&](auto zero) { return launch(pool2d_kernel<decltype(zero)>, blocks, kLayoutThreads, 0, stream, p); });
}

std::string spatial_reduce(const SpatialReduceParams& p, Element element, void* stream) {
  const int64_t blocks = static_cast<int64_t>(p.batch) * ceil_div(p.x.channels, 32);
  const size_t shared = kSpatialWarps * 32 * sizeof(float);
  return by_element(element, [&](auto zero) {
    return launch(spatial_reduce_kernel<decltype(zero)>, blocks, kSpatialWarps * 32, shared, stream, p);
  });
}

std::string pack_map(const RepackParams& p, Element element, void* stream) {
  const int blocks = strided_blocks(static_cast<int64_t>(p.batch) * p.map.pixels() * p.map.channels, kLayoutThreads);
  return by_element(element, [&](auto zero) {
    return launch(pack_map_kernel<decltype(zero)>, blocks, kLayoutThreads, 0, stream, p);
  });
}

std::string unpack_map(const RepackParams& p, Element element, void* stream) {
  const int blocks = strided_blocks(static_cast<int64_t>(p.batch) * p.map.pixels() * p.map.channels, kLayoutThreads);
  return by_element(element, [&](auto zero) {
    return launch(unpack_map_kernel<decltype(zero)>, blocks, kLayoutThreads, 0, stream, p);
  });
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
