// Arrays, maps, sets and references for tests of CUDA kernels on the emulator.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "tests/cuda/cta_emulator.h"

namespace dynprune::cuda::testing {

inline int failures = 0;

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  fprintf(stderr, "FAILED: %s\n", what.c_str());
  // Where it only matters whether anything fails, as with planted bugs, the first failure is enough.
  if (getenv("DYNPRUNE_FAIL_FAST")) _Exit(1);
}

// An array that starts as NaN and ends at a page nobody may touch.
template <typename T>
class Array {
 public:
  explicit Array(size_t size) : size_(size), memory_(size * sizeof(T)) {}
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    std::copy(values.begin(), values.end(), data());
  }
  T* data() { return reinterpret_cast<T*>(memory_.data()); }
  T& operator[](size_t i) { return data()[i]; }
  size_t size() const { return size_; }

 private:
  size_t size_;
  emulator::GuardedMemory memory_;
};

// Which channels each image has: [batch][channels].
using Mask = std::vector<uint8_t>;

// Channel sets built on the host, straight from their description in index_math.h.
inline std::vector<uint8_t> host_sets(const Mask& mask, int batch, int channels) {
  std::vector<uint8_t> sets(static_cast<size_t>(batch) * set_record_bytes(channels), 0xFF);
  for (int n = 0; n < batch; ++n) {
    uint8_t* record = sets.data() + static_cast<size_t>(n) * set_record_bytes(channels);
    auto* index = reinterpret_cast<uint16_t*>(record + 16);
    uint16_t* position = index + set_pitch(channels);
    uint16_t* chunk = position + set_pitch(channels);
    int count = 0;
    std::set<int> chunks;
    for (int c = 0; c < set_pitch(channels); ++c) {
      const bool in_set = c < channels && mask[static_cast<size_t>(n) * channels + c];
      position[c] = static_cast<uint16_t>(in_set ? count : static_cast<int>(kAbsent));
      if (!in_set) continue;
      index[count++] = static_cast<uint16_t>(c);
      chunks.insert(c / kChunk);
    }
    for (int i = count; i < set_pitch(channels); ++i) index[i] = static_cast<uint16_t>(channels);
    int i = 0;
    for (int c : chunks) chunk[i++] = static_cast<uint16_t>(c);
    reinterpret_cast<int32_t*>(record)[0] = count;
    reinterpret_cast<int32_t*>(record)[1] = i;
  }
  return sets;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  float uniform() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(engine_); }
  bool chance(double p) { return std::uniform_real_distribution<double>(0.0, 1.0)(engine_) < p; }

  std::vector<float> vector(size_t size) {
    std::vector<float> values(size);
    for (float& v : values) v = uniform();
    return values;
  }
  // A mask with that share of ones; different for every image.
  Mask mask(int batch, int channels, double share) {
    Mask m(static_cast<size_t>(batch) * channels);
    for (uint8_t& b : m) b = chance(share) ? 1 : 0;
    return m;
  }

 private:
  std::mt19937 engine_;
};

// A map of elements T with its values [batch][pixel][channel] in double; what is not stored is NaN in memory.
template <typename T>
struct Map {
  int batch, channels, h, w;
  bool packed;
  Mask mask;
  Array<uint8_t> sets;
  Array<T> memory;
  std::vector<double> values;

  Map(int batch, int channels, int h, int w, const Mask* stored)
      : batch(batch),
        channels(channels),
        h(h),
        w(w),
        packed(stored != nullptr),
        mask(stored ? *stored : Mask(static_cast<size_t>(batch) * channels, 1)),
        sets(host_sets(mask, batch, channels)),
        memory(static_cast<size_t>(batch) * h * w * round_up(channels, kChunk)),
        values(static_cast<size_t>(batch) * h * w * channels, 0.0) {}

  size_t at(int n, int pixel, int c) const { return (static_cast<size_t>(n) * h * w + pixel) * channels + c; }
  bool stored(int n, int c) const { return mask[static_cast<size_t>(n) * channels + c] != 0; }
  int place(int n, int c) {
    if (!packed) return c;
    int place = 0;
    for (int i = 0; i < c; ++i) place += stored(n, i);
    return place;
  }
  T& element(int n, int pixel, int place) {
    return memory[(static_cast<size_t>(n) * h * w + pixel) * round_up(channels, kChunk) + place];
  }
  // `as_read`: the value that a kernel takes an element for.
  static float exactly(T v) { return to_float(v); }
  void fill(Random& random, float (*as_read)(T) = exactly) {
    for (int n = 0; n < batch; ++n) {
      for (int c = 0; c < channels; ++c) {
        if (!stored(n, c)) continue;
        const int p = place(n, c);
        for (int pixel = 0; pixel < h * w; ++pixel) {
          const T v = from_float<T>(random.uniform());
          element(n, pixel, p) = v;
          values[at(n, pixel, c)] = as_read(v);
        }
      }
    }
  }
  MapRef ref() {
    MapRef r;
    r.data = memory.data();
    r.stored = packed ? sets.data() : nullptr;
    r.channels = channels;
    r.h = h;
    r.w = w;
    return r;
  }
  // Compares what is stored with `expected` (laid out as values) and checks that the rest is untouched.
  void compare(const std::vector<double>& expected, double tolerance, const std::string& what) {
    double worst = 0.0;
    bool stray = false;
    for (int n = 0; n < batch; ++n) {
      int count = 0;
      for (int c = 0; c < channels; ++c) {
        if (!stored(n, c)) continue;
        for (int pixel = 0; pixel < h * w; ++pixel) {
          const double v = to_float(element(n, pixel, count));
          const double wanted = expected[at(n, pixel, c)];
          const double error = std::fabs(v - wanted) / (1.0 + std::fabs(wanted));
          worst = error > worst || !(error == error) ? error : worst;
          if (!(error == error)) break;
        }
        ++count;
      }
      for (int pixel = 0; pixel < h * w; ++pixel) {
        for (int p = count; p < round_up(channels, kChunk); ++p) {
          const float v = to_float(element(n, pixel, p));
          stray = stray || v == v;
        }
      }
    }
    expect(worst <= tolerance, what + ": error " + std::to_string(worst) + " above " + std::to_string(tolerance));
    expect(!stray, what + ": wrote outside the stored channels");
  }
};

// Rounding of one stored result in T.
template <typename T>
double rounding();
template <>
inline double rounding<Half>() {
  return 1.0 / 1024;
}
template <>
inline double rounding<BFloat>() {
  return 1.0 / 128;
}

template <>
inline double rounding<float>() {
  return 1e-5;
}

template <typename T>
constexpr Element element_of() {
  return std::is_same<T, Half>::value     ? Element::kHalf
         : std::is_same<T, BFloat>::value ? Element::kBFloat
                                          : Element::kFloat;
}

inline void must_run(const std::string& error, const std::string& what) { expect(error.empty(), what + ": " + error); }

inline int report(const char* what) {
  printf("%s: %s\n", what, failures ? "FAILED" : "passed");
  return failures ? 1 : 0;
}

}  // namespace dynprune::cuda::testing
