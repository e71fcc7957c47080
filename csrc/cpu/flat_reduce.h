// Reductions of flat tensors over any dimensions, accumulated in double precision in one fixed order,
// so that every ISA gives the same result.
#pragma once

#include <math.h>

#include "strided_loop.h"

namespace dynprune::cpu {
namespace {

// In the order of flat_ops.py.
enum class FlatReduce : int64_t {
  kSum,
  kMean,
  kMax,
  kMin,
  kProd,
  kL1,
  kL2,
  kAny,
  kAll,
  kMeanAbs,
  kSumSquares,
  kMaxAbs,
};

constexpr int kChains = 8;  // independent accumulators: element i goes to number i mod 8

struct Plus {
  static constexpr double kStart = 0.0;
  DYNPRUNE_INLINE static double combine(double a, double b) { return a + b; }
};
struct Times {
  static constexpr double kStart = 1.0;
  DYNPRUNE_INLINE static double combine(double a, double b) { return a * b; }
};
struct Largest {  // NaN if any is
  static constexpr double kStart = -__builtin_inf();
  DYNPRUNE_INLINE static double combine(double a, double b) { return a != a || a > b ? a : b; }
};
struct Smallest {
  static constexpr double kStart = __builtin_inf();
  DYNPRUNE_INLINE static double combine(double a, double b) { return a != a || a < b ? a : b; }
};

// Combines map(x) over the reduced dimensions, for every index of the kept ones.
template <class Op, class Map, class Finish>
DYNPRUNE_INLINE void reduce_all(const LoopNest<1>& kept, const LoopNest<1>& reduced, const float* x, float* y, Map map,
                                Finish finish) {
  for_each_inner(kept, [&](const int64_t (&base)[1]) {
    for (int64_t j = 0; j < kept.inner_size(); ++j) {
      const float* origin = x + base[0] + j * kept.inner_stride(0);
      double acc[kChains];
      for (double& a : acc) a = Op::kStart;
      for_each_inner(reduced, [&](const int64_t (&offset)[1]) {
        const float* run = origin + offset[0];
        const int64_t n = reduced.inner_size(), step = reduced.inner_stride(0);
        int64_t i = 0;
        if (step == 1) {
          for (; i + kChains <= n; i += kChains) {
            for (int c = 0; c < kChains; ++c) acc[c] = Op::combine(acc[c], map(run[i + c]));
          }
        }
        for (; i < n; ++i) acc[i % kChains] = Op::combine(acc[i % kChains], map(run[i * step]));
      });
      for (int width = kChains / 2; width >= 1; width /= 2) {
        for (int c = 0; c < width; ++c) acc[c] = Op::combine(acc[c], acc[c + width]);
      }
      *y++ = static_cast<float>(finish(acc[0]));
    }
  });
}

// ints: kind, number of reduced elements, loop nest of the kept dimensions, of the reduced ones.
void flat_reduce(const FlatCall& call) {
  IntReader ints(call);
  const FlatReduce kind = static_cast<FlatReduce>(ints.next());
  const double count = static_cast<double>(ints.next());
  const LoopNest<1> kept(ints), reduced(ints);
  const float* x = call.in[0].data;
  float* y = call.out[0].data;
  const auto itself = [](double v) { return v; };
  const auto magnitude = [](double v) { return fabs(v); };
  const auto square = [](double v) { return v * v; };
  const auto average = [=](double v) { return v / count; };
  switch (kind) {
    case FlatReduce::kSum:
      return reduce_all<Plus>(kept, reduced, x, y, itself, itself);
    case FlatReduce::kMean:
      return reduce_all<Plus>(kept, reduced, x, y, itself, average);
    case FlatReduce::kProd:
      return reduce_all<Times>(kept, reduced, x, y, itself, itself);
    case FlatReduce::kL1:
      return reduce_all<Plus>(kept, reduced, x, y, magnitude, itself);
    case FlatReduce::kMeanAbs:
      return reduce_all<Plus>(kept, reduced, x, y, magnitude, average);
    case FlatReduce::kL2:
      return reduce_all<Plus>(kept, reduced, x, y, square, [](double v) { return sqrt(v); });
    case FlatReduce::kSumSquares:
      return reduce_all<Plus>(kept, reduced, x, y, square, itself);
    case FlatReduce::kAny:  // of 0 and 1
    case FlatReduce::kMax:
      return reduce_all<Largest>(kept, reduced, x, y, itself, itself);
    case FlatReduce::kAll:
    case FlatReduce::kMin:
      return reduce_all<Smallest>(kept, reduced, x, y, itself, itself);
    case FlatReduce::kMaxAbs:
      return reduce_all<Largest>(kept, reduced, x, y, magnitude, itself);
  }
}

// Index of the first extreme of x[outer][n][inner] along n; a NaN counts as extreme.
// ints: outer, n, inner, 1 for the maximum and 0 for the minimum.
void flat_arg_extreme(const FlatCall& call) {
  const int64_t outer = call.ints[0], n = call.ints[1], inner = call.ints[2];
  const bool largest = call.ints[3] != 0;
  float* y = call.out[0].data;
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t k = 0; k < inner; ++k) {
      const float* x = call.in[0].data + o * n * inner + k;
      int64_t best = 0;
      for (int64_t i = 1; i < n; ++i) {
        const float v = x[i * inner], top = x[best * inner];
        if (top != top) break;
        if (v != v || (largest ? v > top : v < top)) best = i;
      }
      *y++ = static_cast<float>(best);
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu
