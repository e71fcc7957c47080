// The int8 Winograd convolution of one ISA, where there is one.
#include "cpu/vec.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#include "cpu/quantized_winograd_vnni.h"
#else
#include "cpu/quantized_kernels.h"
#endif

namespace dynprune::cpu {

void DYNPRUNE_ISA_NAME(fill_quantized_winograd)(QuantizedKernels& table) {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
  table.winograd_scratch = quantized_winograd_scratch;
  table.winograd = quantized_winograd;
#else
  table.winograd_scratch = nullptr;
  table.winograd = nullptr;
#endif
}

}  // namespace dynprune::cpu
