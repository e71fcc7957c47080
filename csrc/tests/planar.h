// Planar maps for kernel tests: one exactly sized heap block per channel, so that the address sanitizer sees any
// access outside the plane and its guards.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../cpu/kernels.h"

namespace dynprune::cpu::testing {

// Uniform in [-1, 1], the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 32);
  }
  float uniform() { return static_cast<float>(bits() >> 8) * (2.0f / 16777215.0f) - 1.0f; }
  int32_t below(int32_t n) { return static_cast<int32_t>(bits() % static_cast<uint32_t>(n)); }
  std::vector<float> vector(size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = uniform();
    return v;
  }
  // `live` of the numbers 0..n-1, ascending.
  std::vector<int32_t> subset(int32_t n, int32_t live) {
    std::vector<int32_t> chosen;
    for (int32_t i = 0; i < n; ++i) {
      if (below(n - i) < live - static_cast<int32_t>(chosen.size())) chosen.push_back(i);
    }
    return chosen;
  }

 private:
  uint64_t state_;
};

// Size, pitch and store masks of a map.
class Geometry {
 public:
  Geometry(int32_t height, int32_t width, int32_t pitch) {
    shape_ = {height, width, pitch, ((height - 1) * pitch + width + kBlock - 1) / kBlock, nullptr};
    mask_ = std::make_shared<std::vector<uint16_t>>(static_cast<size_t>(shape_.blocks));
    for (int32_t y = 0; y < height; ++y) {
      for (int32_t x = 0; x < width; ++x) {
        const int32_t p = y * pitch + x;
        (*mask_)[static_cast<size_t>(p / kBlock)] |= static_cast<uint16_t>(1u << (p % kBlock));
      }
    }
    shape_.store_mask = mask_->data();
  }
  const PlaneShape& shape() const { return shape_; }
  bool is_pixel(int64_t position) const {
    return position >= 0 && position / shape_.pitch < shape_.height && position % shape_.pitch < shape_.width;
  }

 private:
  PlaneShape shape_;
  std::shared_ptr<std::vector<uint16_t>> mask_;
};

// Channels of a map. `before` and `after` are zero guards around [0, blocks * 16).
class PlanarMap {
 public:
  PlanarMap(const Geometry& geometry, int32_t channels, int64_t before, int64_t after)
      : geometry_(geometry), before_(before), size_(before + geometry.shape().blocks * int64_t{kBlock} + after) {
    for (int32_t c = 0; c < channels; ++c) planes_.emplace_back(static_cast<size_t>(size_), 0.0f);
  }
  const Geometry& geometry() const { return geometry_; }
  float* plane(int32_t c) { return planes_[static_cast<size_t>(c)].data() + before_; }
  const float* plane(int32_t c) const { return planes_[static_cast<size_t>(c)].data() + before_; }
  int32_t channels() const { return static_cast<int32_t>(planes_.size()); }
  float& at(int32_t c, int32_t y, int32_t x) { return plane(c)[y * geometry_.shape().pitch + x]; }
  float at(int32_t c, int32_t y, int32_t x) const { return plane(c)[y * geometry_.shape().pitch + x]; }
  void randomize(Random& random) {
    for (int32_t c = 0; c < channels(); ++c) {
      for (int32_t y = 0; y < geometry_.shape().height; ++y) {
        for (int32_t x = 0; x < geometry_.shape().width; ++x) at(c, y, x) = random.uniform();
      }
    }
  }
  // Fills the pixels, leaving pads and guards zero.
  void fill(int32_t c, float value) {
    for (int32_t y = 0; y < geometry_.shape().height; ++y) {
      for (int32_t x = 0; x < geometry_.shape().width; ++x) at(c, y, x) = value;
    }
  }
  // Fills everything, guards included: reading any of it is an error.
  void poison(int32_t c) {
    for (float& x : planes_[static_cast<size_t>(c)]) x = std::numeric_limits<float>::quiet_NaN();
  }
  // True if every float that is not a pixel is zero.
  bool pads_are_zero(int32_t c) const {
    for (int64_t i = 0; i < size_; ++i) {
      if (!geometry_.is_pixel(i - before_) && planes_[static_cast<size_t>(c)][static_cast<size_t>(i)] != 0.0f)
        return false;
    }
    return true;
  }
  // True if nobody wrote to a poisoned plane.
  bool is_poisoned(int32_t c) const {
    for (float x : planes_[static_cast<size_t>(c)]) {
      if (!std::isnan(x)) return false;
    }
    return true;
  }

 private:
  Geometry geometry_;
  int64_t before_, size_;
  std::vector<std::vector<float>> planes_;
};

}  // namespace dynprune::cpu::testing
