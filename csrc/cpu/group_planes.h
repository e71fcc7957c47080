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

// Images have too few channels to fill words. So the map that a first convolution reads may hold *windows* of their
// rows instead: element a of word w at position (y, x) is pixel x * stride_w - pad_left + w * n + a of row y, zero
// beside the image. A kernel of R x S taps becomes one of R x 1 taps on `windows` words per channel. Rows are split
// into stride_h phases. (What would be 49 words of 7x7 taps on three u8 channels are 42.)
struct WindowShape {
  int32_t height, width;     // of the image
  int32_t out_width, pitch;  // words of a row
  int32_t pad_left, stride_h, stride_w;
  int32_t windows;        // words per channel and position
  int64_t phase_stride;   // words between planes of adjoining rows
  int64_t window_stride;  // words between planes of a channel's windows
};

// Readable bytes that must follow the last row of a convolution's weights.
constexpr int kRowOverread = 64;

}  // namespace dynprune::cpu
