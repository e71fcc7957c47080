// Which pixels a pooling window covers along one axis.
#pragma once

#include "vec.h"

namespace dynprune::cpu {
namespace {

// Taps of one window along one axis: those inside [0, size) are first, first + dilation, ... `count`
// of them; `padded_count` lie inside the padded extent, which is what an average may divide by.
struct Window {
  int64_t first, count, padded_count;
};

DYNPRUNE_INLINE int64_t taps_below(int64_t start, int64_t dilation, int64_t kernel, int64_t limit) {
  const int64_t n = start >= limit ? 0 : (limit - start + dilation - 1) / dilation;
  return n < kernel ? n : kernel;
}

DYNPRUNE_INLINE Window window_at(int64_t position, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad,
                                 int64_t size, int64_t pad_end) {
  const int64_t start = position * stride - pad;
  const int64_t before = taps_below(start, dilation, kernel, 0);
  const int64_t end = taps_below(start, dilation, kernel, size);
  return {start + before * dilation, end - before, taps_below(start, dilation, kernel, size + pad_end)};
}

struct Range {
  int64_t begin, end;
};

// Adaptive pooling: output i of n covers input [floor(i * size / n), ceil((i + 1) * size / n)), as torch.
DYNPRUNE_INLINE Range adaptive_range(int64_t i, int64_t size, int64_t n) {
  return {i * size / n, ((i + 1) * size + n - 1) / n};
}

}  // namespace
}  // namespace dynprune::cpu
