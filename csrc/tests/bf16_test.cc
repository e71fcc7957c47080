// bf16 kernels of every ISA this CPU has, against plain loops: the bits have to be equal.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "bf16_planes.h"
#include "cpu/bf16_kernels.h"
#include "window_cases.h"

namespace dynprune::cpu::testing {
namespace {

int g_passed = 0, g_failed = 0;

void check(bool ok, const std::string& what) {
  ok ? ++g_passed : ++g_failed;
  if (!ok && g_failed <= 40) std::printf("FAILED %s\n", what.c_str());
}

struct Kernels {
  std::string isa;
  Bf16Kernels table;
};

std::vector<Kernels> usable_kernels() {
  std::vector<Kernels> list;
#define ADD_KERNELS(ISA)                        \
  list.push_back({#ISA, {}});                   \
  fill_bf16_conv_##ISA(list.back().table);      \
  fill_bf16_depthwise_##ISA(list.back().table); \
  fill_bf16_linear_##ISA(list.back().table);    \
  fill_bf16_maps_##ISA(list.back().table)
  ADD_KERNELS(generic);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    ADD_KERNELS(avx2);
  }
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    ADD_KERNELS(avx512);
    if (__builtin_cpu_supports("avx512bf16")) {
      ADD_KERNELS(avx512_bf16);
    }
  }
#endif
#undef ADD_KERNELS
  return list;
}

// Positions from which each tap of a square kernel stays inside its row, and the taps' offsets.
struct Taps {
  Taps(const Geometry& geometry, int32_t kernel) {
    const PlaneShape& shape = geometry.shape();
    for (int32_t t = 0; t < kernel * kernel; ++t) {
      const int32_t column = t % kernel - kernel / 2;
      offset.push_back((t / kernel - kernel / 2) * shape.pitch + column);
      masks.emplace_back(static_cast<size_t>(shape.blocks), uint16_t{0});
      for (int32_t p = 0; p < shape.blocks * kBlock; ++p) {
        const int32_t x = p % shape.pitch + column;
        if (x >= 0 && x < shape.pitch)
          masks.back()[static_cast<size_t>(p / kBlock)] |= static_cast<uint16_t>(1u << p % kBlock);
      }
    }
    for (const auto& mask : masks) table.push_back(mask.data());
  }
  std::vector<int32_t> offset;
  std::vector<std::vector<uint16_t>> masks;
  std::vector<const uint16_t*> table;
};

// -- convolution ---------------------------------------------------------------------------------

struct ConvCase {
  int32_t live_in, in_channels, live_out, out_channels, height, width, kernel;
  bool adds, gate, shift, depthwise;
  bool live_first;  // all input channels, the live ones first: a run without skipping
  Clamp inner, outer;
  int32_t groups = 1;

  int32_t row_inputs() const { return depthwise ? 1 : in_channels / groups; }
  int32_t first_input(int32_t k) const { return depthwise ? k : k / (out_channels / groups) * row_inputs(); }
  std::string name(const std::string& isa) const {
    char text[200];
    std::snprintf(text, sizeof text, "%s %d/%d>%d/%d %dx%d k%d adds %d gate %d shift %d dw %d live first %d groups %d",
                  isa.c_str(), live_in, in_channels, live_out, out_channels, height, width, kernel, adds, gate, shift,
                  depthwise, live_first, groups);
    return text;
  }
};

void test_conv(const Kernels& kernels, const ConvCase& c, uint64_t seed) {
  Random random(seed);
  const std::string name = c.name(kernels.isa);
  const int32_t reach = c.kernel / 2, taps_count = c.kernel * c.kernel;
  const Geometry geometry(c.height, c.width, c.width + (seed % 2 ? std::max(reach, 1) : 0));
  const int64_t guard = reach * geometry.shape().pitch + reach;
  const Taps taps(geometry, c.kernel);
  const int32_t columns = c.row_inputs(), row_channels = bf16_row_channels(columns);
  std::vector<uint16_t> rows(static_cast<size_t>(c.out_channels * taps_count * row_channels) + kRowOverread / 2, 0);
  const auto weight = [&](int32_t k, int32_t t, int32_t i) -> uint16_t& {
    return rows[static_cast<size_t>((k * taps_count + t) * row_channels + i)];
  };
  for (int32_t k = 0; k < c.out_channels; ++k)
    for (int32_t t = 0; t < taps_count; ++t)
      for (int32_t i = 0; i < columns; ++i) weight(k, t, i) = static_cast<uint16_t>(rounded(random_float(random)));
  const auto bias = random.vector(static_cast<size_t>(c.out_channels));
  auto gate = random.vector(static_cast<size_t>(c.out_channels));
  for (float& g : gate) g = random.below(4) ? g : 0.0f;
  const auto shift = random.vector(static_cast<size_t>(c.out_channels));

  auto live_in = random.subset(c.in_channels, c.live_in);
  if (c.live_first)
    for (int32_t i = 0; i < c.in_channels; ++i)
      if (!std::binary_search(live_in.begin(), live_in.begin() + c.live_in, i)) live_in.push_back(i);
  const auto live_out = random.subset(c.out_channels, c.live_out);
  const auto n_in = static_cast<int32_t>(live_in.size()), n_out = static_cast<int32_t>(live_out.size());
  Bf16Map in(geometry, c.in_channels, guard, guard);
  in.randomize(random);
  if (c.live_first)
    for (int32_t i = c.live_in; i < n_in; ++i)
      for (uint32_t& v : in.halves[static_cast<size_t>(live_in[static_cast<size_t>(i)])]) v = 0;
  in.pack(live_in);
  for (int32_t g = (n_in + 1) / 2; g < (c.in_channels + 1) / 2; ++g)  // beyond the live ones: not to be read
    for (int64_t p = 0; p < geometry.shape().blocks * kBlock; ++p) in.plane(g)[p] = kPoison;
  Bf16Map residual(geometry, c.out_channels, 0, 0), out(geometry, c.out_channels, 0, 0);
  residual.randomize(random);
  if (c.adds) {
    std::vector<int32_t> all;
    for (int32_t i = 0; i < c.out_channels; ++i) all.push_back(i);
    out.halves = residual.halves;
    out.pack(all);
  } else {
    out.fill_words(kPoison);
  }

  const Bf16ConvShape shape{c.depthwise ? 1 : c.in_channels,
                            c.out_channels,
                            c.groups,
                            taps_count,
                            taps.offset.data(),
                            taps.table.data(),
                            geometry.shape(),
                            c.adds,
                            c.inner,
                            c.outer};
  const Bf16Weights weights{rows.data(), bias.data(), c.gate ? gate.data() : nullptr, c.shift ? shift.data() : nullptr};
  const Bf16ConvCall call{in.planes(), live_in.data(), n_in, out.planes(), live_out.data(), n_out};
  if (c.depthwise) {
    std::vector<int32_t> position(static_cast<size_t>(c.in_channels), -1);
    for (int32_t i = 0; i < n_in; ++i) position[static_cast<size_t>(live_in[static_cast<size_t>(i)])] = i;
    const int32_t planes = (n_out + 1) / 2, half = planes / 2;
    kernels.table.depthwise(shape, weights, call, position.data(), 0, half);
    kernels.table.depthwise(shape, weights, call, position.data(), half, planes);
  } else {
    const size_t bytes = (kernels.table.conv_scratch(shape) + 64) / 64 * 64;
    std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, bytes), std::free);
    std::memset(scratch.get(), 0xa5, bytes);
    // In two parts, as two threads would.
    int32_t cut = n_out / 4 * 2;
    if (c.adds)
      while (cut > 0 && live_out[static_cast<size_t>(cut - 1)] / 2 == live_out[static_cast<size_t>(cut)] / 2) --cut;
    kernels.table.conv(shape, weights, call, 0, cut, scratch.get());
    kernels.table.conv(shape, weights, call, cut, n_out, scratch.get());
  }

  const int32_t leftover = c.depthwise ? 0 : bf16_leftover(shape);
  const auto sum_at = [&](int32_t k, int32_t y, int32_t x) {
    const int32_t position = y * geometry.shape().pitch + x;
    const int32_t lanes = position / kBlock == geometry.shape().blocks - 1 && leftover ? kBlock : 1;
    volatile float sum[kBlock] = {};
    for (int32_t t = 0; t < taps_count; ++t) {
      const int32_t yy = y + t / c.kernel - reach, xx = x + t % c.kernel - reach;
      if (yy < 0 || yy >= c.height || xx < 0 || xx >= c.width) continue;
      for (int32_t i = 0; i < n_in; i += 2)
        for (int32_t a = 1; a >= 0; --a) {  // the high half first
          if (i + a >= n_in) continue;
          const int32_t channel = live_in[static_cast<size_t>(i + a)];
          const int32_t column = channel - c.first_input(k);
          if (column < 0 || column >= c.row_inputs()) continue;
          volatile float product = wide(in.at(channel, yy, xx)) * wide(weight(k, t, column));
          const int32_t lane = i / 2 % lanes;
          sum[lane] = sum[lane] + product;
        }
    }
    for (int32_t width = lanes / 2; width > 0; width /= 2)
      for (int32_t l = 0; l < width; ++l) sum[l] = sum[l] + sum[l + width];
    return static_cast<float>(sum[0]);
  };
  bool equal = true, others_kept = true, fillers_zero = true;
  out.for_each_pixel([&](int32_t y, int32_t x, int32_t) {
    for (int32_t i = 0; i < n_out; ++i) {
      const int32_t k = live_out[static_cast<size_t>(i)];
      const auto ki = static_cast<size_t>(k);
      volatile float v = sum_at(k, y, x);
      v = v + bias[ki];
      v = clipped(v, c.inner);
      if (c.gate) v = v * gate[ki];
      if (c.shift) v = v + shift[ki];
      if (c.adds) v = v + wide(residual.at(k, y, x));
      equal = equal && out.unpack(c.adds ? k : i, y, x) == rounded(clipped(v, c.outer));
    }
    if (c.adds) {
      for (int32_t k = 0; k < c.out_channels; ++k)
        if (!std::binary_search(live_out.begin(), live_out.end(), k))
          others_kept = others_kept && out.unpack(k, y, x) == residual.at(k, y, x);
    } else if (n_out % 2) {
      fillers_zero = fillers_zero && out.unpack(n_out, y, x) == 0;
    }
  });
  check(equal, name);
  check(others_kept, name + ": a channel that is not computed changed");
  check(fillers_zero, name + ": fillers");
  check(out.pads_are_zero(), name + ": pads");
}

void test_convolutions(const Kernels& kernels) {
  const Clamp relu = {0.0f, kInfinity}, relu6 = {0.0f, 0.6f};
  uint64_t seed = 1;
  const int32_t live[][4] = {
      // live in, in, live out, out
      {0, 8, 4, 8},   {1, 5, 1, 3},     {3, 3, 16, 16},   {16, 16, 16, 16}, {7, 16, 9, 16},   {8, 16, 5, 32},
      {20, 24, 3, 9}, {15, 32, 17, 32}, {40, 96, 13, 20}, {37, 70, 40, 41}, {63, 130, 1, 10},
  };
  const int32_t sizes[][2] = {{1, 2}, {3, 5}, {7, 7}, {8, 8}, {9, 21}, {4, 5}};
  for (const auto& n : live)
    for (const auto& size : sizes)
      for (int32_t kernel : {1, 3}) {
        if (n[1] > 32 && size[0] * size[1] > 64) continue;
        ConvCase c{n[0],  n[1],  n[2],  n[3],  size[0], size[1],    kernel,
                   false, false, false, false, false,   kUnbounded, relu};
        test_conv(kernels, c, seed++);
        c.gate = true;
        c.inner = relu6;
        c.outer = kUnbounded;
        test_conv(kernels, c, seed++);
        c.live_first = true;
        test_conv(kernels, c, seed++);
        c.adds = true;
        c.outer = relu;
        test_conv(kernels, c, seed++);
        c.live_first = c.gate = false;
        c.inner = kUnbounded;
        test_conv(kernels, c, seed++);
        c.inner = relu6;
        c.shift = true;
        test_conv(kernels, c, seed++);
      }
  const int32_t grouped[][5] = {
      // groups, live in, in, live out, out
      {2, 8, 8, 8, 8},     {2, 5, 8, 6, 8},     {8, 32, 32, 32, 32}, {8, 19, 32, 13, 32}, {4, 96, 96, 32, 32},
      {4, 33, 96, 17, 32}, {3, 15, 15, 21, 21}, {3, 7, 15, 11, 21},  {5, 1, 10, 20, 20},  {4, 0, 16, 9, 16},
  };
  for (const auto& n : grouped)
    for (const auto& size : sizes) {
      ConvCase c{n[1], n[2], n[3], n[4], size[0], size[1], 3, false, true, false, false, false, kUnbounded, relu, n[0]};
      test_conv(kernels, c, seed++);
      c.live_first = true;
      test_conv(kernels, c, seed++);
      c.adds = true;
      test_conv(kernels, c, seed++);
    }
  test_conv(kernels, {3, 3, 10, 10, 12, 17, 7, false, false, false, false, false, kUnbounded, relu}, seed++);
  for (int32_t n : {1, 4, 7, 18})
    for (const auto& size : sizes) {
      ConvCase c{(n + 1) / 2, n,    (2 * n + 2) / 3, n,     size[0],   size[1], 3, false, true,
                 true,        true, false,           relu6, kUnbounded};
      test_conv(kernels, c, seed++);
      c.live_first = true;
      test_conv(kernels, c, seed++);
      c.live_in = c.live_out = n;
      c.gate = c.shift = c.live_first = false;
      test_conv(kernels, c, seed++);
    }
}

// -- other passes --------------------------------------------------------------------------------

void test_maps(const Kernels& kernels) {
  uint64_t seed = 900;
  for (const auto& size : {std::pair<int, int>{1, 2}, {7, 7}, {5, 33}, {14, 15}}) {
    Random random(seed++);
    const Geometry geometry(size.first, size.second, size.second + 1);
    const std::string name = kernels.isa + " " + std::to_string(size.first) + "x" + std::to_string(size.second);
    std::vector<float> dense;
    for (int i = 0; i < size.first * size.second; ++i) dense.push_back(random_float(random));
    dense[0] = std::numeric_limits<float>::quiet_NaN();
    dense[1] = -kInfinity;
    for (int missing : {0, 1, 2}) {
      const float* channel[2] = {missing == 0 ? nullptr : dense.data(), missing == 1 ? nullptr : dense.data()};
      Bf16Map map(geometry, 2, 0, 0);
      kernels.table.pack(geometry.shape(), channel, size.second, map.plane(0));
      const Geometry floats_geometry(size.first, size.second, size.second + 3);
      PlanarMap floats(floats_geometry, 1, 0, 0);
      for (int32_t a = 0; a < 2; ++a) {
        kernels.table.unpack(geometry.shape(), floats_geometry.shape(), map.plane(0), a, floats.plane(0));
        bool equal = true;
        map.for_each_pixel([&](int32_t y, int32_t x, int32_t) {
          const uint32_t want = a == missing ? 0u : rounded(dense[static_cast<size_t>(y * size.second + x)]);
          const float back = floats.at(0, y, x), expected = wide(want);
          equal =
              equal && map.unpack(a, y, x) == want && (back == expected || (std::isnan(back) && std::isnan(expected)));
        });
        check(equal && map.pads_are_zero() && floats.pads_are_zero(0), name + " pack and unpack");
      }
    }
    Bf16Map map(geometry, 2, 0, 0);
    map.randomize(random);
    map.pack({0, 1});
    for (bool magnitudes : {false, true}) {
      constexpr int kSums = kBf16SumBlocks * kBlock;
      std::vector<float> got(2 * kSums, std::numeric_limits<float>::quiet_NaN()), want(2 * kSums, 0.0f);
      kernels.table.sum(geometry.shape(), magnitudes, map.plane(0), got.data(), got.data() + kSums);
      for (int32_t a = 0; a < 2; ++a)
        map.for_each_pixel([&](int32_t y, int32_t x, int32_t p) {
          const float v = wide(map.at(a, y, x));
          want[static_cast<size_t>(a * kSums + p % kSums)] += magnitudes ? std::fabs(v) : v;
        });
      check(got == want, name + " sum");
    }
    const float shift[2] = {0.5f, -0.25f};
    kernels.table.pass(geometry.shape(), 2, shift, {0.0f, 0.4f}, map.plane(0));
    bool equal = true;
    map.for_each_pixel([&](int32_t y, int32_t x, int32_t) {
      const uint32_t want = rounded(clipped(shift[1] + wide(map.at(1, y, x)), {0.0f, 0.4f}));
      equal = equal && map.unpack(0, y, x) == map.at(0, y, x) && map.unpack(1, y, x) == want;
    });
    check(equal && map.pads_are_zero(), name + " pass");
  }
}

void test_linear(const Kernels& kernels) {
  uint64_t seed = 500;
  for (int32_t features : {1, 15, 16, 40, 257})
    for (int32_t outputs : {1, 8, 11}) {
      Random random(seed++);
      const auto x = random.vector(static_cast<size_t>(features)), bias = random.vector(static_cast<size_t>(outputs));
      std::vector<uint16_t> weights;
      for (int32_t i = 0; i < features * outputs; ++i)
        weights.push_back(static_cast<uint16_t>(rounded(random_float(random))));
      std::vector<float> y(static_cast<size_t>(outputs));
      const int32_t groups = (outputs + kBf16LinearRows - 1) / kBf16LinearRows;
      const int64_t group_size = bf16_linear_group_size(features);
      std::vector<uint16_t> packed(static_cast<size_t>(groups * group_size), 0);
      for (int32_t k = 0; k < outputs; ++k)
        for (int32_t c = 0; c < features; ++c)
          packed[static_cast<size_t>(k / kBf16LinearRows * group_size +
                                     (c / kBlock * kBf16LinearRows + k % kBf16LinearRows) * kBlock + c % kBlock)] =
              weights[static_cast<size_t>(k * features + c)];
      kernels.table.linear(outputs, features, packed.data(), bias.data(), x.data(), {0.0f, kInfinity}, 0, groups,
                           y.data());
      bool close = true;
      for (int32_t k = 0; k < outputs; ++k) {
        double sum = static_cast<double>(bias[static_cast<size_t>(k)]);
        for (int32_t c = 0; c < features; ++c)
          sum += static_cast<double>(wide(weights[static_cast<size_t>(k * features + c)])) *
                 static_cast<double>(x[static_cast<size_t>(c)]);
        close =
            close && std::fabs(static_cast<double>(y[static_cast<size_t>(k)]) - std::max(sum, 0.0)) < 1e-5 * features;
      }
      check(close, kernels.isa + " linear " + std::to_string(features) + ">" + std::to_string(outputs));
    }
}

void test_windows(const Kernels& kernels) {
  uint64_t seed = 700;
  for (const WindowShape& shape : window_cases()) {
    Random random(seed++);
    const auto x = random.vector(static_cast<size_t>(shape.height * shape.width));
    std::vector<uint32_t> y(static_cast<size_t>(shape.windows * shape.window_stride), 0xdeadbeefu);
    std::vector<uint8_t> scratch(kernels.table.window_scratch(shape));
    kernels.table.pack_windows(shape, x.data(), y.data(), scratch.data());
    bool equal = true;
    for_each_window_element(shape, kBf16PerWord, y.data(), [&](int32_t row, int32_t column, uint32_t element) {
      const uint32_t want = row < 0 ? 0u : rounded(x[static_cast<size_t>(row * shape.width + column)]);
      equal = equal && (element & 0xffffu) == want;
    });
    check(equal, kernels.isa + " " + name_of(shape));
  }
}

void test_max_pool(const Kernels& kernels) {
  struct Pool {
    int32_t height, width, kernel, stride, pad, dilation;
  };
  const Pool pools[] = {{8, 8, 2, 2, 0, 1},   {7, 9, 3, 2, 1, 1},   {33, 37, 3, 2, 1, 1}, {12, 12, 3, 1, 1, 1},
                        {14, 50, 3, 3, 1, 1}, {11, 20, 3, 1, 2, 2}, {5, 5, 5, 5, 2, 1}};
  uint64_t seed = 77;
  for (const Pool& p : pools) {
    Random random(seed++);
    const int32_t extent = p.dilation * (p.kernel - 1) + 1;
    const int32_t out_height = (p.height + 2 * p.pad - extent) / p.stride + 1;
    const int32_t out_width = (p.width + 2 * p.pad - extent) / p.stride + 1;
    const Geometry in_geometry(p.height, p.width, p.width + 1), out_geometry(out_height, out_width, out_width + 1);
    Bf16Map in(in_geometry, 2, 0, 0), out(out_geometry, 2, 0, 0);
    in.randomize(random);
    in.at(0, 1, 1) = 0xffc0u;  // a negative NaN
    in.at(1, 0, 0) = 0xff80u;
    in.pack({0, 1});
    PoolShape shape{};
    shape.in = in_geometry.shape();
    shape.out = out_geometry.shape();
    shape.kernel_h = shape.kernel_w = p.kernel;
    shape.stride_h = shape.stride_w = p.stride;
    shape.dilation_h = shape.dilation_w = p.dilation;
    shape.pad_top = shape.pad_left = shape.pad_bottom = shape.pad_right = p.pad;
    std::vector<uint32_t> scratch(kernels.table.max_pool_scratch(shape), kPoison);
    kernels.table.max_pool(shape, in.plane(0), out.plane(0), scratch.data());
    bool equal = true;
    for (int32_t a = 0; a < 2; ++a)
      out.for_each_pixel([&](int32_t y, int32_t x, int32_t) {
        float best = -kInfinity;
        bool nan = false;
        for (int32_t t = 0; t < p.kernel * p.kernel; ++t) {
          const int32_t yy = y * p.stride - p.pad + t / p.kernel * p.dilation;
          const int32_t xx = x * p.stride - p.pad + t % p.kernel * p.dilation;
          if (yy < 0 || yy >= p.height || xx < 0 || xx >= p.width) continue;
          nan = nan || std::isnan(wide(in.at(a, yy, xx)));
          best = std::max(best, wide(in.at(a, yy, xx)));
        }
        const float got = wide(out.unpack(a, y, x));
        equal = equal && (nan ? std::isnan(got) : got == best);
      });
    check(equal && out.pads_are_zero(), kernels.isa + " max pool " + std::to_string(p.height));
  }
}

}  // namespace
}  // namespace dynprune::cpu::testing

int main() {
  using namespace dynprune::cpu::testing;
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // as every thread that executes a plan does
#endif
  for (const Kernels& kernels : usable_kernels()) {
    test_convolutions(kernels);
    test_maps(kernels);
    test_max_pool(kernels);
    test_windows(kernels);
    test_linear(kernels);
    std::printf("%-12s (%s): %d passed so far\n", kernels.isa.c_str(), kernels.table.isa, g_passed);
  }
  std::printf("%d passed, %d failed\n", g_passed, g_failed);
  return g_failed ? 1 : 0;
}
