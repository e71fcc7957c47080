// Planes to and from dense rows, and to the phase planes that stride-2 convolutions read.
#include "kernels.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

DYNPRUNE_INLINE void copy_row(int64_t n, const float* x, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i));
  if (i < n) store_first(y + i, n - i, load_first(x + i, n - i));
}

DYNPRUNE_INLINE void zero_row(int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes) store_first(y + i, n - i, zero());
}

void plane_load(const PlaneShape& shape, const float* dense, float* y) {
  for (int64_t row = 0; row < shape.height; ++row) {
    copy_row(shape.width, dense + row * shape.width, y + row * shape.pitch);
  }
}

void plane_store(const PlaneShape& shape, const float* x, float* dense) {
  for (int64_t row = 0; row < shape.height; ++row) {
    copy_row(shape.width, x + row * shape.pitch, dense + row * shape.width);
  }
}

// One row of `width` pixels into the even and, unless null, the odd columns, `phase_width` each.
DYNPRUNE_INLINE void split_row_by_two(int64_t width, int64_t phase_width, const float* x, float* y_even, float* y_odd) {
  int64_t j = 0;
  Vec even, odd;
  for (; 2 * (j + kLanes) <= width && j + kLanes <= phase_width; j += kLanes) {
    deinterleave(load(x + 2 * j), load(x + 2 * j + kLanes), even, odd);
    store(y_even + j, even);
    if (y_odd) store(y_odd + j, odd);
  }
  for (; j < phase_width; j += kLanes) {
    const int64_t left = width - 2 * j;
    const Vec first = left > 0 ? load_first(x + 2 * j, left) : zero();
    const Vec second = left > kLanes ? load_first(x + 2 * j + kLanes, left - kLanes) : zero();
    deinterleave(first, second, even, odd);
    store_first(y_even + j, phase_width - j, even);
    if (y_odd) store_first(y_odd + j, phase_width - j, odd);
  }
}

void phase_split(const PlaneShape& in, const PlaneShape& phase, int32_t stride_h, int32_t stride_w,
                 int64_t phase_stride, const float* x, float* y) {
  const bool first_only = phase_stride == 0;
  const int32_t rows = first_only ? 1 : stride_h, columns = first_only ? 1 : stride_w;
  for (int32_t r = 0; r < rows; ++r) {
    float* phases = y + r * stride_w * phase_stride;  // (r, 0), (r, 1), ...
    for (int64_t i = 0; i < phase.height; ++i) {
      const int64_t row = i * stride_h + r;
      const float* source = x + row * in.pitch;
      float* target = phases + i * phase.pitch;
      if (row >= in.height) {
        for (int32_t s = 0; s < columns; ++s) zero_row(phase.width, target + s * phase_stride);
      } else if (stride_w == 2) {
        split_row_by_two(in.width, phase.width, source, target, first_only ? nullptr : target + phase_stride);
      } else {
        for (int32_t s = 0; s < columns; ++s) {
          for (int64_t j = 0; j < phase.width; ++j) {
            const int64_t column = j * stride_w + s;
            target[s * phase_stride + j] = column < in.width ? source[column] : 0.0f;
          }
        }
      }
    }
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_plane_layout)(KernelTable& table) {
  table.phase_split = phase_split;
  table.plane_load = plane_load;
  table.plane_store = plane_store;
}

}  // namespace dynprune::cpu
