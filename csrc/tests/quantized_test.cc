// int8 kernels of every ISA this CPU has, against plain integer loops: the bits have to be equal.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "cpu/quantized_kernels.h"
#include "planar.h"
#include "window_cases.h"

namespace dynprune::cpu::testing {
namespace {

int g_passed = 0, g_failed = 0;

void check(bool ok, const std::string& what) {
  ok ? ++g_passed : ++g_failed;
  if (!ok && g_failed <= 40) std::printf("FAILED %s\n", what.c_str());
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr uint32_t kPoison = 0xa5a5a5a5u;

struct Kernels {
  std::string isa;
  QuantizedKernels table;
};

std::vector<Kernels> usable_kernels() {
  std::vector<Kernels> list;
#define ADD_KERNELS(ISA)                             \
  list.push_back({#ISA, {}});                        \
  fill_quantized_conv_##ISA(list.back().table);      \
  fill_quantized_winograd_##ISA(list.back().table);  \
  fill_quantized_depthwise_##ISA(list.back().table); \
  fill_quantized_maps_##ISA(list.back().table)
  ADD_KERNELS(generic);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    ADD_KERNELS(avx2);
  }
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    ADD_KERNELS(avx512);
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi")) {
      ADD_KERNELS(avx512_vnni);
    }
  }
#endif
#undef ADD_KERNELS
  return list;
}

// -- the plain arithmetic ------------------------------------------------------------------------

int low_of(QuantizedType type) { return type == QuantizedType::kU8 ? 0 : -128; }
int high_of(QuantizedType type) { return type == QuantizedType::kU8 ? 255 : 127; }
int clip(int v, QuantizedType type) { return std::min(std::max(v, low_of(type)), high_of(type)); }

int rounded(float v) {
  if (std::isnan(v)) return -32768;
  return static_cast<int>(std::nearbyint(std::min(std::max(static_cast<double>(v), -32768.0), 32767.0)));
}

int random_value(Random& random, QuantizedType type) { return low_of(type) + random.below(256); }

// A quantised map as plain integers and as group planes, each in a heap block of its exact size.
class QuantizedMap {
 public:
  QuantizedMap(const Geometry& geometry, int32_t channels, QuantizedType type, int64_t before, int64_t after)
      : geometry(geometry),
        type(type),
        values(static_cast<size_t>(channels), std::vector<int>(static_cast<size_t>(pixels()), 0)),
        before_(before),
        stride_(before + geometry.shape().blocks * int64_t{kBlock} + after),
        words_(static_cast<size_t>(stride_ * ((channels + 3) / 4) + 0), 0) {}
  int32_t channels() const { return static_cast<int32_t>(values.size()); }
  int64_t pixels() const { return int64_t{geometry.shape().height} * geometry.shape().width; }
  GroupPlanes planes() { return {words_.data() + before_, stride_}; }
  uint32_t* plane(int32_t group) { return words_.data() + before_ + group * stride_; }
  int& at(int32_t channel, int32_t y, int32_t x) {
    return values[static_cast<size_t>(channel)][static_cast<size_t>(y * geometry.shape().width + x)];
  }
  void randomize(Random& random) {
    for (auto& channel : values)
      for (int& v : channel) v = random.below(8) ? random_value(random, type) : high_of(type);
  }
  // Position i of the planes gets channel list[i]; the rest of the last word is zero.
  void pack(const std::vector<int32_t>& list) {
    for (size_t i = 0; i < list.size(); ++i)
      for (int32_t y = 0; y < geometry.shape().height; ++y)
        for (int32_t x = 0; x < geometry.shape().width; ++x) {
          uint32_t& word = plane(static_cast<int32_t>(i / 4))[y * geometry.shape().pitch + x];
          word |= (static_cast<uint32_t>(at(list[i], y, x)) & 255u) << (8 * (i % 4));
        }
  }
  int unpack(int32_t position, int32_t y, int32_t x) {
    const uint32_t bits = plane(position / 4)[y * geometry.shape().pitch + x] >> (8 * (position % 4)) & 255u;
    return type == QuantizedType::kU8 ? static_cast<int>(bits) : static_cast<int8_t>(bits);
  }
  void fill_words(uint32_t pixel_word) {
    for (int32_t g = 0; g < (channels() + 3) / 4; ++g)
      for (int32_t y = 0; y < geometry.shape().height; ++y)
        for (int32_t x = 0; x < geometry.shape().width; ++x) plane(g)[y * geometry.shape().pitch + x] = pixel_word;
  }
  bool pads_are_zero() {
    for (int32_t g = 0; g < (channels() + 3) / 4; ++g)
      for (int64_t p = -before_; p < stride_ - before_; ++p)
        if (!geometry.is_pixel(p) && plane(g)[p] != 0) return false;
    return true;
  }

  Geometry geometry;
  QuantizedType type;
  std::vector<std::vector<int>> values;  // [channel][pixel]

 private:
  int64_t before_, stride_;
  std::vector<uint32_t> words_;
};

std::vector<int32_t> all_of(int32_t n) {
  std::vector<int32_t> list;
  for (int32_t i = 0; i < n; ++i) list.push_back(i);
  return list;
}

// Positions from which each tap stays inside its row.
struct TapMasks {
  TapMasks(const Geometry& geometry, const std::vector<int32_t>& columns) {
    const PlaneShape& shape = geometry.shape();
    for (int32_t column : columns) {
      masks.emplace_back(static_cast<size_t>(shape.blocks), uint16_t{0});
      for (int32_t p = 0; p < shape.blocks * kBlock; ++p) {
        const int32_t x = p % shape.pitch + column;
        if (x >= 0 && x < shape.pitch)
          masks.back()[static_cast<size_t>(p / kBlock)] |= static_cast<uint16_t>(1u << p % kBlock);
      }
    }
    for (const auto& mask : masks) table.push_back(mask.data());
  }
  std::vector<std::vector<uint16_t>> masks;
  std::vector<const uint16_t*> table;
};

std::vector<int32_t> taps_columns(int32_t kernel) {
  std::vector<int32_t> columns;
  for (int32_t t = 0; t < kernel * kernel; ++t) columns.push_back(t % kernel - kernel / 2);
  return columns;
}

// -- convolution ---------------------------------------------------------------------------------

// Stride 1, same size; a strided convolution differs only in its tap offsets.
struct ConvCase {
  int32_t in_channels, out_channels, height, width, kernel;
  QuantizedType in_type, out_type, residual_type;
  float residual_scale, inner_low, inner_high;
  int32_t live_in, live_out;
  bool gate, shift, depthwise;
  int32_t groups = 1;
  bool mask = false;  // depthwise: weights and scales of 1, gates of 0 and 1

  int32_t row_inputs() const { return depthwise ? 1 : in_channels / groups; }
  int32_t first_input(int32_t k) const { return depthwise ? k : k / (out_channels / groups) * row_inputs(); }
  std::string name(const std::string& isa) const {
    char text[200];
    std::snprintf(text, sizeof text,
                  "%s %d/%d>%d/%d %dx%d k%d in %d out %d residual %d x %g low %g gate %d shift %d dw %d groups %d",
                  isa.c_str(), live_in, in_channels, live_out, out_channels, height, width, kernel,
                  static_cast<int>(in_type), static_cast<int>(out_type), static_cast<int>(residual_type),
                  static_cast<double>(residual_scale), static_cast<double>(inner_low), gate, shift, depthwise, groups);
    return text;
  }
};

struct Model {
  Model(const ConvCase& c, Random& random) : row_channels(quantized_row_channels(c.row_inputs())) {
    const int32_t taps = c.kernel * c.kernel, columns = c.row_inputs();
    rows.assign(static_cast<size_t>(c.out_channels) * taps * row_channels + kRowOverread, 0);
    for (int32_t k = 0; k < c.out_channels; ++k) {
      int32_t total = 0;
      for (int32_t t = 0; t < taps; ++t)
        for (int32_t i = 0; i < columns; ++i) {
          const int32_t w = random.below(8) ? random.below(255) - 127 : 127;
          rows[static_cast<size_t>((k * taps + t) * row_channels + i)] = static_cast<int8_t>(w);
          total += w;
        }
      row_sum.push_back(total);
      scale.push_back((0.2f + std::fabs(random.uniform())) / (60.0f * static_cast<float>(columns * taps)));
      bias.push_back(random.uniform() * 60.0f);
      gate.push_back(random.below(5) ? random.uniform() * 2.0f : 0.0f);
      shift.push_back(random.uniform() * 20.0f);
    }
    if (!c.mask) return;
    rows.assign(rows.size(), 1);
    row_sum.assign(row_sum.size(), c.kernel * c.kernel);
    scale.assign(scale.size(), 1.0f);
    bias.assign(bias.size(), 0.0f);
    for (float& g : gate) g = g == 0.0f ? 0.0f : 1.0f;
  }
  int weight(const ConvCase& c, int32_t k, int32_t t, int32_t i) const {
    return rows[static_cast<size_t>((k * c.kernel * c.kernel + t) * row_channels + i)];
  }
  int32_t row_channels;
  std::vector<int8_t> rows;
  std::vector<int32_t> row_sum;
  std::vector<float> scale, bias, gate, shift;
};

// What the model says about one output element.
int expected(const ConvCase& c, const Model& m, QuantizedMap& in, const std::vector<int32_t>& live_in, int32_t k,
             int32_t y, int32_t x, int residual) {
  int64_t sum = 0;
  for (int32_t i : live_in) {
    const int32_t column = i - c.first_input(k);
    if (column < 0 || column >= c.row_inputs()) continue;
    for (int32_t t = 0; t < c.kernel * c.kernel; ++t) {
      const int32_t yy = y + t / c.kernel - c.kernel / 2, xx = x + t % c.kernel - c.kernel / 2;
      if (yy < 0 || yy >= c.height || xx < 0 || xx >= c.width) continue;
      sum += int64_t{in.at(i, yy, xx)} * m.weight(c, k, t, column);
    }
  }
  const auto ki = static_cast<size_t>(k);
  volatile float s = m.scale[ki], b = m.bias[ki];
  if (c.gate) s = s * m.gate[ki], b = b * m.gate[ki];
  if (c.shift) b = b + m.shift[ki];
  volatile float v = static_cast<float>(sum) * s;
  v = v + b;
  if (c.residual_scale == 0.0f) {
    if (c.inner_high < kInfinity) v = std::min(static_cast<float>(v), c.inner_high * (c.gate ? m.gate[ki] : 1.0f));
    return clip(rounded(v), c.out_type);
  }
  v = std::max(static_cast<float>(v), c.inner_low);
  if (c.residual_scale == 1.0f && c.residual_type == c.out_type) return clip(rounded(v) + residual, c.out_type);
  volatile float r = static_cast<float>(residual) * c.residual_scale;
  v = v + r;
  return clip(rounded(v), c.out_type);
}

// Memory of exactly the bytes that a kernel asks for, and full of rubbish.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : memory_(std::aligned_alloc(64, (bytes + 64) / 64 * 64), std::free) {
    std::memset(memory_.get(), 0xa5, bytes);
  }
  void* get() const { return memory_.get(); }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;
};

// Where the outputs of a call may be cut into two parts, as for two threads.
int32_t cut_of(const QuantizedConvCall& call, bool adds) {
  if (!adds) return call.n_out / 2 / 4 * 4;
  int32_t cut = call.n_out / 2;
  while (cut > 0 && call.out_channel[cut - 1] / 4 == call.out_channel[cut] / 4) --cut;
  return cut;
}

// Sums of these cases stay far below the limit: kWinogradSumLimit allows 115 channels of nothing but the largest.
bool fits_winograd(const Kernels& kernels, const ConvCase& c) {
  return kernels.table.winograd && c.kernel == 3 && c.groups == 1 && !c.depthwise;
}

// In two parts, as two threads would: bands of rows, or shares of the outputs.
void run_winograd(const Kernels& kernels, const QuantizedConvShape& shape, const QuantizedWeights& weights,
                  const QuantizedConvCall& call, bool adds, bool bands) {
  const Scratch scratch(kernels.table.winograd_scratch(shape));
  const int32_t rows = (shape.out.height + 3) / 4, row = bands ? rows / 2 / 4 * 4 : 0;
  const int32_t cut = bands ? 0 : cut_of(call, adds);
  if (bands && row > 0) kernels.table.winograd(shape, weights, call, {0, row}, 0, call.n_out, scratch.get());
  if (!bands) kernels.table.winograd(shape, weights, call, {0, rows}, 0, cut, scratch.get());
  kernels.table.winograd(shape, weights, call, {row, rows}, cut, call.n_out, scratch.get());
}

void test_conv(const Kernels& kernels, const ConvCase& c, uint64_t seed) {
  Random random(seed);
  const int32_t reach = c.kernel / 2, pitch = c.width + (seed % 2 ? std::max(reach, 1) : 0);
  const Geometry geometry(c.height, c.width, pitch);
  const int64_t guard = reach * pitch + reach;
  const Model model(c, random);
  const auto live_in = random.subset(c.in_channels, c.live_in);
  const auto live_out = random.subset(c.out_channels, c.live_out);
  QuantizedMap in(geometry, c.in_channels, c.in_type, guard, guard);
  in.randomize(random);
  in.fill_words(0);
  in.pack(live_in);
  // Planes beyond the live ones must not be read.
  for (int32_t g = (static_cast<int32_t>(live_in.size()) + 3) / 4; g < (c.in_channels + 3) / 4; ++g)
    for (int64_t p = 0; p < geometry.shape().blocks * kBlock; ++p) in.plane(g)[p] = kPoison;
  const bool adds = c.residual_scale != 0.0f;
  QuantizedMap residual(geometry, c.out_channels, adds ? c.residual_type : c.out_type, 0, 0);
  residual.randomize(random);
  std::vector<int32_t> taps;
  for (int32_t t = 0; t < c.kernel * c.kernel; ++t)
    taps.push_back((t / c.kernel - reach) * pitch + t % c.kernel - reach);
  const TapMasks masks(geometry, taps_columns(c.kernel));
  const QuantizedConvShape shape{c.depthwise ? 1 : c.in_channels,
                                 c.out_channels,
                                 c.groups,
                                 static_cast<int32_t>(taps.size()),
                                 taps.data(),
                                 masks.table.data(),
                                 geometry.shape(),
                                 c.in_type,
                                 c.out_type,
                                 c.residual_type,
                                 c.residual_scale,
                                 c.inner_low,
                                 c.inner_high};
  const QuantizedWeights weights{model.rows.data(), model.row_sum.data(), model.scale.data(), model.bias.data()};
  const auto n_out = static_cast<int32_t>(live_out.size());
  std::vector<int> wanted;
  for (int32_t y = 0; y < c.height; ++y)
    for (int32_t x = 0; x < c.width; ++x)
      for (int32_t k : live_out) wanted.push_back(expected(c, model, in, live_in, k, y, x, residual.at(k, y, x)));

  for (bool winograd : {false, true}) {
    if (winograd && !fits_winograd(kernels, c)) continue;
    const std::string name = c.name(kernels.isa) + (winograd ? " winograd" : "");
    QuantizedMap out(geometry, c.out_channels, c.out_type, 0, 0);
    if (adds) {
      QuantizedMap packed(geometry, c.out_channels, c.residual_type, 0, 0);
      packed.values = residual.values;
      packed.pack(all_of(c.out_channels));
      for (int32_t g = 0; g < (c.out_channels + 3) / 4; ++g)
        std::copy(packed.plane(g), packed.plane(g) + geometry.shape().blocks * kBlock, out.plane(g));
    } else {
      out.fill_words(kPoison);
    }

    const QuantizedConvCall call{in.planes(),
                                 live_in.data(),
                                 static_cast<int32_t>(live_in.size()),
                                 out.planes(),
                                 live_out.data(),
                                 static_cast<int32_t>(live_out.size()),
                                 c.gate ? model.gate.data() : nullptr,
                                 c.shift ? model.shift.data() : nullptr};
    if (winograd) {
      run_winograd(kernels, shape, weights, call, adds, seed % 2 == 0);
    } else if (c.depthwise) {
      const int32_t planes = (n_out + 3) / 4, half = planes / 2;
      kernels.table.depthwise(shape, weights, call, 0, half);
      kernels.table.depthwise(shape, weights, call, half, planes);
    } else {
      const Scratch scratch(kernels.table.conv_scratch(shape));
      const int32_t cut = cut_of(call, adds);
      kernels.table.conv(shape, weights, call, 0, cut, scratch.get());
      kernels.table.conv(shape, weights, call, cut, n_out, scratch.get());
    }

    bool equal = true, others_kept = true, fillers_zero = true;
    auto want = wanted.begin();
    for (int32_t y = 0; y < c.height; ++y)
      for (int32_t x = 0; x < c.width; ++x) {
        for (int32_t i = 0; i < n_out; ++i)
          equal = equal && out.unpack(adds ? live_out[static_cast<size_t>(i)] : i, y, x) == *want++;
        if (adds) {
          for (int32_t k = 0; k < c.out_channels; ++k) {
            if (std::binary_search(live_out.begin(), live_out.end(), k)) continue;
            const int bits = out.unpack(k, y, x) & 255;
            others_kept = others_kept && bits == (residual.at(k, y, x) & 255);
          }
        } else {
          for (int32_t i = n_out; i < (n_out + 3) / 4 * 4; ++i) fillers_zero = fillers_zero && out.unpack(i, y, x) == 0;
        }
      }
    check(equal, name);
    check(others_kept, name + ": a channel that is not computed changed");
    check(fillers_zero, name + ": fillers");
    check(out.pads_are_zero(), name + ": pads");
  }
}

void test_convolutions(const Kernels& kernels) {
  const QuantizedType u8 = QuantizedType::kU8, s8 = QuantizedType::kS8;
  uint64_t seed = 1;
  const int32_t live[][4] = {
      // live in, in, live out, out
      {0, 8, 4, 8},     {1, 5, 1, 3},      {3, 3, 16, 16},   {16, 16, 16, 16}, {7, 16, 9, 16},
      {8, 16, 5, 32},   {20, 24, 11, 24},  {15, 32, 17, 32}, {40, 96, 13, 20}, {64, 64, 30, 64},
      {125, 128, 6, 9}, {37, 130, 40, 41}, {1, 64, 64, 64},  {63, 64, 1, 64},  {200, 300, 3, 10},
  };
  const int32_t sizes[][2] = {{1, 2}, {3, 5}, {7, 7}, {8, 8}, {14, 14}, {9, 21}};
  for (const auto& channels : live)
    for (const auto& size : sizes)
      for (int32_t kernel : {1, 3}) {
        const bool large = channels[1] > 64;
        if (large && size[0] * size[1] > 64) continue;
        const ConvCase base{channels[1], channels[3], size[0],   size[1],     kernel,      u8,    u8,    u8,
                            0.0f,        -kInfinity,  kInfinity, channels[0], channels[2], false, false, false};
        ConvCase c = base;
        test_conv(kernels, c, seed++);
        c.gate = true;
        c.inner_high = 41.7f;
        test_conv(kernels, c, seed++);
        c.inner_high = kInfinity;
        c.in_type = s8;
        c.out_type = s8;
        test_conv(kernels, c, seed++);
        c.shift = true;
        c.residual_type = s8;
        c.residual_scale = 1.0f;
        test_conv(kernels, c, seed++);
        c = base;
        c.residual_scale = 1.0f;
        test_conv(kernels, c, seed++);
        c.inner_low = 0.0f;
        c.residual_type = s8;  // not the type of the output: added as a float
        test_conv(kernels, c, seed++);
        c.residual_scale = 0.37f;
        c.in_type = s8;
        c.gate = true;
        test_conv(kernels, c, seed++);
      }
  const int32_t grouped[][5] = {
      // groups, live in, in, live out, out
      {2, 8, 8, 8, 8},     {2, 5, 8, 6, 8},     {8, 32, 32, 32, 32}, {8, 19, 32, 13, 32},
      {4, 64, 64, 32, 32}, {4, 33, 64, 17, 32}, {3, 15, 15, 21, 21}, {3, 7, 15, 11, 21},
      {5, 1, 10, 20, 20},  {4, 0, 16, 9, 16},   {6, 6, 6, 12, 12},   {16, 8, 16, 20, 48},
  };
  for (const auto& n : grouped)
    for (const auto& size : sizes) {
      ConvCase c{n[2],       n[4],      size[0], size[1], 3,    u8,    u8,    u8,  0.0f,
                 -kInfinity, kInfinity, n[1],    n[3],    true, false, false, n[0]};
      test_conv(kernels, c, seed++);
      c.in_type = c.out_type = s8;
      test_conv(kernels, c, seed++);
      c.residual_type = s8;
      c.residual_scale = 1.0f;
      test_conv(kernels, c, seed++);
    }
  // Bands of a map that is too large for one, rows of more than 16 tiles, and last rows and columns of every width.
  const int32_t large[][6] = {
      {45, 46, 64, 64, 5, 5}, {6, 70, 9, 12, 6, 21}, {5, 131, 4, 4, 3, 3}, {33, 29, 30, 41, 19, 37}};
  for (const auto& n : large)
    for (QuantizedType type : {u8, s8}) {
      ConvCase c{n[3], n[5],       n[0],      n[1], 3,    type, type,  type,
                 0.0f, -kInfinity, kInfinity, n[2], n[4], true, false, false};
      test_conv(kernels, c, seed++);
      c.residual_scale = 1.0f;
      test_conv(kernels, c, seed++);
    }
  ConvCase stem{3, 10, 12, 17, 7, s8, u8, u8, 0.0f, -kInfinity, kInfinity, 3, 10, false, false, false};
  test_conv(kernels, stem, seed++);
  for (int32_t n : {1, 4, 6, 33})
    for (const auto& size : sizes)
      for (QuantizedType type : {u8, s8}) {
        ConvCase c{
            n,         n,           size[0],         size[1], 3,    type, type == u8 ? s8 : u8, u8, 0.0f, -kInfinity,
            kInfinity, (n + 1) / 2, (2 * n + 2) / 3, true,    true, true};
        test_conv(kernels, c, seed++);
        std::swap(c.live_in, c.live_out);
        c.shift = false;
        c.inner_high = 23.5f;
        test_conv(kernels, c, seed++);
        c.gate = false;
        test_conv(kernels, c, seed++);
        c.live_in = c.live_out = n;
        test_conv(kernels, c, seed++);
        c.live_in = 0;
        test_conv(kernels, c, seed++);
        // A map behind a mask: with and without dead channels, and with inputs that are exactly zero.
        ConvCase masked{n,          n,         size[0], size[1], 1,    type,  type, type, 0.0f,
                        -kInfinity, kInfinity, n,       n,       true, false, true, 1,    true};
        test_conv(kernels, masked, seed++);
        masked.live_out = (n + 1) / 2;
        test_conv(kernels, masked, seed++);
        masked.live_in = (2 * n + 2) / 3;
        test_conv(kernels, masked, seed++);
      }
}

// Sums that leave the range of 16 and 24 bits, and scales that leave that of the output.
void test_extremes(const Kernels& kernels) {
  const QuantizedType u8 = QuantizedType::kU8, s8 = QuantizedType::kS8;
  const Geometry geometry(4, 4, 5);
  const std::vector<int32_t> taps = {-6, -5, -4, -1, 0, 1, 4, 5, 6};
  const int32_t channels = 512;
  const TapMasks masks(geometry, taps_columns(3));
  for (float scale : {1e-6f, 1.0f, 1e30f, -1e30f, std::numeric_limits<float>::quiet_NaN()})
    for (QuantizedType type : {u8, s8}) {
      QuantizedMap in(geometry, channels, u8, 6, 6), out(geometry, 4, type, 0, 0);
      in.fill_words(0xffffffffu);
      std::vector<int8_t> rows(static_cast<size_t>(4 * 9 * channels + kRowOverread), 127);
      const std::vector<int32_t> sums(4, 127 * 9 * channels), list = all_of(channels);
      const std::vector<float> scales(4, scale), biases(4, 0.0f);
      const QuantizedConvShape shape{channels, 4,    1,  9,    taps.data(), masks.table.data(), geometry.shape(),
                                     u8,       type, u8, 0.0f, -kInfinity,  kInfinity};
      const QuantizedConvCall call{in.planes(), list.data(), channels, out.planes(), list.data(), 4, nullptr, nullptr};
      const size_t bytes = kernels.table.conv_scratch(shape);
      std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, (bytes + 64) / 64 * 64), std::free);
      kernels.table.conv(shape, {rows.data(), sums.data(), scales.data(), biases.data()}, call, 0, 4, scratch.get());
      const float v = static_cast<float>(4 * channels * 127 * 255) * scale;  // a corner sees four of the nine taps
      check(out.unpack(0, 0, 0) == clip(rounded(v), type), kernels.isa + " extremes at scale " + std::to_string(scale));
    }
}

// The largest sums that Winograd may meet, of both signs: with 24 bits and more a float says whether they are right to
// one.
void test_winograd_limit(const Kernels& kernels) {
  if (!kernels.table.winograd) return;
  const Geometry geometry(9, 9, 10);
  const std::vector<int32_t> taps = {-11, -10, -9, -1, 0, 1, 9, 10, 11};
  const TapMasks masks(geometry, taps_columns(3));
  for (QuantizedType type : {QuantizedType::kU8, QuantizedType::kS8})
    for (int weight : {127, -127}) {
      const bool is_signed = type == QuantizedType::kS8;
      const int64_t largest = is_signed ? -128 : 255;
      const auto channels = static_cast<int32_t>((kWinogradSumLimit - 1) / (9 * 127 * std::abs(largest)));
      const int64_t sum = 9 * channels * largest * weight;
      const int32_t row_channels = quantized_row_channels(channels);
      QuantizedMap in(geometry, channels, type, 11, 11), out(geometry, 4, QuantizedType::kS8, 0, 0);
      for (auto& plane : in.values) plane.assign(plane.size(), static_cast<int>(largest));
      const std::vector<int32_t> list = all_of(channels);
      in.pack(list);
      std::vector<int8_t> rows(static_cast<size_t>(4 * 9 * row_channels + kRowOverread), 0);
      for (int32_t row = 0; row < 4 * 9; ++row)
        std::fill_n(rows.begin() + row * row_channels, channels, static_cast<int8_t>(weight));
      const std::vector<float> scales(4, 1.0f), biases(4, static_cast<float>(-sum));
      const QuantizedConvShape shape{channels,
                                     4,
                                     1,
                                     9,
                                     taps.data(),
                                     masks.table.data(),
                                     geometry.shape(),
                                     type,
                                     QuantizedType::kS8,
                                     QuantizedType::kS8,
                                     0.0f,
                                     -kInfinity,
                                     kInfinity};
      const QuantizedConvCall call{in.planes(), list.data(), channels, out.planes(), list.data(), 4, nullptr, nullptr};
      const std::vector<int32_t> row_sums(4, 0);
      run_winograd(kernels, shape, {rows.data(), row_sums.data(), scales.data(), biases.data()}, call, false, false);
      bool equal = true;
      for (int32_t k = 0; k < 4; ++k)
        for (int32_t y = 0; y < 9; ++y)
          for (int32_t x = 0; x < 9; ++x) {
            const int64_t seen = (y % 8 ? 3 : 2) * (x % 8 ? 3 : 2);  // taps inside the map
            const float v = static_cast<float>(seen * channels * largest * weight) - static_cast<float>(sum);
            equal = equal && out.unpack(k, y, x) == clip(rounded(v), QuantizedType::kS8);
          }
      check(equal, kernels.isa + " winograd at its limit, sum " + std::to_string(sum));
    }
}

// -- other passes --------------------------------------------------------------------------------

void test_maps(const Kernels& kernels) {
  uint64_t seed = 900;
  for (const auto& size : {std::pair<int, int>{1, 2}, {7, 7}, {5, 33}, {14, 15}})
    for (QuantizedType type : {QuantizedType::kU8, QuantizedType::kS8}) {
      Random random(seed++);
      const Geometry geometry(size.first, size.second, size.second + 1);
      const std::string name = kernels.isa + " " + std::to_string(size.first) + "x" + std::to_string(size.second) +
                               (type == QuantizedType::kU8 ? " u8" : " s8");
      // quantise: rows of three channels that lie densely, one missing
      const auto dense = random.vector(static_cast<size_t>(3 * size.first * size.second));
      const float* channel[4] = {dense.data(), dense.data() + size.first * size.second, nullptr,
                                 dense.data() + 2 * size.first * size.second};
      QuantizedMap map(geometry, 4, type, 0, 0);
      kernels.table.quantize(geometry.shape(), channel, size.second, 97.3f, type, map.plane(0));
      bool equal = true;
      for (int32_t a = 0; a < 4; ++a)
        for (int32_t y = 0; y < size.first; ++y)
          for (int32_t x = 0; x < size.second; ++x) {
            const int want = channel[a] ? clip(rounded(channel[a][y * size.second + x] * 97.3f), type) : 0;
            equal = equal && map.unpack(a, y, x) == want;
          }
      check(equal && map.pads_are_zero(), name + " quantize");

      QuantizedMap full(geometry, 4, type, 0, 0);
      full.randomize(random);
      full.pack(all_of(4));
      const Geometry floats_geometry(size.first, size.second, size.second + 3);
      PlanarMap floats(floats_geometry, 1, 0, 0);
      int32_t reduced[kQuantizedReductions][4];
      for (int kind = 0; kind < kQuantizedReductions; ++kind)
        kernels.table.reduce[kind](geometry.shape(), full.plane(0), type, reduced[kind]);
      for (int32_t a = 0; a < 4; ++a) {
        kernels.table.dequantize(geometry.shape(), floats_geometry.shape(), full.plane(0), a, 0.037f, type,
                                 floats.plane(0));
        bool same = true;
        int total = 0, magnitudes = 0, squares = 0, most = -1000;
        for (int32_t y = 0; y < size.first; ++y)
          for (int32_t x = 0; x < size.second; ++x) {
            const int v = full.at(a, y, x);
            same = same && floats.at(0, y, x) == static_cast<float>(v) * 0.037f;
            total += v;
            magnitudes += std::abs(v);
            squares += v * v;
            most = std::max(most, v);
          }
        check(same && floats.pads_are_zero(0), name + " dequantize");
        const int want[kQuantizedReductions] = {total, magnitudes, squares, most};  // in the order of QuantizedReduce
        for (int kind = 0; kind < kQuantizedReductions; ++kind)
          check(reduced[kind][a] == want[kind], name + " reduction " + std::to_string(kind));
      }

      for (QuantizedType to : {QuantizedType::kU8, QuantizedType::kS8}) {
        QuantizedMap changed(geometry, 4, to, 0, 0);
        std::copy(full.plane(0), full.plane(0) + geometry.shape().blocks * kBlock, changed.plane(0));
        const float shift[4] = {0.5f, -3.0f, 7.25f, 0.0f};
        kernels.table.rescale(geometry.shape(), 0xb, shift, 0.61f, type, to, changed.plane(0));
        bool same = true;
        for (int32_t a = 0; a < 4; ++a)
          for (int32_t y = 0; y < size.first; ++y)
            for (int32_t x = 0; x < size.second; ++x) {
              volatile float r = static_cast<float>(full.at(a, y, x)) * 0.61f;
              const float v = shift[a] + r;
              const int want = a == 2 ? full.at(a, y, x) & 255 : clip(rounded(v), to) & 255;
              same = same && (changed.unpack(a, y, x) & 255) == want;
            }
        check(same && changed.pads_are_zero(), name + " rescale");
      }
    }
}

void test_windows(const Kernels& kernels) {
  uint64_t seed = 1300;
  for (const WindowShape& shape : window_cases())
    for (QuantizedType type : {QuantizedType::kU8, QuantizedType::kS8}) {
      Random random(seed++);
      const auto x = random.vector(static_cast<size_t>(shape.height * shape.width));
      std::vector<uint32_t> y(static_cast<size_t>(shape.windows * shape.window_stride), 0xdeadbeefu);
      std::vector<uint8_t> scratch(kernels.table.window_scratch(shape));
      kernels.table.quantize_windows(shape, x.data(), 97.3f, type, y.data(), scratch.data());
      bool equal = true;
      for_each_window_element(shape, kChannelsPerWord, y.data(), [&](int32_t row, int32_t column, uint32_t element) {
        const int want = row < 0 ? 0 : clip(rounded(x[static_cast<size_t>(row * shape.width + column)] * 97.3f), type);
        equal = equal && (element & 255u) == (static_cast<uint32_t>(want) & 255u);
      });
      check(equal, kernels.isa + " " + name_of(shape));
    }
}

void test_max_pool(const Kernels& kernels) {
  struct Pool {
    int32_t height, width, kernel, stride, pad, dilation;
  };
  const Pool pools[] = {{8, 8, 2, 2, 0, 1},   {7, 9, 3, 2, 1, 1},   {33, 37, 3, 2, 1, 1}, {12, 12, 3, 1, 1, 1},
                        {14, 50, 3, 3, 1, 1}, {11, 20, 3, 1, 2, 2}, {16, 70, 2, 2, 0, 1}, {5, 5, 5, 5, 2, 1}};
  uint64_t seed = 77;
  for (const Pool& p : pools)
    for (QuantizedType type : {QuantizedType::kU8, QuantizedType::kS8}) {
      Random random(seed++);
      const int32_t extent = p.dilation * (p.kernel - 1) + 1;
      const Geometry in_geometry(p.height, p.width, p.width + 1);
      const Geometry out_geometry((p.height + 2 * p.pad - extent) / p.stride + 1,
                                  (p.width + 2 * p.pad - extent) / p.stride + 1,
                                  (p.width + 2 * p.pad - extent) / p.stride + 2);
      QuantizedMap in(in_geometry, 4, type, 0, 0), out(out_geometry, 4, type, 0, 0);
      in.randomize(random);
      in.pack(all_of(4));
      PoolShape shape{};
      shape.in = in_geometry.shape();
      shape.out = out_geometry.shape();
      shape.kernel_h = shape.kernel_w = p.kernel;
      shape.stride_h = shape.stride_w = p.stride;
      shape.dilation_h = shape.dilation_w = p.dilation;
      shape.pad_top = shape.pad_left = shape.pad_bottom = shape.pad_right = p.pad;
      std::vector<uint32_t> scratch(kernels.table.max_pool_scratch(shape), kPoison);
      kernels.table.max_pool(shape, type, in.plane(0), out.plane(0), scratch.data());
      bool equal = true;
      for (int32_t a = 0; a < 4; ++a)
        for (int32_t y = 0; y < out_geometry.shape().height; ++y)
          for (int32_t x = 0; x < out_geometry.shape().width; ++x) {
            int best = -1000;
            for (int32_t t = 0; t < p.kernel * p.kernel; ++t) {
              const int32_t yy = y * p.stride - p.pad + t / p.kernel * p.dilation;
              const int32_t xx = x * p.stride - p.pad + t % p.kernel * p.dilation;
              if (yy >= 0 && yy < p.height && xx >= 0 && xx < p.width) best = std::max(best, in.at(a, yy, xx));
            }
            equal = equal && out.unpack(a, y, x) == best;
          }
      char name[120];
      std::snprintf(name, sizeof name, "%s max pool %dx%d k%d s%d p%d d%d", kernels.isa.c_str(), p.height, p.width,
                    p.kernel, p.stride, p.pad, p.dilation);
      check(equal && out.pads_are_zero(), name);
    }
}

}  // namespace
}  // namespace dynprune::cpu::testing

int main() {
  using namespace dynprune::cpu::testing;
  for (const Kernels& kernels : usable_kernels()) {
    test_convolutions(kernels);
    test_extremes(kernels);
    test_winograd_limit(kernels);
    test_maps(kernels);
    test_max_pool(kernels);
    test_windows(kernels);
    std::printf("%-12s (%s): %d passed so far\n", kernels.isa.c_str(), kernels.table.isa, g_passed);
  }
  std::printf("%d passed, %d failed\n", g_passed, g_failed);
  return g_failed ? 1 : 0;
}
