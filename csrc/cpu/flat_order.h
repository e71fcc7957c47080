// Sorting and selection along one dimension of x[outer][n][inner]: stable, NaN is the largest value,
// of equal elements the one of the lower index comes first.
#pragma once

#include "flat_shape.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

// An element as the sort sees it. Lives in the caller's float scratch.
struct __attribute__((may_alias)) Ranked {
  uint32_t key;    // ascending in the wanted order
  uint32_t index;  // position in the line
};
constexpr int kScratchPerElement = 4;  // floats: two arrays of Ranked
static_assert(2 * sizeof(Ranked) == kScratchPerElement * sizeof(float), "flat_ops.py sizes the scratch");

// Unsigned integers in the order of the values: NaN on top, the two zeros equal.
DYNPRUNE_INLINE uint32_t sort_key(float x, bool descending) {
  const float value = x + 0.0f;  // -0 becomes +0
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  if (x != x) bits = 0xffffffffu;
  return descending ? ~bits : bits;
}

// Byte by byte from the lowest, each pass stable; passes over equal bytes are skipped.
Ranked* radix_sort(int64_t n, Ranked* a, Ranked* b) {
  uint32_t count[4][256] = {};
  for (int64_t i = 0; i < n; ++i) {
    for (int byte = 0; byte < 4; ++byte) ++count[byte][a[i].key >> (8 * byte) & 0xff];
  }
  for (int byte = 0; byte < 4; ++byte) {
    const int shift = 8 * byte;
    if (count[byte][a[0].key >> shift & 0xff] == n) continue;
    uint32_t start = 0;
    for (uint32_t& c : count[byte]) {
      const uint32_t size = c;
      c = start;
      start += size;
    }
    for (int64_t i = 0; i < n; ++i) b[count[byte][a[i].key >> shift & 0xff]++] = a[i];
    Ranked* swap = a;
    a = b;
    b = swap;
  }
  return a;
}

// The line at x in the wanted order; the result lies in scratch.
const Ranked* sort_line(int64_t n, const float* x, int64_t step, bool descending, float* scratch) {
  Ranked* a = reinterpret_cast<Ranked*>(scratch);
  for (int64_t i = 0; i < n; ++i) a[i] = {sort_key(x[i * step], descending), static_cast<uint32_t>(i)};
  return radix_sort(n, a, a + n);
}

// Lines of a gate are short: there, counting the elements that precede each one beats sorting.
constexpr int kCountingLimit = kLanes == 16 ? 128 : kLanes == 8 ? 88 : 64;

// Keys that ascend in the wanted order, for elements [0, n) and, as zeros, a vector beyond. False if there is a NaN.
bool line_keys(int64_t n, const float* x, int64_t step, bool descending, float* key) {
  float gathered[kCountingLimit];
  if (step != 1) {
    for (int64_t i = 0; i < n; ++i) gathered[i] = x[i * step];
    x = gathered;
  }
  const Vec sign = broadcast(descending ? -1.0f : 1.0f);
  Vec nans = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec value = load_first(x + i, n - i);
    nans = add(nans, as_float(is_nan(value)));
    store(key + i, mul(value, sign));
    store(key + i + kLanes, zero());
  }
  return !any_lane(not_equal(nans, zero()));
}

// rank[i] = position of element i of the line in the wanted order. False if the line has a NaN, which
// comparisons do not order. rank has room for kCountingLimit + kLanes floats.
bool rank_line(int64_t n, const float* x, int64_t step, bool descending, float* rank) {
  float key[kCountingLimit + 2 * kLanes];
  if (!line_keys(n, x, step, descending, key)) return false;
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<float>(i);
  const Vec lanes = load(lane);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec own = load(key + i);
    Vec even = zero(), odd = zero();
    const int64_t own_end = i + kLanes < n ? i + kLanes : n;
    int64_t j = 0;
    for (; j < i; j += 2) {  // equal elements before this one precede it
      even = count_lanes(even, less_equal(broadcast(key[j]), own));
      odd = count_lanes(odd, less_equal(broadcast(key[j + 1]), own));
    }
    for (; j < own_end; ++j) {
      const Vec other = broadcast(key[j]);
      const Mask tie = mask_and(equal(other, own), less(broadcast(static_cast<float>(j - i)), lanes));
      even = count_lanes(even, mask_or(less(other, own), tie));
    }
    for (; j + 1 < n; j += 2) {
      even = count_lanes(even, less(broadcast(key[j]), own));
      odd = count_lanes(odd, less(broadcast(key[j + 1]), own));
    }
    if (j < n) even = count_lanes(even, less(broadcast(key[j]), own));
    store(rank + i, add(even, odd));
  }
  return true;
}

// Elements [first, first + count) of the sorted lines: values to out[0], indices to out[1]. Covers
// sort (0, n), topk (0, k) and kthvalue (k - 1, 1).
// ints: outer, n, inner, first, count, descending. scratch: kScratchPerElement * n floats.
void flat_order(const FlatCall& call) {
  const int64_t outer = call.ints[0], n = call.ints[1], inner = call.ints[2];
  const int64_t first = call.ints[3], count = call.ints[4];
  const bool descending = call.ints[5] != 0;
  float rank[kCountingLimit + kLanes];
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t k = 0; k < inner; ++k) {
      const float* x = call.in[0].data + o * n * inner + k;
      float* values = call.out[0].data + o * count * inner + k;
      float* indices = call.out[1].data + o * count * inner + k;
      if (n <= kCountingLimit && rank_line(n, x, inner, descending, rank)) {
        // All places are filled, so that no branch depends on the values.
        int32_t order[kCountingLimit];
        for (int64_t i = 0; i < n; ++i) order[static_cast<int32_t>(rank[i])] = static_cast<int32_t>(i);
        for (int64_t i = 0; i < count; ++i) {
          const int32_t from = order[first + i];
          values[i * inner] = x[from * inner];
          indices[i * inner] = static_cast<float>(from);
        }
        continue;
      }
      const Ranked* order = sort_line(n, x, inner, descending, call.scratch) + first;
      for (int64_t i = 0; i < count; ++i) {
        values[i * inner] = x[order[i].index * inner];
        indices[i * inner] = static_cast<float>(order[i].index);
      }
    }
  }
}

// y = base, but `value` at the `count` first elements of x in the wanted order: topk, then scatter of one value, as
// gates make their masks. ints: n, count, descending. in: x, base, value. scratch: kScratchPerElement * n floats.
void flat_scatter_top(const FlatCall& call) {
  const int64_t n = call.ints[0], count = call.ints[1];
  const bool descending = call.ints[2] != 0;
  const float *x = call.in[0].data, *base = call.in[1].data, value = *call.in[2].data;
  float* y = call.out[0].data;
  float rank[kCountingLimit + kLanes];
  if (n <= kCountingLimit && rank_line(n, x, 1, descending, rank)) {
    const Vec chosen = broadcast(value), end = broadcast(static_cast<float>(count));
    for (int64_t i = 0; i < n; i += kLanes) {
      store_first(y + i, n - i, select(less(load(rank + i), end), chosen, load_first(base + i, n - i)));
    }
    return;
  }
  const Ranked* order = sort_line(n, x, 1, descending, call.scratch);
  copy_floats(n, base, y);
  for (int64_t i = 0; i < count; ++i) y[order[i].index] = value;
}

}  // namespace
}  // namespace dynprune::cpu
