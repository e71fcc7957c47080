#include "core/isa.h"

#include <stdexcept>

#include "cpu/bf16_kernels.h"
#include "cpu/quantized_kernels.h"

namespace dynprune {
namespace {

struct IsaEntry {
  const char* name;
  bool (*usable)();
  void (*fill)(cpu::KernelTable&);
};

// FLOAT, INT8 and BF16 name the ISAs whose kernels of these types this one uses.
#define DYNPRUNE_ISA_ENTRY(ISA, FLOAT, INT8, BF16, LANES, USABLE) \
  {#ISA, [] { return static_cast<bool>(USABLE); },                \
   [](cpu::KernelTable& table) {                                  \
     table.isa = #ISA;                                            \
     table.lanes = LANES;                                         \
     cpu::fill_conv_direct_##FLOAT(table);                        \
     cpu::fill_conv_depthwise_##FLOAT(table);                     \
     cpu::fill_conv_channel_lanes_##FLOAT(table);                 \
     cpu::fill_conv_stem_##FLOAT(table);                          \
     cpu::fill_conv_small_map_##FLOAT(table);                     \
     cpu::fill_conv_winograd_##FLOAT(table);                      \
     cpu::fill_plane_elementwise_##FLOAT(table);                  \
     cpu::fill_plane_pooling_##FLOAT(table);                      \
     cpu::fill_plane_layout_##FLOAT(table);                       \
     cpu::fill_linear_##FLOAT(table);                             \
     cpu::fill_flat_ops_##FLOAT(table);                           \
     static const cpu::QuantizedKernels quantized = [] {          \
       cpu::QuantizedKernels kernels{};                           \
       cpu::fill_quantized_conv_##INT8(kernels);                  \
       cpu::fill_quantized_winograd_##INT8(kernels);              \
       cpu::fill_quantized_depthwise_##INT8(kernels);             \
       cpu::fill_quantized_maps_##INT8(kernels);                  \
       return kernels;                                            \
     }();                                                         \
     table.quantized = &quantized;                                \
     static const cpu::Bf16Kernels bf16 = [] {                    \
       cpu::Bf16Kernels kernels{};                                \
       cpu::fill_bf16_conv_##BF16(kernels);                       \
       cpu::fill_bf16_depthwise_##BF16(kernels);                  \
       cpu::fill_bf16_linear_##BF16(kernels);                     \
       cpu::fill_bf16_maps_##BF16(kernels);                       \
       cpu::fill_bf16_winograd_##BF16(kernels);                   \
       return kernels;                                            \
     }();                                                         \
     table.bf16 = &bf16;                                          \
   }}

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi"); }
#endif

const IsaEntry kIsas[] = {
    DYNPRUNE_ISA_ENTRY(generic, generic, generic, generic, 4, true),
#if defined(__x86_64__)
    DYNPRUNE_ISA_ENTRY(avx2, avx2, avx2, avx2, 8, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
    DYNPRUNE_ISA_ENTRY(avx512, avx512, avx512, avx512, 16, has_avx512()),
    DYNPRUNE_ISA_ENTRY(avx512_vnni, avx512, avx512_vnni, avx512, 16, has_vnni()),
    DYNPRUNE_ISA_ENTRY(avx512_bf16, avx512, avx512_vnni, avx512_bf16, 16,
                       has_vnni() && __builtin_cpu_supports("avx512bf16")),
#endif
};
constexpr size_t kIsaCount = sizeof(kIsas) / sizeof(kIsas[0]);

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const IsaEntry& entry : kIsas)
    if (entry.usable()) names.emplace_back(entry.name);
  return names;
}

const cpu::KernelTable& kernel_table(const std::string& isa) {
  static cpu::KernelTable tables[kIsaCount] = {};
  static const bool filled = [] {
    for (size_t i = 0; i < kIsaCount; ++i)
      if (kIsas[i].usable()) kIsas[i].fill(tables[i]);
    return true;
  }();
  (void)filled;
  for (size_t i = kIsaCount; i-- > 0;) {
    if (isa.empty() ? !kIsas[i].usable() : isa != kIsas[i].name) continue;
    if (!kIsas[i].usable())
      throw std::invalid_argument("this CPU cannot run the instruction set '" + isa +
                                  "'; usable here: " + joined(available_isas()));
    return tables[i];
  }
  throw std::invalid_argument("unknown instruction set '" + isa + "'; usable here: " + joined(available_isas()));
}

}  // namespace dynprune
