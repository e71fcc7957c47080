// What the kernel tests share: the ISAs of this machine, a guarded plane, random data, a check counter.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace dynprune::test {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Counter {
  int passed = 0, failed = 0;
  void check(bool ok, const std::string& what) {
    ok ? ++passed : ++failed;
    if (!ok && failed <= 30) std::printf("FAILED %s\n", what.c_str());
  }
  int report() const {
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
  }
};

// Deterministic values in [-scale, scale).
class Random {
 public:
  explicit Random(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  float value(float scale = 2.0f) { return (static_cast<float>(next() >> 8) / 8388608.0f - 1.0f) * scale; }
  int below(int n) { return static_cast<int>((next() >> 8) % static_cast<uint32_t>(n)); }
  std::vector<float> values(size_t n, float scale = 2.0f) {
    std::vector<float> out(n);
    for (float& v : out) v = value(scale);
    return out;
  }

 private:
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 17;
    return state_ ^= state_ << 5;
  }
  uint32_t state_;
};

// A plane with zero guards. The allocation ends one block after the last pixel, which is as far as a
// kernel may read, so that the address sanitizer sees anything beyond.
class Plane {
 public:
  Plane(int height, int width, int pitch) : storage_(kFront + size_t(height - 1) * pitch + width + cpu::kBlock) {
    shape_ = {height, width, pitch, ((height - 1) * pitch + width + cpu::kBlock - 1) / cpu::kBlock, nullptr};
    mask_.assign(shape_.blocks, 0);
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        const int at = y * pitch + x;
        mask_[at / cpu::kBlock] |= static_cast<uint16_t>(1u << (at % cpu::kBlock));
      }
    }
  }
  Plane(int height, int width) : Plane(height, width, width + 1) {}

  cpu::PlaneShape shape() const {
    cpu::PlaneShape shape = shape_;
    shape.store_mask = mask_.data();
    return shape;
  }
  float* data() { return storage_.data() + kFront; }
  const float* data() const { return storage_.data() + kFront; }
  float& at(int y, int x) { return data()[y * shape_.pitch + x]; }
  float at(int y, int x) const { return data()[y * shape_.pitch + x]; }
  int height() const { return shape_.height; }
  int width() const { return shape_.width; }

  void randomize(Random& random, float scale = 2.0f) {
    for (int y = 0; y < height(); ++y) {
      for (int x = 0; x < width(); ++x) at(y, x) = random.value(scale);
    }
  }
  // Everything that is not a pixel is still zero.
  bool pads_are_zero() const {
    for (size_t i = 0; i < storage_.size(); ++i) {
      const long position = static_cast<long>(i) - kFront;
      const bool inside = position >= 0 && position < long(shape_.blocks) * cpu::kBlock;
      const bool pixel = inside && (mask_[position / cpu::kBlock] >> (position % cpu::kBlock) & 1);
      if (!pixel && storage_[i] != 0.0f) return false;
    }
    return true;
  }

 private:
  static constexpr int kFront = 32;
  std::vector<float> storage_;
  std::vector<uint16_t> mask_;
  cpu::PlaneShape shape_{};
};

inline bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Within `ulps` units in the last place of the exact value, or `floor` in absolute terms.
inline bool close(float got, double exact, double ulps, double floor = 1e-37) {
  const float rounded = static_cast<float>(exact);
  if (same(got, rounded)) return true;
  if (std::isnan(exact) || std::isnan(got) || std::isinf(rounded) || std::isinf(got)) return false;
  return std::fabs(got - exact) <= std::fmax(floor, ulps * std::fabs(exact) * 5.97e-8 * 2);
}

struct Isa {
  const char* name;
  bool usable;
  void (*fill_elementwise)(cpu::KernelTable&);
  void (*fill_pooling)(cpu::KernelTable&);
  void (*fill_layout)(cpu::KernelTable&);
  void (*fill_linear)(cpu::KernelTable&);
  void (*fill_flat_ops)(cpu::KernelTable&);
};

#define DYNPRUNE_TEST_ISA(ISA, USABLE)                                                                 \
  Isa {                                                                                                \
    #ISA, static_cast<bool>(USABLE), cpu::fill_plane_elementwise_##ISA, cpu::fill_plane_pooling_##ISA, \
        cpu::fill_plane_layout_##ISA, cpu::fill_linear_##ISA, cpu::fill_flat_ops_##ISA                 \
  }

inline std::vector<Isa> usable_isas() {
  std::vector<Isa> isas = {DYNPRUNE_TEST_ISA(generic, true)};
#if defined(__x86_64__)
  isas.push_back(DYNPRUNE_TEST_ISA(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
  isas.push_back(DYNPRUNE_TEST_ISA(avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                               __builtin_cpu_supports("avx512dq") &&
                                               __builtin_cpu_supports("avx512vl")));
#endif
  std::vector<Isa> usable;
  for (const Isa& isa : isas) {
    if (isa.usable) usable.push_back(isa);
  }
  return usable;
}

inline cpu::KernelTable table_of(const Isa& isa) {
  cpu::KernelTable table{};
  isa.fill_elementwise(table);
  isa.fill_pooling(table);
  isa.fill_layout(table);
  isa.fill_linear(table);
  isa.fill_flat_ops(table);
  return table;
}

}  // namespace dynprune::test
