// Reading a flat operator's integers, and loops over several tensors with their own strides.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace dynprune::cpu {
namespace {

// Every dimension may split in two (repeat), so loops can be deeper than a tensor's rank.
constexpr int kMaxLoopRank = 2 * kMaxRank;

// Takes the attributes of a call in the order in which flat_ops.py wrote them.
class IntReader {
 public:
  explicit IntReader(const FlatCall& call) : at_(call.ints) {}
  int64_t next() { return *at_++; }
  const int64_t* take(int64_t n) {
    const int64_t* start = at_;
    at_ += n;
    return start;
  }

 private:
  const int64_t* at_;
};

// Loop nest over kN tensors: dimensions and, per tensor, one stride for each. rank >= 1.
template <int kN>
struct LoopNest {
  int64_t rank;
  const int64_t* dims;
  const int64_t* strides[kN];

  explicit LoopNest(IntReader& ints) : rank(ints.next()), dims(ints.take(rank)) {
    for (int k = 0; k < kN; ++k) strides[k] = ints.take(rank);
  }
  int64_t inner_size() const { return dims[rank - 1]; }
  int64_t inner_stride(int k) const { return strides[k][rank - 1]; }
};

// Calls body(offset) with the offset into each tensor, for every index of all but the innermost
// dimension, in row-major order.
template <int kN, class Body>
DYNPRUNE_INLINE void for_each_inner(const LoopNest<kN>& nest, Body body) {
  int64_t index[kMaxLoopRank] = {};
  int64_t offset[kN] = {};
  for (;;) {
    body(offset);
    int64_t d = nest.rank - 2;
    for (; d >= 0; --d) {
      for (int k = 0; k < kN; ++k) offset[k] += nest.strides[k][d];
      if (++index[d] < nest.dims[d]) break;
      for (int k = 0; k < kN; ++k) offset[k] -= nest.strides[k][d] * nest.dims[d];
      index[d] = 0;
    }
    if (d < 0) return;
  }
}

}  // namespace
}  // namespace dynprune::cpu
