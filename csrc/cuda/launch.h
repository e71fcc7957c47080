// Launching a kernel whose only argument is a struct; on the emulator where there is no CUDA compiler.
#pragma once
#include <algorithm>
#include <string>

#include "cuda/device.h"

namespace dynprune::cuda {

// Blocks for a loop over `items` elements that every thread strides through.
inline int strided_blocks(int64_t items, int threads) {
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>((items + threads - 1) / threads, 1), 1 << 16));
}

#if defined(__CUDACC__)
template <typename Params>
std::string launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared_bytes, void* stream,
                   const Params& params) {
  if (blocks < 1 || blocks > 0x7FFFFFFF) return "a grid of " + std::to_string(blocks) + " blocks";
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(params);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? std::string() : cudaGetErrorString(error);
}
#else
template <typename Params>
std::string launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared_bytes, void*,
                   const Params& params) {
  try {
    emulator::launch(static_cast<int>(blocks), threads, shared_bytes, [&] { kernel(params); });
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}
#endif

}  // namespace dynprune::cuda
