// Reductions of the listed channels of a map to flat numbers, for gates and poolings.
#pragma once

#include "core/plan.h"

namespace dynprune {

// y[c] = reduction of channel c's plane, for entries [share.first, share.last) of the list.
inline void reduce_channels(const Plan& plan, const Context& context, cpu::Reduce kind, int32_t map,
                            const LiveList& list, Share share, float* y) {
  constexpr int32_t kAtOnce = 64;
  const cpu::PlaneShape& shape = plan.shape_of(map);
  for (int32_t first = share.first; first < share.last; first += kAtOnce) {
    const int32_t n = share.last - first < kAtOnce ? share.last - first : kAtOnce;
    const float* planes[kAtOnce];
    float results[kAtOnce];
    for (int32_t i = 0; i < n; ++i) planes[i] = plan.plane(context, map, list.index[first + i]);
    plan.kernels->plane_reduce(kind, shape, planes, n, results);
    for (int32_t i = 0; i < n; ++i) y[list.index[first + i]] = results[i];
  }
}

}  // namespace dynprune
