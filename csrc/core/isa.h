// Which instruction sets this build has kernels for, which this CPU can run, and the choice.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace dynprune {

// Names of the ISAs that are both built and usable on this CPU, best last: generic, avx2, avx512,
// avx512_vnni (int8 kernels of its own, float kernels of avx512), avx512_bf16 (bf16 kernels too).
std::vector<std::string> available_isas();

// The kernels for `isa`, or for the best usable one when it is empty.
// Throws std::invalid_argument for an unknown name and for an ISA that this CPU lacks.
const cpu::KernelTable& kernel_table(const std::string& isa);

}  // namespace dynprune
