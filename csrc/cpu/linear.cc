// Matrix times vector: classifiers and gate layers.
//
// Weights are packed as panels of 64 outputs, [K/64][C][64], so that they are read from end to end, once, and that
// inputs which are exactly zero, as the means of skipped channels are, can be left out: that pays where more than half
// are zero, because gaps defeat the hardware's prefetching. Every output is one sum that takes
// inputs ascending: leaving out zeros changes no bit.
#include "kernels.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

constexpr int kPanelBlocks = kLinearPanel / kBlock;
constexpr int kBlocksAtOnce = kLanes == 4 ? 2 : kPanelBlocks;  // sums that fit the registers
constexpr int32_t kListed = 1024;                              // inputs at a time
constexpr int32_t kAhead = 16;                                 // inputs whose weights are fetched

int32_t panel_width(int32_t out_features, int32_t panel) {
  const int32_t left = out_features - panel * kLinearPanel;
  return left < kLinearPanel ? (left + kBlock - 1) / kBlock * kBlock : kLinearPanel;
}

size_t linear_size(int32_t out_features, int32_t in_features) {
  return static_cast<size_t>(in_features) * ((out_features + kBlock - 1) / kBlock * kBlock);
}

void linear_pack(int32_t out_features, int32_t in_features, const float* weights, float* packed) {
  for (int32_t first = 0; first < out_features; first += kLinearPanel) {
    const int32_t width = panel_width(out_features, first / kLinearPanel);
    for (int32_t c = 0; c < in_features; ++c) {
      for (int32_t k = first; k < first + width; ++k) {
        *packed++ = k < out_features ? weights[static_cast<int64_t>(k) * in_features + c] : 0.0f;
      }
    }
  }
}

// Inputs [first, last) that are not zero.
struct NonZero {
  int32_t count = 0;
  bool gaps = false;  // where some are zero, the hardware's prefetching needs help
  int32_t index[kListed];
  NonZero(const float* x, int32_t first, int32_t last) {
    for (int32_t c = first; c < last; ++c) {
      index[count] = c;
      count += x[c] != 0.0f;
    }
    gaps = count < last - first;
  }
};

// sums[0 .. 16 * Blocks) += the products of the inputs listed, rows of `width` weights.
template <int Blocks>
void accumulate(const NonZero& inputs, const float* x, const float* weights, int64_t width, Vec* sums) {
  constexpr int kVecs = Blocks * kVecsPerBlock;
  Vec acc[kVecs];
  DYNPRUNE_UNROLL for (int v = 0; v < kVecs; ++v) acc[v] = sums[v];
  for (int32_t n = 0; n < inputs.count; ++n) {
    const float* row = weights + inputs.index[n] * width;
    if (inputs.gaps && n + kAhead < inputs.count) {
      const float* later = weights + inputs.index[n + kAhead] * width;
      DYNPRUNE_UNROLL for (int b = 0; b < Blocks; ++b) __builtin_prefetch(later + b * kBlock, 0, 2);
    }
    const Vec input = broadcast(x[inputs.index[n]]);
    DYNPRUNE_UNROLL for (int v = 0; v < kVecs; ++v) acc[v] = fma(load(row + v * kLanes), input, acc[v]);
  }
  DYNPRUNE_UNROLL for (int v = 0; v < kVecs; ++v) sums[v] = acc[v];
}

using AccumulateFn = void (*)(const NonZero&, const float*, const float*, int64_t, Vec*);
constexpr AccumulateFn kAccumulate[4] = {&accumulate<1>, &accumulate<2>, &accumulate < kBlocksAtOnce == 2 ? 2 : 3 >,
                                         &accumulate<kBlocksAtOnce>};

void linear(int32_t out_features, int32_t in_features, const float* packed, const float* bias, const float* x,
            Clamp limits, int32_t first_panel, int32_t last_panel, float* y) {
  const Vec lo = broadcast(limits.lo), hi = broadcast(limits.hi);
  for (int32_t c = 0; c == 0 || c < in_features; c += kListed) {
    const int32_t end = in_features - c < kListed ? in_features : c + kListed;
    const NonZero inputs(x, c, end);
    for (int32_t panel = first_panel; panel < last_panel; ++panel) {
      const int32_t width = panel_width(out_features, panel);
      const float* weights = packed + static_cast<int64_t>(panel) * kLinearPanel * in_features;
      for (int32_t at = 0, blocks; at < width; at += blocks * kBlock) {
        blocks = (width - at) / kBlock < kBlocksAtOnce ? (width - at) / kBlock : kBlocksAtOnce;
        const int32_t k = panel * kLinearPanel + at;
        const auto left = [&](int32_t v) { return int64_t{out_features} - k - v * kLanes; };
        Vec sums[kBlocksAtOnce * kVecsPerBlock];
        for (int32_t v = 0; v < blocks * kVecsPerBlock; ++v) {
          sums[v] = c > 0 ? load_first(y + k + v * kLanes, left(v)) : zero();
        }
        kAccumulate[blocks - 1](inputs, x, weights + at, width, sums);
        for (int32_t v = 0; v < blocks * kVecsPerBlock; ++v) {
          if (end == in_features) {
            if (bias) sums[v] = add(sums[v], load_first(bias + k + v * kLanes, left(v)));
            sums[v] = min(hi, max(lo, sums[v]));
          }
          store_first(y + k + v * kLanes, left(v), sums[v]);
        }
      }
    }
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_linear)(KernelTable& table) {
  table.linear_size = linear_size;
  table.linear_pack = linear_pack;
  table.linear = linear;
}

}  // namespace dynprune::cpu
