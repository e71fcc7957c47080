// Images as windows of their rows (cpu/group_planes.h): shapes to test, and which pixel every element holds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/group_planes.h"

namespace dynprune::cpu {

inline std::vector<WindowShape> window_cases() {
  std::vector<WindowShape> cases;
  for (int32_t stride_w : {1, 2, 3, 5})
    for (int32_t width : {5, 16, 37}) {
      WindowShape shape{};
      shape.height = 7;
      shape.width = width;
      shape.stride_h = stride_w == 1 ? 1 : 2;
      shape.stride_w = stride_w;
      shape.pad_left = stride_w - 1;
      shape.windows = 2;
      shape.out_width = shape.pitch = (width + stride_w - 1) / stride_w;
      shape.phase_stride = int64_t{(shape.height + 1)} * shape.pitch;
      shape.window_stride = shape.phase_stride * shape.stride_h;
      cases.push_back(shape);
    }
  return cases;
}

inline std::string name_of(const WindowShape& shape) {
  return "windows of " + std::to_string(shape.width) + " columns, stride " + std::to_string(shape.stride_w);
}

// Calls check(row, column of the image, words that the element is in) for every element of the windows; pixels outside
// the image have row or column -1.
template <class Check>
void for_each_window_element(const WindowShape& shape, int32_t per_word, const uint32_t* y, const Check& check) {
  for (int32_t row = 0; row < (shape.height + shape.stride_h - 1) / shape.stride_h * shape.stride_h; ++row)
    for (int32_t j = 0; j < shape.out_width; ++j)
      for (int32_t i = 0; i < shape.windows * per_word; ++i) {
        const int32_t column = j * shape.stride_w - shape.pad_left + i;
        const bool inside = row < shape.height && column >= 0 && column < shape.width;
        const uint32_t word = y[i / per_word * shape.window_stride + row % shape.stride_h * shape.phase_stride +
                                int64_t{row / shape.stride_h} * shape.pitch + j];
        check(inside ? row : -1, inside ? column : -1, word >> (32 / per_word * (i % per_word)));
      }
}

}  // namespace dynprune::cpu
