// Max and average pooling on planes. A band of input rows is first combined vertically into a row
// buffer with margins, then the buffer horizontally; both orders are fixed.
#include "kernels.h"
#include "pool_window.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

constexpr int kRowBuffer = 2048;    // floats
constexpr int kSlack = 2 * kBlock;  // loads may run past the used part of the buffer
constexpr float kInfinity = __builtin_inff();

struct Max {
  static constexpr float kIdentity = -kInfinity;
  DYNPRUNE_INLINE static Vec combine(Vec a, Vec b) { return max_or_nan(a, b); }
  DYNPRUNE_INLINE static float combine(float a, float b) { return a != a || a > b ? a : b; }
};
struct Sum {
  static constexpr float kIdentity = 0.0f;
  DYNPRUNE_INLINE static Vec combine(Vec a, Vec b) { return add(a, b); }
  DYNPRUNE_INLINE static float combine(float a, float b) { return a + b; }
};

// buffer[i] = combination over the window's rows of column `column + i`, for i in [0, n); columns
// outside the map hold the identity.
template <class Op>
DYNPRUNE_INLINE void combine_rows(const PoolShape& pool, const Window& rows, const float* x, int64_t column, int64_t n,
                                  float* buffer) {
  const int64_t width = pool.in.width;
  int64_t begin = column < 0 ? -column : 0;
  int64_t end = width - column < n ? width - column : n;
  if (begin > n) begin = n;
  if (end < begin) end = begin;
  if (rows.count == 0) end = begin;
  for (int64_t i = 0; i < begin; ++i) buffer[i] = Op::kIdentity;
  const float* source = x + rows.first * pool.in.pitch + column;
  const int64_t step = int64_t{pool.dilation_h} * pool.in.pitch;
  for (int64_t i = begin; i < end; i += kLanes) {
    // The last vector may read beyond the row, at most one block beyond the last pixel of the plane.
    Vec acc = load(source + i);
    for (int64_t r = 1; r < rows.count; ++r) acc = Op::combine(acc, load(source + r * step + i));
    store(buffer + i, acc);
  }
  const Vec identity = broadcast(Op::kIdentity);
  for (int64_t i = end; i < n + kLanes; i += kLanes) store(buffer + i, identity);
}

// One vector of outputs from the row buffer: output j combines buffer[j * stride + s * dilation].
template <class Op, int kStride>
DYNPRUNE_INLINE Vec combine_columns(const float* buffer, int32_t kernel, int32_t dilation) {
  if (kStride == 1) {
    Vec acc = load(buffer);
    for (int32_t s = 1; s < kernel; ++s) acc = Op::combine(acc, load(buffer + s * dilation));
    return acc;
  }
  Vec acc, odd;
  deinterleave(load(buffer), load(buffer + kLanes), acc, odd);
  if (dilation == 1) {  // one deinterleave serves two taps
    if (kernel > 1) acc = Op::combine(acc, odd);
    for (int32_t s = 2; s < kernel; s += 2) {
      Vec even;
      deinterleave(load(buffer + s), load(buffer + s + kLanes), even, odd);
      acc = Op::combine(acc, even);
      if (s + 1 < kernel) acc = Op::combine(acc, odd);
    }
  } else {
    for (int32_t s = 1; s < kernel; ++s) {
      Vec even;
      deinterleave(load(buffer + s * dilation), load(buffer + s * dilation + kLanes), even, odd);
      acc = Op::combine(acc, even);
    }
  }
  return acc;
}

template <class Op>
DYNPRUNE_INLINE void combine_columns_scalar(const PoolShape& pool, const float* buffer, int64_t n, float* y) {
  for (int64_t j = 0; j < n; ++j) {
    const float* taps = buffer + j * pool.stride_w;
    float acc = taps[0];
    for (int64_t s = 1; s < pool.kernel_w; ++s) acc = Op::combine(acc, taps[s * pool.dilation_w]);
    y[j] = acc;
  }
}

// One output row without division, from the rows of one window.
template <class Op>
DYNPRUNE_INLINE void pool_row(const PoolShape& pool, const Window& rows, const float* x, float* y) {
  alignas(64) float buffer[kRowBuffer + kSlack];
  const int64_t reach = int64_t{pool.kernel_w - 1} * pool.dilation_w + 1;  // columns of one window
  if (reach + int64_t{pool.stride_w} * kLanes > kRowBuffer) {
    // A window wider than the buffer: plain loops.
    for (int64_t j = 0; j < pool.out.width; ++j) {
      const Window columns =
          window_at(j, pool.kernel_w, pool.stride_w, pool.dilation_w, pool.pad_left, pool.in.width, 0);
      float acc = Op::kIdentity;
      for (int64_t r = 0; r < rows.count; ++r) {
        const float* row = x + (rows.first + r * pool.dilation_h) * pool.in.pitch + columns.first;
        for (int64_t s = 0; s < columns.count; ++s) acc = Op::combine(acc, row[s * pool.dilation_w]);
      }
      y[j] = acc;
    }
    return;
  }
  const int64_t per_chunk = ((kRowBuffer - reach) / pool.stride_w + 1) / kLanes * kLanes;
  for (int64_t j = 0; j < pool.out.width; j += per_chunk) {
    const int64_t n = pool.out.width - j < per_chunk ? pool.out.width - j : per_chunk;
    combine_rows<Op>(pool, rows, x, j * pool.stride_w - pool.pad_left, (n - 1) * pool.stride_w + reach, buffer);
    if (pool.stride_w > 2) {
      combine_columns_scalar<Op>(pool, buffer, n, y + j);
      continue;
    }
    for (int64_t i = 0; i < n; i += kLanes) {
      const Vec v = pool.stride_w == 1 ? combine_columns<Op, 1>(buffer + i, pool.kernel_w, pool.dilation_w)
                                       : combine_columns<Op, 2>(buffer + 2 * i, pool.kernel_w, pool.dilation_w);
      store_first(y + j + i, n - i, v);
    }
  }
}

// Divides a row of sums by the size of each window; the windows that lie inside the map share one size.
DYNPRUNE_INLINE void divide_row(const PoolShape& pool, const Window& rows, float* y) {
  const int64_t rows_counted = pool.count_include_pad ? rows.padded_count : rows.count;
  const int64_t reach = int64_t{pool.kernel_w - 1} * pool.dilation_w + 1;
  const int64_t room = pool.in.width + pool.pad_left - reach;
  int64_t inner_begin = (pool.pad_left + pool.stride_w - 1) / pool.stride_w;
  int64_t inner_end = room < 0 ? 0 : room / pool.stride_w + 1;
  if (inner_end > pool.out.width) inner_end = pool.out.width;
  if (pool.divisor != 0) inner_begin = 0, inner_end = pool.out.width;
  const int64_t inner_taps = pool.divisor != 0 ? pool.divisor : rows_counted * pool.kernel_w;
  for (int64_t j = inner_begin; j < inner_end; j += kLanes) {
    const Vec sums = load_first(y + j, inner_end - j);
    store_first(y + j, inner_end - j, div(sums, broadcast(static_cast<float>(inner_taps))));
  }
  for (int64_t j = 0; j < pool.out.width; ++j) {
    if (j == inner_begin && inner_begin < inner_end) {
      j = inner_end - 1;
      continue;
    }
    const Window columns =
        window_at(j, pool.kernel_w, pool.stride_w, pool.dilation_w, pool.pad_left, pool.in.width, pool.pad_right);
    y[j] /= static_cast<float>(rows_counted * (pool.count_include_pad ? columns.padded_count : columns.count));
  }
}

template <class Op>
DYNPRUNE_INLINE void pool_plane(const PoolShape& pool, bool average, const float* x, float* y) {
  for (int64_t i = 0; i < pool.out.height; ++i) {
    const Window rows =
        window_at(i, pool.kernel_h, pool.stride_h, pool.dilation_h, pool.pad_top, pool.in.height, pool.pad_bottom);
    pool_row<Op>(pool, rows, x, y + i * pool.out.pitch);
    if (average) divide_row(pool, rows, y + i * pool.out.pitch);
  }
}

// A copy of the shape whose fields are compile-time constants for the common pools lets the compiler
// unroll the loops over taps.
template <int kKernel, int kStride>
DYNPRUNE_INLINE PoolShape with_constants(const PoolShape& pool) {
  PoolShape fixed = pool;
  fixed.kernel_h = fixed.kernel_w = kKernel;
  fixed.stride_h = fixed.stride_w = kStride;
  fixed.dilation_h = fixed.dilation_w = 1;
  return fixed;
}

DYNPRUNE_INLINE bool is_pool(const PoolShape& pool, int kernel, int stride) {
  return pool.kernel_h == kernel && pool.kernel_w == kernel && pool.stride_h == stride && pool.stride_w == stride &&
         pool.dilation_h == 1 && pool.dilation_w == 1;
}

template <class Op>
DYNPRUNE_INLINE void dispatch_pool(const PoolShape& pool, bool average, const float* x, float* y) {
  if (is_pool(pool, 3, 2)) return pool_plane<Op>(with_constants<3, 2>(pool), average, x, y);
  if (is_pool(pool, 2, 2)) return pool_plane<Op>(with_constants<2, 2>(pool), average, x, y);
  if (is_pool(pool, 3, 1)) return pool_plane<Op>(with_constants<3, 1>(pool), average, x, y);
  pool_plane<Op>(pool, average, x, y);
}

void plane_max_pool(const PoolShape& pool, const float* x, float* y) { dispatch_pool<Max>(pool, false, x, y); }
void plane_avg_pool(const PoolShape& pool, const float* x, float* y) { dispatch_pool<Sum>(pool, true, x, y); }

void plane_adaptive_pool(const PlaneShape& in, const PlaneShape& out, bool average, const float* x, float* y) {
  for (int64_t i = 0; i < out.height; ++i) {
    const Range rows = adaptive_range(i, in.height, out.height);
    for (int64_t j = 0; j < out.width; ++j) {
      const Range columns = adaptive_range(j, in.width, out.width);
      float acc = average ? Sum::kIdentity : Max::kIdentity;
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float* pixels = x + row * in.pitch;
        for (int64_t column = columns.begin; column < columns.end; ++column) {
          acc = average ? Sum::combine(acc, pixels[column]) : Max::combine(acc, pixels[column]);
        }
      }
      const int64_t pixels = (rows.end - rows.begin) * (columns.end - columns.begin);
      y[i * out.pitch + j] = average ? acc / static_cast<float>(pixels) : acc;
    }
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_plane_pooling)(KernelTable& table) {
  table.plane_max_pool = plane_max_pool;
  table.plane_avg_pool = plane_avg_pool;
  table.plane_adaptive_pool = plane_adaptive_pool;
}

}  // namespace dynprune::cpu
