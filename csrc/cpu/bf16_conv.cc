// The bf16 convolution of one ISA.
#include "cpu/vec.h"

#if defined(__AVX512BF16__)
#include "cpu/bf16_conv_avx512.h"
#else
#include "cpu/bf16_conv_portable.h"
#endif

namespace dynprune::cpu {

void DYNPRUNE_ISA_NAME(fill_bf16_conv)(Bf16Kernels& table) {
#if defined(__AVX512BF16__)
  table.isa = "bf16";
#else
  table.isa = "portable";
#endif
  table.conv_scratch = bf16_conv_scratch;
  table.conv = bf16_conv;
}

}  // namespace dynprune::cpu
