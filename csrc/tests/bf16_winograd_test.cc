// Winograd convolution on bf16 maps: near sums in float64, and the same bits however outputs, rows and inputs are split
// and whether dead channels are executed or not.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "bf16_planes.h"
#include "cpu/bf16_kernels.h"
#include "cpu/winograd_tiles.h"

namespace dynprune::cpu::testing {
namespace {

int g_passed = 0, g_failed = 0;

void check(bool ok, const std::string& what) {
  ok ? ++g_passed : ++g_failed;
  if (!ok && g_failed <= 40) std::printf("FAILED %s\n", what.c_str());
}

constexpr int32_t kLanesOfKernel = 16;

struct Case {
  int32_t live_in, in_channels, live_out, out_channels, height, width;
  bool adds, gate, shift;
  Clamp inner, outer;
  std::string name() const {
    char text[120];
    std::snprintf(text, sizeof text, "%d/%d>%d/%d %dx%d adds %d gate %d shift %d", live_in, in_channels, live_out,
                  out_channels, height, width, adds, gate, shift);
    return text;
  }
};

// A layer with its operands, executed in various ways.
class Layer {
 public:
  Layer(const Bf16Kernels& kernels, const Case& c, uint64_t seed)
      : kernels_(kernels),
        c_(c),
        random_(seed),
        geometry_(c.height, c.width, c.width + static_cast<int32_t>(seed % 2)),
        in_(geometry_, c.in_channels, 0, 0),
        residual_(geometry_, c.out_channels, 0, 0) {
    weights_.resize(static_cast<size_t>(c.out_channels * c.in_channels * 9));
    for (uint16_t& w : weights_) w = static_cast<uint16_t>(rounded(random_.uniform()));
    bias_ = random_.vector(static_cast<size_t>(c.out_channels));
    gate_ = random_.vector(static_cast<size_t>(c.out_channels));
    shift_ = random_.vector(static_cast<size_t>(c.out_channels));
    live_in_ = random_.subset(c.in_channels, c.live_in);
    live_out_ = random_.subset(c.out_channels, c.live_out);
    // Float32 rounds relative to the largest value of a tile: all of one size, dead channels zero.
    for (int32_t i : live_in_)
      for (uint32_t& v : in_.halves[static_cast<size_t>(i)]) v = rounded(random_.uniform());
    residual_.randomize(random_);
    shape_.in_channels = c.in_channels;
    shape_.out_channels = c.out_channels;
    shape_.groups = 1;
    shape_.taps = 9;
    shape_.out = geometry_.shape();
    shape_.adds = c.adds;
    shape_.inner = c.inner;
    shape_.outer = c.outer;
    const size_t size = kernels.winograd_sizes(shape_).weights;
    packed_.reset(static_cast<uint16_t*>(std::aligned_alloc(64, (size * 2 + 63) / 64 * 64)));
    kernels.winograd_pack(shape_, weights_.data(), packed_.get());
  }

  enum class Split { kNone, kOutputs, kRows };
  struct Way {
    Split split = Split::kNone;
    bool live_first = false;  // all inputs, the live ones first: a run without skipping
    bool kept = false;        // some inputs were transformed by an earlier convolution
  };

  Bf16Map run(const Way& way) {
    std::vector<int32_t> inputs = live_in_;
    if (way.live_first)
      for (int32_t i = 0; i < c_.in_channels; ++i)
        if (!std::binary_search(live_in_.begin(), live_in_.end(), i)) inputs.push_back(i);
    const auto n_in = static_cast<int32_t>(inputs.size()), n_out = static_cast<int32_t>(live_out_.size());
    Bf16Map in(geometry_, std::max(n_in, 1), 0, 0), out(geometry_, c_.out_channels, 0, 0);
    in.halves = in_.halves;
    in.pack(inputs);
    if (c_.adds) {
      std::vector<int32_t> all;
      for (int32_t i = 0; i < c_.out_channels; ++i) all.push_back(i);
      out.halves = residual_.halves;
      out.pack(all);
    } else {
      out.fill_words(kPoison);
    }
    const Bf16Weights weights{nullptr, bias_.data(), c_.gate ? gate_.data() : nullptr,
                              c_.shift ? shift_.data() : nullptr};
    const Bf16ConvCall call{in.planes(), inputs.data(), n_in, out.planes(), live_out_.data(), n_out};
    const WinogradSizes sizes = kernels_.winograd_sizes(shape_);
    std::vector<float> v(sizes.input_scratch), scratch(sizes.thread_scratch);
    const WinogradBands bands = winograd_bands(bf16_winograd_shape(shape_), kLanesOfKernel);
    const int32_t parts = way.split == Split::kRows ? std::min(bands.units(), 2) : 1;
    for (int32_t part = 0; part < parts; ++part) {
      const TileRows rows = bands.rows(part, parts);
      std::fill(v.begin(), v.end(), std::numeric_limits<float>::quiet_NaN());
      std::fill(scratch.begin(), scratch.end(), std::numeric_limits<float>::quiet_NaN());
      if (way.kept) {
        std::vector<int32_t> now, before;
        for (int32_t i = 0; i < n_in; ++i) (i % 3 ? now : before).push_back(i);
        kernels_.winograd_input(shape_, rows, call, before.data(), 0, static_cast<int32_t>(before.size()), v.data());
        kernels_.winograd_input(shape_, rows, call, now.data(), 0, static_cast<int32_t>(now.size()), v.data());
      } else {
        kernels_.winograd_input(shape_, rows, call, nullptr, n_in / 2, n_in, v.data());
        kernels_.winograd_input(shape_, rows, call, nullptr, 0, n_in / 2, v.data());
      }
      int32_t cut = way.split == Split::kOutputs ? n_out / 4 * 2 : 0;
      if (c_.adds)
        while (cut > 0 && live_out_[static_cast<size_t>(cut - 1)] / 2 == live_out_[static_cast<size_t>(cut)] / 2) --cut;
      for (const auto& [first, last] : {std::pair{0, cut}, std::pair{cut, n_out}})
        if (first < last)
          kernels_.winograd_output(shape_, rows, packed_.get(), weights, v.data(), call, first, last, scratch.data());
    }
    return out;
  }

  // Entry i of the outputs, before rounding.
  double exact(int32_t i, int32_t y, int32_t x) {
    const auto k = static_cast<size_t>(live_out_[static_cast<size_t>(i)]);
    double sum = 0;
    for (int32_t channel : live_in_)
      for (int32_t t = 0; t < 9; ++t) {
        const int32_t yy = y + t / 3 - 1, xx = x + t % 3 - 1;
        if (yy < 0 || yy >= c_.height || xx < 0 || xx >= c_.width) continue;
        const size_t at = (k * static_cast<size_t>(c_.in_channels) + static_cast<size_t>(channel)) * 9;
        sum += static_cast<double>(wide(in_.at(channel, yy, xx))) *
               static_cast<double>(wide(weights_[at + static_cast<size_t>(t)]));
      }
    const auto clip = [](double v, Clamp c) {
      return std::min(std::max(v, static_cast<double>(c.lo)), static_cast<double>(c.hi));
    };
    double v = clip(sum + static_cast<double>(bias_[k]), c_.inner);
    if (c_.gate) v *= static_cast<double>(gate_[k]);
    if (c_.shift) v += static_cast<double>(shift_[k]);
    if (c_.adds) v += static_cast<double>(wide(residual_.at(static_cast<int32_t>(k), y, x)));
    return clip(v, c_.outer);
  }

  void check_values(Bf16Map& out) {
    const auto n_out = static_cast<int32_t>(live_out_.size());
    const double slack = 4e-6 * std::sqrt(9.0 * c_.live_in + 1.0);  // of float32 sums of terms up to 1
    bool close = true, others_kept = true, fillers_zero = true;
    out.for_each_pixel([&](int32_t y, int32_t x, int32_t) {
      for (int32_t i = 0; i < n_out; ++i) {
        const double want = exact(i, y, x);
        const auto got = static_cast<double>(wide(out.unpack(c_.adds ? live_out_[static_cast<size_t>(i)] : i, y, x)));
        close = close && std::fabs(got - want) <= std::ldexp(std::fabs(want), -8) + slack;
      }
      if (c_.adds) {
        for (int32_t k = 0; k < c_.out_channels; ++k)
          if (!std::binary_search(live_out_.begin(), live_out_.end(), k))
            others_kept = others_kept && out.unpack(k, y, x) == residual_.at(k, y, x);
      } else if (n_out % 2) {
        fillers_zero = fillers_zero && out.unpack(n_out, y, x) == 0;
      }
    });
    check(close, c_.name());
    check(others_kept, c_.name() + ": a channel that is not computed changed");
    check(fillers_zero, c_.name() + ": fillers");
    check(out.pads_are_zero(), c_.name() + ": pads");
  }

  void check_same_bits(Bf16Map& out, Bf16Map& other, const char* how) {
    bool equal = true;
    for (int32_t g = 0; g < (c_.out_channels + 1) / 2; ++g)
      out.for_each_pixel([&](int32_t, int32_t, int32_t p) { equal = equal && out.plane(g)[p] == other.plane(g)[p]; });
    check(equal, c_.name() + ": other bits with " + how);
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  const Bf16Kernels& kernels_;
  Case c_;
  Random random_;
  Geometry geometry_;
  Bf16Map in_, residual_;
  std::vector<uint16_t> weights_;
  std::vector<float> bias_, gate_, shift_;
  std::vector<int32_t> live_in_, live_out_;
  Bf16ConvShape shape_{};
  std::unique_ptr<uint16_t, Free> packed_;
};

void test_layer(const Bf16Kernels& kernels, const Case& c, uint64_t seed) {
  Layer layer(kernels, c, seed);
  Bf16Map out = layer.run({});
  layer.check_values(out);
  const std::pair<const char*, Layer::Way> ways[] = {
      {"split outputs", {Layer::Split::kOutputs, false, false}},
      {"split rows", {Layer::Split::kRows, false, true}},
      {"dead inputs executed", {Layer::Split::kNone, true, false}},
  };
  for (const auto& [how, way] : ways) {
    Bf16Map other = layer.run(way);
    layer.check_same_bits(out, other, how);
  }
}

void test_layers(const Bf16Kernels& kernels) {
  const Clamp relu = {0.0f, kInfinity}, relu6 = {0.0f, 0.6f};
  const int32_t live[][4] = {
      // live in, in, live out, out
      {0, 6, 4, 8},   {1, 5, 1, 3},   {3, 3, 16, 16},   {16, 16, 16, 16}, {7, 16, 9, 16},
      {8, 17, 5, 32}, {20, 24, 3, 9}, {15, 32, 17, 48}, {33, 40, 41, 50}, {200, 201, 24, 33},
  };
  const int32_t sizes[][2] = {{1, 2}, {5, 9}, {7, 7}, {12, 14}, {16, 21}, {33, 32}, {9, 67}, {6, 130}};
  uint64_t seed = 1;
  for (const auto& n : live)
    for (const auto& size : sizes) {
      if (n[0] * n[2] * size[0] * size[1] > 500000) continue;
      Case c{n[0], n[1], n[2], n[3], size[0], size[1], false, false, false, kUnbounded, relu};
      test_layer(kernels, c, seed++);
      c.gate = true;
      c.inner = relu6;
      c.outer = kUnbounded;
      test_layer(kernels, c, seed++);
      c.gate = false;
      c.adds = true;
      c.inner = kUnbounded;
      c.outer = relu;
      test_layer(kernels, c, seed++);
      c.gate = c.shift = true;
      c.inner = relu6;
      test_layer(kernels, c, seed++);
      c.adds = false;
      test_layer(kernels, c, seed++);
    }
}

}  // namespace
}  // namespace dynprune::cpu::testing

int main() {
  using namespace dynprune::cpu;
  using namespace dynprune::cpu::testing;
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // as every thread that executes a plan does
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw")) {
    Bf16Kernels kernels{};
    fill_bf16_winograd_avx512_bf16(kernels);
    test_layers(kernels);
  } else {
    std::printf("this CPU has no AVX512_BF16: no other kernels exist\n");
  }
#endif
  std::printf("%d passed, %d failed\n", g_passed, g_failed);
  return g_failed ? 1 : 0;
}
