// Maps that hold several channels per 32-bit word: four of int8, two of bf16.
//
// A *group plane* is laid out as a float plane (kernels.h: PlaneShape, store masks, guards of zeros), one word per
// position; channel position i is element i % n of plane i / n. Rows need no pad columns: masks blank out taps that
// leave a row. A map that is not stored whole holds its live channels side by side, in the order of its live list; the
// elements after the last live channel are zero. Zero is zero bits in every element type: pads, fillers and exact
// zeros look the same.
#pragma once

#include <cstdint>

namespace dynprune::cpu {

// A set of group planes, `stride` words apart.
struct GroupPlanes {
  uint32_t* data;  // position (0,0) of plane 0
  int64_t stride;
};

// Readable bytes that must follow the last row of a convolution's weights.
constexpr int kRowOverread = 64;

}  // namespace dynprune::cpu
