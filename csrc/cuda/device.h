// What kernels use of the machine. Under nvcc these are PTX instructions; under a host compiler, and for
// the same kernel sources, functions of the CTA emulator.
#pragma once
#include <cstring>

#include "cuda/index_math.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace dynprune::cuda {

using Half = __half;
using BFloat = __nv_bfloat16;
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T low, high;
};

__device__ __forceinline__ float to_float(Half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(BFloat v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(float v) { return v; }
template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ Half from_float<Half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ BFloat from_float<BFloat>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char dynprune_shared[];
  return dynprune_shared;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Starts copying `bytes` of 16 bytes to shared memory and zeroing the rest; both addresses are multiples of 16.
__device__ __forceinline__ void copy16_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups of copies are in flight.
template <int N>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l passes the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// A register of elements T as the tensor cores take it: fp32 is rounded to the nearest tf32.
template <typename T>
__device__ __forceinline__ uint32_t operand(uint32_t raw) {
  return raw;
}
template <>
__device__ __forceinline__ uint32_t operand<float>(uint32_t raw) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "r"(raw));
  return rounded;
}

// c[16x8] += a[16xK] b[Kx8] in the fragment layouts of mma.sync, fp32 sums; K = 16, for fp32 8.
template <typename T>
__device__ __forceinline__ void multiply_accumulate(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_accumulate<Half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                          uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_accumulate<BFloat>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_accumulate<float>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                           uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace dynprune::cuda
#else
#include "tests/cuda/cta_emulator.h"
#endif

namespace dynprune::cuda {

constexpr unsigned kWarp = 0xFFFFFFFFu;

// Clamps that let NaN pass.
__device__ __forceinline__ float clamp(float v, float low, float high) { return v < low ? low : v > high ? high : v; }

// 16 bytes of elements as one unit.
template <typename T, int N>
__device__ __forceinline__ uint4 packed(const T (&elements)[N]) {
  static_assert(N * sizeof(T) == sizeof(uint4), "a unit is 16 bytes");
  uint4 unit;
  memcpy(&unit, elements, sizeof(unit));
  return unit;
}

}  // namespace dynprune::cuda
