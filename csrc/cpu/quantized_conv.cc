// The int8 convolution of one ISA.
#include "cpu/vec.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#include "cpu/quantized_conv_vnni.h"
#else
#include "cpu/quantized_conv_portable.h"
#endif

namespace dynprune::cpu {

void DYNPRUNE_ISA_NAME(fill_quantized_conv)(QuantizedKernels& table) {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
  table.isa = "vnni";
  table.tile_channels = kTileRows;
  table.tile_blocks = max_vectors(kTileRows);
#else
  table.isa = "portable";
  table.tile_channels = 1;
  table.tile_blocks = 1;
#endif
  table.conv_scratch = quantized_conv_scratch;
  table.conv = quantized_conv;
}

}  // namespace dynprune::cpu
