// Windows of an image's rows (group_planes.h: WindowShape).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/group_planes.h"
#include "cpu/kernels.h"
#include "cpu/vec.h"
#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace dynprune::cpu {
namespace {

#if defined(__AVX512VBMI__)
DYNPRUNE_INLINE __m512i gather_elements(__m512i index, __m512i line, int8_t) {
  return _mm512_permutexvar_epi8(index, line);
}
#endif
#if defined(__AVX512BW__)
DYNPRUNE_INLINE __m512i gather_elements(__m512i index, __m512i line, int16_t) {
  return _mm512_permutexvar_epi16(index, line);
}

// y[j] = elements line[j * stride], line[j * stride + 1], ... as one word, for 16 j at once: they lie within a vector.
template <class Element>
void store_windows_by_vectors(const Element* line, int32_t stride, int32_t width, uint32_t* y) {
  constexpr int kPerWord = 4 / sizeof(Element), kPerVector = 64 / sizeof(Element);
  alignas(64) Element index[kPerVector];
  for (int i = 0; i < kPerVector; ++i) index[i] = static_cast<Element>(i / kPerWord * stride + i % kPerWord);
  const __m512i gather = _mm512_load_si512(index);
  for (int32_t j = 0; j < width; j += kBlock) {
    const int32_t left = width - j;
    const auto inside = static_cast<__mmask16>(left >= kBlock ? 0xffff : (1 << left) - 1);
    const __m512i elements = _mm512_loadu_si512(line + static_cast<int64_t>(j) * stride);
    _mm512_mask_storeu_epi32(y + j, inside, gather_elements(gather, elements, Element{}));
  }
}
#endif

// One word per position: element a is line[j * stride + a].
template <class Element>
void store_windows(const Element* line, int32_t stride, int32_t width, uint32_t* y) {
  constexpr int kPerWord = 4 / sizeof(Element), kBits = 8 * sizeof(Element);
#if defined(__AVX512VBMI__)
  constexpr bool kVectors = true;
#elif defined(__AVX512BW__)
  constexpr bool kVectors = sizeof(Element) == 2;
#else
  constexpr bool kVectors = false;
#endif
  if constexpr (kVectors) {
#if defined(__AVX512BW__)
    constexpr int kPerVector = 64 / sizeof(Element);
    if (stride * (kBlock - 1) + kPerWord <= kPerVector) return store_windows_by_vectors(line, stride, width, y);
#endif
  }
  constexpr uint32_t kElement = (1u << kBits) - 1;
  for (int64_t j = 0; j < width; ++j) {
    uint32_t word = 0;
    for (int a = 0; a < kPerWord; ++a) word |= (static_cast<uint32_t>(line[j * stride + a]) & kElement) << (a * kBits);
    y[j] = word;
  }
}

// Elements of the line that a row is narrowed into: pads before and after it, and what vectors read beyond.
DYNPRUNE_INLINE int64_t window_line_size(const WindowShape& shape, int32_t per_word) {
  const int64_t row = static_cast<int64_t>(shape.pad_left) + shape.width + kBlock;
  const int64_t read = static_cast<int64_t>(shape.out_width + kBlock) * shape.stride_w + shape.windows * per_word + 64;
  return row > read ? row : read;
}

// Windows of every row of one channel. narrow(row, out) makes the elements of one row of the image and may write
// zeros after them, to a whole block; `line` has window_line_size elements.
template <class Element, class Narrow>
void image_windows(const WindowShape& shape, const float* x, uint32_t* y, Element* line, const Narrow& narrow) {
  constexpr int kPerWord = 4 / sizeof(Element);
  const int64_t size = window_line_size(shape, kPerWord);
  for (int64_t i = 0; i < size; ++i) line[i] = 0;
  const int64_t rows = (static_cast<int64_t>(shape.height) + shape.stride_h - 1) / shape.stride_h * shape.stride_h;
  for (int64_t row = 0; row < rows; ++row) {
    if (row < shape.height)
      narrow(x + row * shape.width, line + shape.pad_left);
    else  // below the image, where the phases are not equally high
      for (int64_t i = 0; i < size; ++i) line[i] = 0;
    uint32_t* target = y + row % shape.stride_h * shape.phase_stride + row / shape.stride_h * shape.pitch;
    for (int32_t w = 0; w < shape.windows; ++w)
      store_windows(line + w * kPerWord, shape.stride_w, shape.out_width, target + w * shape.window_stride);
  }
}

}  // namespace
}  // namespace dynprune::cpu
