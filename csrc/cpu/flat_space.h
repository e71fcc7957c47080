// Pools and interpolation of dense maps [C][H][W]. The planar kernels are the fast path; these serve
// maps that are not planar.
#pragma once

#include "kernels.h"
#include "pool_window.h"

namespace dynprune::cpu {
namespace {

// One axis of a pool as flat_ops.py writes it.
struct PoolAxis {
  int64_t in, out, kernel, stride, pad, pad_end, dilation;
  Window window(int64_t i) const { return window_at(i, kernel, stride, dilation, pad, in, pad_end); }
};

// ints: C, 1 for average and 0 for maximum, count_include_pad, divisor (0 = the number of taps), then
// for rows and for columns: in, out, kernel, stride, pad, pad_end, dilation.
void flat_pool2d(const FlatCall& call) {
  const int64_t channels = call.ints[0], divisor = call.ints[3];
  const bool average = call.ints[1] != 0, count_pads = call.ints[2] != 0;
  const int64_t* r = call.ints + 4;
  const PoolAxis vertical = {r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
  const PoolAxis horizontal = {r[7], r[8], r[9], r[10], r[11], r[12], r[13]};
  float* y = call.out[0].data;
  for (int64_t c = 0; c < channels; ++c) {
    const float* x = call.in[0].data + c * vertical.in * horizontal.in;
    for (int64_t i = 0; i < vertical.out; ++i) {
      const Window rows = vertical.window(i);
      for (int64_t j = 0; j < horizontal.out; ++j) {
        const Window columns = horizontal.window(j);
        float top = -__builtin_inff();
        double sum = 0.0;
        for (int64_t p = 0; p < rows.count; ++p) {
          const float* row = x + (rows.first + p * vertical.dilation) * horizontal.in + columns.first;
          for (int64_t q = 0; q < columns.count; ++q) {
            const float v = row[q * horizontal.dilation];
            top = top != top || top > v ? top : v;
            sum += v;
          }
        }
        const int64_t taps = divisor != 0 ? divisor
                             : count_pads ? rows.padded_count * columns.padded_count
                                          : rows.count * columns.count;
        *y++ = average ? static_cast<float>(sum / static_cast<double>(taps)) : top;
      }
    }
  }
}

// ints: C, 1 for average and 0 for maximum, H, W, H', W'.
void flat_adaptive_pool2d(const FlatCall& call) {
  const int64_t channels = call.ints[0], height = call.ints[2], width = call.ints[3];
  const int64_t out_height = call.ints[4], out_width = call.ints[5];
  const bool average = call.ints[1] != 0;
  float* y = call.out[0].data;
  for (int64_t c = 0; c < channels; ++c) {
    const float* x = call.in[0].data + c * height * width;
    for (int64_t i = 0; i < out_height; ++i) {
      const Range rows = adaptive_range(i, height, out_height);
      for (int64_t j = 0; j < out_width; ++j) {
        const Range columns = adaptive_range(j, width, out_width);
        float top = -__builtin_inff();
        double sum = 0.0;
        for (int64_t p = rows.begin; p < rows.end; ++p) {
          for (int64_t q = columns.begin; q < columns.end; ++q) {
            const float v = x[p * width + q];
            top = top != top || top > v ? top : v;
            sum += v;
          }
        }
        const int64_t pixels = (rows.end - rows.begin) * (columns.end - columns.begin);
        *y++ = average ? static_cast<float>(sum / static_cast<double>(pixels)) : top;
      }
    }
  }
}

// Bilinear or nearest by tables. ints: C, H, W, H', W', then lower and upper source row of every
// output row, lower and upper source column of every output column. floats: the weight of the upper
// row and column. (Nearest: lower = upper, weight 0.)
void flat_interpolate(const FlatCall& call) {
  const int64_t channels = call.ints[0], height = call.ints[1], width = call.ints[2];
  const int64_t out_height = call.ints[3], out_width = call.ints[4];
  const int64_t* top = call.ints + 5;
  const int64_t* bottom = top + out_height;
  const int64_t* left = bottom + out_height;
  const int64_t* right = left + out_width;
  const float* down = call.floats;
  const float* across = down + out_height;
  float* y = call.out[0].data;
  for (int64_t c = 0; c < channels; ++c) {
    const float* x = call.in[0].data + c * height * width;
    for (int64_t i = 0; i < out_height; ++i) {
      const float *upper = x + top[i] * width, *lower = x + bottom[i] * width;
      for (int64_t j = 0; j < out_width; ++j) {
        if (top[i] == bottom[i] && left[j] == right[j]) {  // also keeps infinities exact
          *y++ = upper[left[j]];
          continue;
        }
        const double d = down[i], a = across[j];
        const double first = upper[left[j]] * (1.0 - d) + lower[left[j]] * d;
        const double second = upper[right[j]] * (1.0 - d) + lower[right[j]] * d;
        *y++ = static_cast<float>(first * (1.0 - a) + second * a);
      }
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
