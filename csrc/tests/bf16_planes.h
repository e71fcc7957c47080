// bf16 numbers and maps for kernel tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/bf16_kernels.h"
#include "planar.h"

namespace dynprune::cpu::testing {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr Clamp kUnbounded = {-kInfinity, kInfinity};
constexpr uint32_t kPoison = 0x7fc17fc1u;  // NaN in both halves

inline float wide(uint32_t half) {
  const uint32_t bits = half << 16;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

inline uint32_t rounded(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  if (std::isnan(v)) return bits >> 16 | 0x40u;
  if (std::fabs(v) < std::ldexp(1.0f, -63) * 0.99f) return 0;
  const uint32_t below = bits & 0xffff0000u, rest = bits & 0xffffu;
  const bool up = rest > 0x8000u || (rest == 0x8000u && (below >> 16 & 1u));
  const uint32_t half = (below >> 16) + (up ? 1u : 0u);
  return std::fabs(wide(half)) < std::ldexp(1.0f, -63) ? 0 : half;
}

// Magnitudes from 2^-70 to 2^8, and zeros.
inline float random_float(Random& random) {
  if (random.below(9) == 0) return 0.0f;
  return random.uniform() * (random.below(20) ? 1.0f : std::ldexp(1.0f, random.below(78) - 70));
}

// A bf16 map as plain halves and as group planes, each in a heap block of its exact size.
class Bf16Map {
 public:
  Bf16Map(const Geometry& geometry, int32_t channels, int64_t before, int64_t after)
      : geometry(geometry),
        halves(static_cast<size_t>(channels),
               std::vector<uint32_t>(static_cast<size_t>(geometry.shape().height * geometry.shape().width), 0)),
        before_(before),
        stride_(before + geometry.shape().blocks * int64_t{kBlock} + after),
        words_(static_cast<size_t>(stride_ * ((channels + 1) / 2)), 0) {}
  int32_t channels() const { return static_cast<int32_t>(halves.size()); }
  GroupPlanes planes() { return {words_.data() + before_, stride_}; }
  uint32_t* plane(int32_t group) { return words_.data() + before_ + group * stride_; }
  uint32_t& at(int32_t channel, int32_t y, int32_t x) {
    return halves[static_cast<size_t>(channel)][static_cast<size_t>(y * geometry.shape().width + x)];
  }
  void randomize(Random& random) {
    for (auto& channel : halves)
      for (uint32_t& v : channel) v = rounded(random_float(random));
  }
  template <class F>
  void for_each_pixel(const F& f) {
    for (int32_t y = 0; y < geometry.shape().height; ++y)
      for (int32_t x = 0; x < geometry.shape().width; ++x) f(y, x, y * geometry.shape().pitch + x);
  }
  // Position i of the planes gets channel list[i].
  void pack(const std::vector<int32_t>& list) {
    for (size_t i = 0; i < list.size(); ++i)
      for_each_pixel([&](int32_t y, int32_t x, int32_t p) {
        plane(static_cast<int32_t>(i / 2))[p] |= at(list[i], y, x) << (16 * (i % 2));
      });
  }
  uint32_t unpack(int32_t position, int32_t y, int32_t x) {
    return plane(position / 2)[y * geometry.shape().pitch + x] >> (16 * (position % 2)) & 0xffffu;
  }
  void fill_words(uint32_t word) {
    for (int32_t g = 0; g < (channels() + 1) / 2; ++g)
      for_each_pixel([&](int32_t, int32_t, int32_t p) { plane(g)[p] = word; });
  }
  bool pads_are_zero() {
    for (int32_t g = 0; g < (channels() + 1) / 2; ++g)
      for (int64_t p = -before_; p < stride_ - before_; ++p)
        if (!geometry.is_pixel(p) && plane(g)[p] != 0) return false;
    return true;
  }

  Geometry geometry;
  std::vector<std::vector<uint32_t>> halves;  // [channel][pixel]

 private:
  int64_t before_, stride_;
  std::vector<uint32_t> words_;
};

inline float clipped(float v, Clamp c) { return std::isnan(v) ? v : std::min(std::max(v, c.lo), c.hi); }

}  // namespace dynprune::cpu::testing
