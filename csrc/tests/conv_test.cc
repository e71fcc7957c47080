// Convolution kernels of every ISA this CPU has, against a plain double-precision loop.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <string>

#include "../cpu/conv_cost.h"
#include "planar.h"

namespace dynprune::cpu::testing {
namespace {

int g_passed = 0, g_failed = 0;

void check(bool ok, const std::string& what) {
  ok ? ++g_passed : ++g_failed;
  if (!ok && g_failed <= 40) std::printf("FAILED %s\n", what.c_str());
}

struct Isa {
  const char* name;
  int32_t lanes;
  bool supported;
  void (*fill[6])(KernelTable&);
};

// A convolution as the model states it.
struct Conv {
  int32_t in_channels, out_channels, height, width;
  int32_t kernel_h, kernel_w, stride, dilation;
  int32_t top, left, bottom, right;

  int32_t out_height() const { return (height + top + bottom - (kernel_h - 1) * dilation - 1) / stride + 1; }
  int32_t out_width() const { return (width + left + right - (kernel_w - 1) * dilation - 1) / stride + 1; }
  int32_t taps() const { return kernel_h * kernel_w; }
  std::string name() const {
    char text[160];
    std::snprintf(text, sizeof text, "%d>%d %dx%d k%dx%d s%d d%d p%d,%d,%d,%d", in_channels, out_channels, height,
                  width, kernel_h, kernel_w, stride, dilation, top, left, bottom, right);
    return text;
  }
};

Conv same(int32_t in_channels, int32_t out_channels, int32_t height, int32_t width, int32_t kernel_h, int32_t kernel_w,
          int32_t stride = 1) {
  return {in_channels, out_channels, height,       width,        kernel_h,    kernel_w, stride,
          1,           kernel_h / 2, kernel_w / 2, kernel_h / 2, kernel_w / 2};
}

int32_t floor_div(int32_t a, int32_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// The planar form of a convolution's input: the map itself, or its phases for a stride.
struct PlanarInput {
  PlanarInput(const Conv& conv, Random& random)
      : pitch(pitch_of(conv)),
        out(conv.out_height(), conv.out_width(), pitch),
        dense(random.vector(static_cast<size_t>(conv.in_channels) * conv.height * conv.width)),
        // The phases of a channel lie one after the other in one block; each has its own guards.
        phase(Geometry(std::max(1, ceil_div(conv.height, conv.stride)), std::max(1, ceil_div(conv.width, conv.stride)),
                       pitch)),
        before(guard_before(conv)),
        phase_stride(before + std::max(phase.shape().blocks, out.shape().blocks) * kBlock + guard_after(conv)) {
    for (int32_t c = 0; c < conv.in_channels; ++c) {
      storage.emplace_back(static_cast<size_t>(phase_stride * conv.stride * conv.stride), 0.0f);
      for (int32_t y = 0; y < conv.height; ++y) {
        for (int32_t x = 0; x < conv.width; ++x) {
          const int64_t index = (y % conv.stride) * conv.stride + x % conv.stride;
          plane(c)[index * phase_stride + (y / conv.stride) * pitch + x / conv.stride] = value(conv, c, y, x);
        }
      }
    }
    for (int32_t r = 0; r < conv.kernel_h; ++r) {
      for (int32_t s = 0; s < conv.kernel_w; ++s) {
        const int32_t y = r * conv.dilation - conv.top, x = s * conv.dilation - conv.left;
        const int32_t row = floor_div(y, conv.stride), column = floor_div(x, conv.stride);
        const int32_t index = (y - row * conv.stride) * conv.stride + x - column * conv.stride;
        tap_offset.push_back(static_cast<int32_t>(index * phase_stride) + row * pitch + column);
      }
    }
  }
  static int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }
  static int32_t pitch_of(const Conv& conv) {
    const int32_t reach = std::max({ceil_div(conv.left, conv.stride), ceil_div(conv.right, conv.stride), 1});
    return std::max(ceil_div(conv.width, conv.stride) + reach, conv.out_width());
  }
  int64_t guard_before(const Conv& conv) const {
    return ceil_div(conv.top, conv.stride) * pitch + ceil_div(conv.left, conv.stride);
  }
  int64_t guard_after(const Conv& conv) const {
    return static_cast<int64_t>(conv.kernel_h) * conv.dilation * pitch + conv.kernel_w * conv.dilation + 2 * kBlock;
  }
  float* plane(int32_t c) { return storage[static_cast<size_t>(c)].data() + before; }
  float value(const Conv& conv, int32_t c, int32_t y, int32_t x) const {
    return dense[(static_cast<size_t>(c) * conv.height + y) * conv.width + x];
  }
  void poison(int32_t c) {
    for (float& x : storage[static_cast<size_t>(c)]) x = std::numeric_limits<float>::quiet_NaN();
  }
  void clear(int32_t c) {
    for (float& x : storage[static_cast<size_t>(c)]) x = 0.0f;
  }

  int32_t pitch;
  Geometry out;
  std::vector<float> dense;
  Geometry phase;
  int64_t before, phase_stride;
  std::vector<std::vector<float>> storage;
  std::vector<int32_t> tap_offset;
};

enum Terms { kBias = 1, kGate = 2, kShift = 4, kResidual = 8, kInner = 16, kOuter = 32, kAllTerms = 64 };

// Epilogue arrays of one test; which of them are used is a bit set of Terms.
struct EpilogueData {
  EpilogueData(const Conv& conv, const Geometry& out, Random& random)
      : bias(random.vector(static_cast<size_t>(conv.out_channels))),
        gate(random.vector(static_cast<size_t>(conv.out_channels))),
        shift(random.vector(static_cast<size_t>(conv.out_channels))),
        residual(out, conv.out_channels, 0, 0) {
    residual.randomize(random);
  }
  Epilogue select(int terms, const std::vector<int32_t>& live_out) {
    constexpr float inf = std::numeric_limits<float>::infinity();
    residual_planes.clear();
    for (int32_t k : live_out) residual_planes.push_back(residual.plane(k));
    return {terms & kBias ? bias.data() : nullptr,
            terms & kGate ? gate.data() : nullptr,
            terms & kShift ? shift.data() : nullptr,
            terms & kResidual ? residual_planes.data() : nullptr,
            terms & kInner ? Clamp{-0.5f, 0.6f} : Clamp{-inf, inf},
            terms & kOuter ? Clamp{0.0f, 0.8f} : Clamp{-inf, inf}};
  }
  std::vector<float> bias, gate, shift;
  PlanarMap residual;
  std::vector<const float*> residual_planes;
};

double finish(double v, const Epilogue& e, int32_t channel, double residual) {
  if (e.bias) v += e.bias[channel];
  v = std::min<double>(std::max<double>(v, e.inner.lo), e.inner.hi);
  if (e.gate) v *= e.gate[channel];
  if (e.shift) v += e.shift[channel];
  if (e.residual) v += residual;
  return std::min<double>(std::max<double>(v, e.outer.lo), e.outer.hi);
}

// Sum and sum of magnitudes for one output element over the inputs listed.
struct Sum {
  double value, magnitude;
};
Sum reference(const Conv& conv, const PlanarInput& in, const std::vector<float>& weights,
              const std::vector<int32_t>& live_in, int32_t k, int32_t y, int32_t x) {
  Sum sum{0, 0};
  for (int32_t c : live_in) {
    for (int32_t r = 0; r < conv.kernel_h; ++r) {
      const int32_t iy = y * conv.stride - conv.top + r * conv.dilation;
      if (iy < 0 || iy >= conv.height) continue;
      for (int32_t s = 0; s < conv.kernel_w; ++s) {
        const int32_t ix = x * conv.stride - conv.left + s * conv.dilation;
        if (ix < 0 || ix >= conv.width) continue;
        const size_t row = static_cast<size_t>(k) * conv.in_channels + static_cast<size_t>(c);
        const double product =
            static_cast<double>(weights[(row * conv.kernel_h + r) * conv.kernel_w + s]) * in.value(conv, c, iy, ix);
        sum.value += product;
        sum.magnitude += std::fabs(product);
      }
    }
  }
  return sum;
}

bool equal_planes(const PlanarMap& a, const PlanarMap& b, int32_t channel) {
  const PlaneShape& shape = a.geometry().shape();
  for (int32_t y = 0; y < shape.height; ++y) {
    for (int32_t x = 0; x < shape.width; ++x) {
      if (!(a.at(channel, y, x) == b.at(channel, y, x))) return false;  // -0 equals 0
    }
  }
  return true;
}

std::vector<int32_t> all_of(int32_t n) {
  std::vector<int32_t> list;
  for (int32_t i = 0; i < n; ++i) list.push_back(i);
  return list;
}

// One convolution with lists, and the planes it writes.
struct Run {
  Run(const Conv& conv, PlanarInput& in, const std::vector<int32_t>& live_in, const std::vector<int32_t>& live_out)
      : output(in.out, conv.out_channels, 0, 0), in_list(live_in), out_list(live_out) {
    for (int32_t c : in_list) inputs.push_back(in.plane(c));
    for (int32_t k = 0; k < conv.out_channels; ++k) output.poison(k);
    for (int32_t k : out_list) {
      outputs.push_back(output.plane(k));
      std::fill(output.plane(k), output.plane(k) + in.out.shape().blocks * kBlock, 0.0f);
      output.fill(k, 77.0f);
    }
  }
  // Outputs [first, last) of the list only.
  ConvCall call(const Epilogue& epilogue, size_t first, size_t last) const {
    Epilogue part = epilogue;
    if (part.residual) part.residual += first;
    return {inputs.data(),
            in_list.data(),
            static_cast<int32_t>(inputs.size()),
            outputs.data() + first,
            out_list.data() + first,
            static_cast<int32_t>(last - first),
            part};
  }
  ConvCall call(const Epilogue& epilogue) const { return call(epilogue, 0, outputs.size()); }

  PlanarMap output;
  std::vector<int32_t> in_list, out_list;
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
};

// Compares with the reference; checks that pads stayed zero and planes that are not live untouched.
void check_run(const std::string& name, const Conv& conv, const PlanarInput& in, const std::vector<float>& weights,
               const Run& run, const Epilogue& epilogue, const PlanarMap& residual, double tolerance) {
  bool close = true, pads = true, dead = true;
  for (int32_t k = 0; k < conv.out_channels; ++k) {
    if (!std::binary_search(run.out_list.begin(), run.out_list.end(), k)) {
      dead = dead && run.output.is_poisoned(k);
      continue;
    }
    pads = pads && run.output.pads_are_zero(k);
    for (int32_t y = 0; y < conv.out_height(); ++y) {
      for (int32_t x = 0; x < conv.out_width(); ++x) {
        const Sum sum = reference(conv, in, weights, run.in_list, k, y, x);
        const double want = finish(sum.value, epilogue, k, residual.at(k, y, x));
        close = close && std::fabs(run.output.at(k, y, x) - want) <= tolerance * (sum.magnitude + 1);
      }
    }
  }
  check(close, name + ": values");
  check(pads, name + ": pads stay zero");
  check(dead, name + ": dead outputs untouched");
}

constexpr double kDirectTolerance = 1e-6;  // of the sum of magnitudes: fp32, at most ~1000 terms

// Kernels that compute a DirectShape from the model's weights; blocks [first, last) where they can be cut.
struct DirectKernel {
  const char* name;
  bool cuts_blocks;
  std::function<void(const ConvCall&, int32_t first, int32_t last)> run;
};

std::vector<DirectKernel> direct_kernels(const KernelTable& table, const DirectShape& shape,
                                         const std::vector<float>& weights) {
  std::vector<DirectKernel> kernels{{"", true, [&](const ConvCall& call, int32_t first, int32_t last) {
                                       table.conv_direct(shape, weights.data(), call, first, last);
                                     }}};
  if (fits_small_map(shape)) {
    kernels.push_back({" as a small map", false, [&](const ConvCall& call, int32_t, int32_t) {
                         std::vector<float> scratch(table.small_map_scratch(shape),
                                                    std::numeric_limits<float>::quiet_NaN());
                         table.conv_small_map(shape, weights.data(), call, scratch.data());
                       }});
  }
  return kernels;
}

void test_direct(const KernelTable& table, const Conv& conv, int32_t n_in, int32_t n_out, int terms) {
  Random random(static_cast<uint64_t>(conv.height * 131 + conv.kernel_h * 17 + n_in * 5 + n_out));
  PlanarInput in(conv, random);
  const std::vector<float> weights =
      random.vector(static_cast<size_t>(conv.out_channels) * conv.in_channels * conv.taps());
  EpilogueData data(conv, in.out, random);
  const std::vector<int32_t> live_in = random.subset(conv.in_channels, n_in);
  const std::vector<int32_t> live_out = random.subset(conv.out_channels, n_out);
  const Epilogue epilogue = data.select(terms, live_out);
  const DirectShape shape{conv.in_channels, conv.out_channels, conv.taps(), in.tap_offset.data(), in.out.shape()};
  const std::string name = std::string(table.isa) + " direct " + conv.name() + " live " + std::to_string(n_in) + ">" +
                           std::to_string(n_out) + " terms " + std::to_string(terms);
  for (int32_t c = 0; c < conv.in_channels; ++c) {
    if (!std::binary_search(live_in.begin(), live_in.end(), c)) in.poison(c);
  }
  const std::vector<DirectKernel> kernels = direct_kernels(table, shape, weights);
  std::vector<Run> runs;
  for (const DirectKernel& kernel : kernels) {
    Run run(conv, in, live_in, live_out);
    kernel.run(run.call(epilogue), 0, shape.out.blocks);
    check_run(name + kernel.name, conv, in, weights, run, epilogue, data.residual, kDirectTolerance);

    // In pieces: blocks and outputs cut in uneven parts.
    Run pieces(conv, in, live_in, live_out);
    const int32_t block_cut = kernel.cuts_blocks ? shape.out.blocks / 3 : 0;
    const size_t out_cut = live_out.size() / 2;
    for (const auto& [first, last] : {std::pair<size_t, size_t>{0, out_cut}, {out_cut, live_out.size()}}) {
      if (block_cut > 0) kernel.run(pieces.call(epilogue, first, last), 0, block_cut);
      kernel.run(pieces.call(epilogue, first, last), block_cut, shape.out.blocks);
    }
    bool same_bits = true;
    for (int32_t k : live_out) same_bits = same_bits && equal_planes(run.output, pieces.output, k);
    check(same_bits, name + kernel.name + ": pieces give the same bits");
    runs.push_back(std::move(run));
  }

  // Dense over zero planes.
  for (int32_t c = 0; c < conv.in_channels; ++c) {
    if (!std::binary_search(live_in.begin(), live_in.end(), c)) in.clear(c);
  }
  const std::vector<int32_t> every_out = all_of(conv.out_channels);
  for (size_t i = 0; i < kernels.size(); ++i) {
    Run dense(conv, in, all_of(conv.in_channels), every_out);
    kernels[i].run(dense.call(data.select(terms, every_out)), 0, shape.out.blocks);
    bool same_bits = true;
    for (int32_t k : live_out) same_bits = same_bits && equal_planes(runs[i].output, dense.output, k);
    check(same_bits, name + kernels[i].name + ": skipping gives the bits of the dense run");
  }
}

void test_direct_grid(const KernelTable& table) {
  constexpr int kUsual = kBias | kOuter;
  const int32_t sizes[][2] = {{1, 1}, {2, 2},   {2, 3},   {4, 4},   {1, 16},  {7, 7},
                              {8, 8}, {14, 14}, {15, 13}, {28, 28}, {33, 31}, {56, 56}};
  const int32_t kernels[][2] = {{1, 1}, {3, 3}, {5, 5}, {1, 7}, {7, 7}};
  for (const auto& size : sizes) {
    for (const auto& kernel : kernels) {
      for (int32_t stride : {1, 2}) {
        test_direct(table, same(6, 9, size[0], size[1], kernel[0], kernel[1], stride), 4, 7, kUsual);
      }
    }
  }
  for (int32_t n_in : {0, 1, 15, 16, 17, 19}) {
    for (int32_t n_out : {0, 1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 19}) {
      test_direct(table, same(19, 19, 7, 7, 3, 3), n_in, n_out, kUsual);
      test_direct(table, same(19, 19, 14, 14, 1, 1), n_in, n_out, kUsual);
    }
  }
  // Every register tile: outputs by vectors of positions.
  for (int32_t n_out = 1; n_out <= 17; ++n_out) {
    for (int32_t height = 1; height <= 9; ++height) {
      for (const auto& kernel : {1, 3}) test_direct(table, same(3, 17, height, 7, kernel, kernel), 3, n_out, kUsual);
      test_direct(table, same(3, 17, height, 14, 1, 3), 2, n_out, kUsual);
    }
  }
  for (int terms = 0; terms < kAllTerms; ++terms) {
    test_direct(table, same(5, 11, 7, 7, 3, 3), 3, 9, terms);
    test_direct(table, same(5, 11, 15, 13, 1, 1), 3, 9, terms);
  }
  test_direct(table, {4, 5, 12, 17, 3, 3, 1, 2, 2, 2, 2, 2}, 4, 5, kUsual);  // dilation
  test_direct(table, {4, 5, 12, 17, 3, 3, 2, 2, 2, 2, 2, 2}, 4, 5, kUsual);  // with a stride
  test_direct(table, {4, 5, 12, 17, 3, 3, 1, 1, 0, 0, 0, 0}, 4, 5, kUsual);  // no padding
  test_direct(table, {4, 5, 12, 17, 3, 3, 2, 1, 0, 0, 1, 1}, 4, 5, kUsual);  // asymmetric
  test_direct(table, {4, 5, 12, 17, 4, 2, 1, 1, 1, 0, 2, 1}, 4, 5, kUsual);
  test_direct(table, {4, 5, 13, 16, 3, 3, 3, 1, 1, 1, 1, 1}, 4, 5, kUsual);  // stride 3
}

// The map of a strided convolution unsplit, as the channel-lane kernel reads it.
PlanarInput unsplit_input(const Conv& conv, uint64_t seed) {
  Random random(seed);
  Conv plain = conv;
  plain.stride = 1;
  PlanarInput in(plain, random);
  in.out = Geometry(conv.out_height(), conv.out_width(), conv.out_width() + 2);
  return in;
}

void run_channel_lanes(const KernelTable& table, const StridedShape& shape, const std::vector<float>& weights,
                       const Run& run, const Epilogue& epilogue, bool in_pieces) {
  const ChannelLanesSizes sizes = table.channel_lanes_sizes(shape);
  std::vector<float> packed(sizes.weights), scratch(sizes.thread_scratch, std::numeric_limits<float>::quiet_NaN());
  table.channel_lanes_pack(shape, weights.data(), packed.data());
  const size_t out_cut = in_pieces ? run.out_list.size() / 2 : 0;
  const int32_t row_cut = in_pieces ? shape.out.height / 3 : 0;
  for (const auto& [first, last] : {std::pair<size_t, size_t>{0, out_cut}, {out_cut, run.out_list.size()}}) {
    const ConvCall call = run.call(epilogue, first, last);
    table.conv_channel_lanes(shape, packed.data(), call, 0, row_cut, scratch.data());
    table.conv_channel_lanes(shape, packed.data(), call, row_cut, shape.out.height, scratch.data());
  }
}

void test_channel_lanes(const KernelTable& table, const Conv& conv, int32_t n_in, int32_t n_out, int terms) {
  const auto seed = static_cast<uint64_t>(conv.height * 131 + conv.kernel_h * 17 + n_in * 5 + n_out);
  PlanarInput in = unsplit_input(conv, seed);
  Random random(seed + 1);
  const std::vector<float> weights =
      random.vector(static_cast<size_t>(conv.out_channels) * conv.in_channels * conv.taps());
  EpilogueData data(conv, in.out, random);
  const std::vector<int32_t> live_in = random.subset(conv.in_channels, n_in);
  const std::vector<int32_t> live_out = random.subset(conv.out_channels, n_out);
  const Epilogue epilogue = data.select(terms, live_out);
  const StridedShape shape{conv.in_channels, conv.out_channels, conv.taps(), in.tap_offset.data(),
                           in.pitch,         conv.stride,       conv.stride, in.out.shape()};
  const std::string name = std::string(table.isa) + " channel lanes " + conv.name() + " live " + std::to_string(n_in) +
                           ">" + std::to_string(n_out) + " terms " + std::to_string(terms);
  for (int32_t c = 0; c < conv.in_channels; ++c) {
    if (!std::binary_search(live_in.begin(), live_in.end(), c)) in.poison(c);
  }
  Run run(conv, in, live_in, live_out);
  run_channel_lanes(table, shape, weights, run, epilogue, false);
  check_run(name, conv, in, weights, run, epilogue, data.residual, kDirectTolerance);

  const auto check_bits = [&](const PlanarMap& other, const char* what) {
    bool same_bits = true;
    for (int32_t k : live_out) same_bits = same_bits && equal_planes(run.output, other, k);
    check(same_bits, name + ": " + what);
  };
  Run pieces(conv, in, live_in, live_out);
  run_channel_lanes(table, shape, weights, pieces, epilogue, true);
  check_bits(pieces.output, "pieces give the same bits");

  // The direct kernel adds in the same order.
  if (conv.stride == 1 && !(terms & kResidual)) {
    Random again(seed);
    PlanarInput split(conv, again);
    const DirectShape direct{conv.in_channels, conv.out_channels, conv.taps(), split.tap_offset.data(),
                             split.out.shape()};
    Run other(conv, split, live_in, live_out);
    table.conv_direct(direct, weights.data(), other.call(epilogue), 0, direct.out.blocks);
    check_bits(other.output, "the bits of the direct kernel");
  }
  for (int32_t c = 0; c < conv.in_channels; ++c) {
    if (!std::binary_search(live_in.begin(), live_in.end(), c)) in.clear(c);
  }
  const std::vector<int32_t> every_out = all_of(conv.out_channels);
  Run dense(conv, in, all_of(conv.in_channels), every_out);
  run_channel_lanes(table, shape, weights, dense, data.select(terms, every_out), false);
  check_bits(dense.output, "skipping gives the bits of the dense run");
  if (terms & kResidual) {
    Run in_place(conv, in, live_in, live_out);
    for (int32_t k : live_out) {
      std::copy(data.residual.plane(k), data.residual.plane(k) + in.out.shape().blocks * kBlock,
                in_place.output.plane(k));
    }
    Epilogue aliased = data.select(terms, live_out);
    aliased.residual = in_place.outputs.data();
    run_channel_lanes(table, shape, weights, in_place, aliased, false);
    check_bits(in_place.output, "residual in place");
  }
}

void test_channel_lanes_grid(const KernelTable& table) {
  if (!table.has_channel_lanes) return;
  constexpr int kUsual = kBias | kOuter;
  const int32_t sizes[][2] = {{1, 1}, {2, 3}, {3, 2}, {4, 4}, {7, 7}, {8, 8}, {14, 14}, {15, 13}, {28, 29}, {33, 31}};
  for (const auto& size : sizes) {
    for (const int32_t kernel : {1, 3, 7}) {
      for (int32_t stride : {1, 2}) {
        for (int terms : {kUsual, kAllTerms - 1}) {
          test_channel_lanes(table, same(6, 19, size[0], size[1], kernel, kernel, stride), 4, 13, terms);
        }
      }
    }
  }
  // Every register tile: pixels of a row, one or two rows, by blocks of channels.
  for (int32_t width = 1; width <= 29; ++width) {
    for (int32_t stride : {1, 2}) test_channel_lanes(table, same(3, 80, 3, width, 1, 1, stride), 2, 80, kUsual);
  }
  for (int32_t n_out : {0, 1, 2, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 79}) {
    for (int32_t size : {2, 7, 14}) test_channel_lanes(table, same(9, 80, size, size, 3, 3), 5, n_out, kUsual);
  }
  test_channel_lanes(table, same(9, 80, 14, 14, 3, 3), 0, 40, kUsual);
  test_channel_lanes(table, same(700, 33, 14, 14, 1, 1), 650, 20, kUsual);  // several panels
  for (int terms = 0; terms < kAllTerms; ++terms) test_channel_lanes(table, same(3, 18, 7, 15, 1, 1), 2, 9, terms);
  test_channel_lanes(table, {4, 5, 12, 17, 3, 3, 2, 2, 2, 2, 2, 2}, 4, 5, kUsual);  // dilation
  test_channel_lanes(table, {4, 5, 12, 17, 3, 3, 2, 1, 0, 0, 1, 1}, 4, 5, kUsual);  // asymmetric
}

// Of the sum of magnitudes. The transforms of F(4x4) multiply by up to 8 and cancel; see Lavin and Gray, section 5.
double winograd_tolerance(int32_t m) { return m == 4 ? 2e-5 : 2e-6; }

// 7x7, stride 2, padding 3.
void test_stem(const KernelTable& table, int32_t in_channels, int32_t out_channels, int32_t height, int32_t width,
               int32_t n_in, int32_t n_out, int terms) {
  const Conv conv = same(in_channels, out_channels, height, width, 7, 7, 2);
  PlanarInput in = unsplit_input(conv, static_cast<uint64_t>(height * 131 + width * 17 + n_out));
  Random random(static_cast<uint64_t>(width + n_in));
  const std::vector<float> weights = random.vector(static_cast<size_t>(out_channels) * in_channels * conv.taps());
  EpilogueData data(conv, in.out, random);
  const std::vector<int32_t> live_in = random.subset(in_channels, n_in);
  const std::vector<int32_t> live_out = random.subset(out_channels, n_out);
  const Epilogue epilogue = data.select(terms, live_out);
  PlaneShape map = in.out.shape();
  map.height = conv.height;
  map.width = conv.width;
  map.pitch = in.pitch;
  const StemShape shape{in_channels, out_channels, map, in.out.shape()};
  const StemSizes sizes = table.stem_sizes(shape);
  std::vector<float> packed(sizes.weights);
  table.stem_pack(shape, weights.data(), packed.data());
  const int32_t rows = (shape.out.height + 3) / 4;
  const auto convolve = [&](const Run& run, const Epilogue& terms_of_run, int32_t row_cut) {
    std::vector<float> scratch(sizes.thread_scratch, std::numeric_limits<float>::quiet_NaN());
    table.conv_stem(shape, packed.data(), run.call(terms_of_run), row_cut, rows, scratch.data());
    table.conv_stem(shape, packed.data(), run.call(terms_of_run), 0, row_cut, scratch.data());
  };
  const std::string name = std::string(table.isa) + " stem " + conv.name() + " live " + std::to_string(n_in) + ">" +
                           std::to_string(n_out) + " terms " + std::to_string(terms);
  for (int32_t c = 0; c < in_channels; ++c) {
    if (!std::binary_search(live_in.begin(), live_in.end(), c)) in.poison(c);
  }
  Run run(conv, in, live_in, live_out);
  convolve(run, epilogue, 0);
  check_run(name, conv, in, weights, run, epilogue, data.residual, winograd_tolerance(4));

  const auto check_bits = [&](const Run& other, const char* what) {
    bool same_bits = true;
    for (int32_t k : live_out) same_bits = same_bits && equal_planes(run.output, other.output, k);
    check(same_bits, name + ": " + what);
  };
  Run pieces(conv, in, live_in, live_out);
  convolve(pieces, epilogue, rows / 3);
  check_bits(pieces, "pieces give the same bits");
  for (int32_t c = 0; c < in_channels; ++c) {
    if (!std::binary_search(live_in.begin(), live_in.end(), c)) in.clear(c);
  }
  const std::vector<int32_t> every_out = all_of(out_channels);
  Run dense(conv, in, all_of(in_channels), every_out);
  convolve(dense, data.select(terms, every_out), 0);
  check_bits(dense, "skipping gives the bits of the dense run");
}

void test_stem_grid(const KernelTable& table) {
  if (!table.has_stem) return;
  constexpr int kUsual = kBias | kOuter;
  const int32_t sizes[][2] = {{1, 1},    {2, 3},    {7, 7},   {8, 9},    {15, 31},
                              {33, 127}, {12, 128}, {9, 129}, {20, 250}, {9, 515}};
  for (const auto& size : sizes) test_stem(table, 3, 9, size[0], size[1], 3, 7, kUsual);
  for (int32_t n_out : {0, 1, 4, 5, 9}) test_stem(table, 4, 9, 30, 37, 2, n_out, kUsual);
  test_stem(table, 1, 4, 30, 37, 0, 4, kUsual);
  for (int terms = 0; terms < kAllTerms; ++terms) test_stem(table, 2, 6, 18, 40, 2, 5, terms);
}

// Depthwise: output k reads input k / multiplier; `zero_inputs` planes are passed as null.
void test_depthwise(const KernelTable& table, const Conv& conv, int32_t n_out, int32_t zero_inputs, int terms,
                    bool unsplit = false) {
  Random random(static_cast<uint64_t>(conv.height * 31 + conv.kernel_h * 7 + n_out));
  PlanarInput in = unsplit ? unsplit_input(conv, random.bits()) : PlanarInput(conv, random);
  const int32_t multiplier = conv.out_channels / conv.in_channels;
  const std::vector<float> weights = random.vector(static_cast<size_t>(conv.out_channels) * conv.taps());
  EpilogueData data(conv, in.out, random);
  const std::vector<int32_t> live_out = random.subset(conv.out_channels, n_out);
  const std::vector<int32_t> zero = random.subset(conv.in_channels, zero_inputs);
  const Epilogue epilogue = data.select(terms, live_out);
  const DirectShape shape{1, conv.out_channels, conv.taps(), in.tap_offset.data(), in.out.shape()};
  const StridedShape strided{1,        conv.out_channels, conv.taps(), in.tap_offset.data(),
                             in.pitch, conv.stride,       conv.stride, in.out.shape()};
  const auto convolve = [&](const ConvCall& call) {
    if (unsplit) {
      table.conv_depthwise_strided(strided, weights.data(), call);
    } else {
      table.conv_depthwise(shape, weights.data(), call);
    }
  };
  const std::string name = std::string(table.isa) + (unsplit ? " depthwise unsplit " : " depthwise ") + conv.name() +
                           " live " + std::to_string(n_out) + " terms " + std::to_string(terms);
  // The same sums as a convolution with one input and all-zero rows elsewhere.
  std::vector<float> expanded(static_cast<size_t>(conv.out_channels) * conv.in_channels * conv.taps(), 0.0f);
  for (int32_t k = 0; k < conv.out_channels; ++k) {
    if (std::binary_search(zero.begin(), zero.end(), k / multiplier)) continue;
    for (int32_t t = 0; t < conv.taps(); ++t) {
      expanded[(static_cast<size_t>(k) * conv.in_channels + k / multiplier) * conv.taps() + t] =
          weights[static_cast<size_t>(k) * conv.taps() + t];
    }
  }
  Run run(conv, in, {}, live_out);
  for (int32_t k : live_out) {
    const int32_t c = k / multiplier;
    run.inputs.push_back(std::binary_search(zero.begin(), zero.end(), c) ? nullptr : in.plane(c));
  }
  // Inputs that feed no live output, or are zero, must not be read.
  for (int32_t c = 0; c < conv.in_channels; ++c) {
    if (std::find(run.inputs.begin(), run.inputs.end(), in.plane(c)) == run.inputs.end()) in.poison(c);
  }
  convolve(run.call(epilogue));
  Run check_lists(conv, in, all_of(conv.in_channels), live_out);
  run.in_list = check_lists.in_list;
  check_run(name, conv, in, expanded, run, epilogue, data.residual, kDirectTolerance);

  // A residual that is the output plane itself.
  if (terms & kResidual) {
    Run in_place(conv, in, {}, live_out);
    in_place.inputs = run.inputs;
    for (int32_t k : live_out) {
      std::copy(data.residual.plane(k), data.residual.plane(k) + in.out.shape().blocks * kBlock,
                in_place.output.plane(k));
    }
    Epilogue aliased = epilogue;
    aliased.residual = in_place.outputs.data();
    convolve(in_place.call(aliased));
    bool same_bits = true;
    for (int32_t k : live_out) same_bits = same_bits && equal_planes(run.output, in_place.output, k);
    check(same_bits, name + ": residual in place");
  }
}

void test_depthwise_grid(const KernelTable& table) {
  constexpr int kUsual = kBias | kOuter;
  const int32_t sizes[][2] = {{1, 1}, {2, 3}, {7, 7}, {8, 8}, {14, 14}, {15, 13}, {28, 28}, {33, 31}, {56, 56}};
  for (const auto& size : sizes) {
    for (const int32_t kernel : {1, 3, 5, 7}) {
      for (int32_t stride : {1, 2}) {
        for (int terms : {kUsual, kAllTerms - 1}) {
          test_depthwise(table, same(5, 5, size[0], size[1], kernel, kernel, stride), 3, 1, terms);
          if (stride == 2) test_depthwise(table, same(5, 5, size[0], size[1], kernel, kernel, 2), 3, 1, terms, true);
        }
      }
    }
  }
  for (int32_t n_out : {0, 1, 15, 16, 17, 20}) test_depthwise(table, same(20, 20, 9, 9, 3, 3), n_out, 4, kUsual);
  for (int terms = 0; terms < kAllTerms; ++terms) test_depthwise(table, same(6, 6, 15, 13, 3, 3), 4, 1, terms);
  test_depthwise(table, same(4, 8, 14, 14, 3, 3), 5, 1, kUsual);                // multiplier 2
  test_depthwise(table, {3, 3, 12, 17, 3, 3, 1, 2, 2, 2, 2, 2}, 3, 0, kUsual);  // dilation
  test_depthwise(table, {3, 3, 20, 40, 3, 3, 1, 1, 0, 0, 0, 0}, 3, 0, kUsual);  // no padding
  for (const bool unsplit : {false, true}) {
    test_depthwise(table, {3, 3, 20, 40, 3, 3, 2, 1, 0, 0, 1, 1}, 3, 0, kUsual, unsplit);  // asymmetric
    test_depthwise(table, {3, 3, 12, 17, 3, 3, 2, 2, 2, 2, 2, 2}, 3, 0, kUsual, unsplit);  // dilation
  }
  for (int32_t width : {13, 15, 16, 17, 31, 32, 34}) {
    test_depthwise(table, same(4, 8, 5, width, 3, 3, 2), 5, 1, kUsual, true);
  }
}

// In slices: the input transform and the products in uneven parts, in the order in which threads might, and the map in
// as many bands as there may be.
void run_winograd(const KernelTable& table, const WinogradShape& shape, WinogradWeights form,
                  const std::vector<float>& weights, const Run& run, const Epilogue& epilogue, bool in_slices) {
  const WinogradSizes sizes = table.winograd_sizes(shape, form);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const WinogradBands all = winograd_bands(shape, table.lanes);
  const int32_t bands = in_slices ? std::max(1, all.most()) : 1;
  std::vector<float> packed(sizes.weights), scratch(sizes.thread_scratch, nan);
  table.winograd_pack(shape, form, weights.data(), packed.data());
  const ConvCall call = run.call(epilogue);
  const int32_t in_cut = in_slices ? call.n_in / 3 : 0, out_cut = in_slices ? call.n_out / 3 : 0;
  std::vector<int32_t> backwards(static_cast<size_t>(call.n_in));
  std::iota(backwards.begin() + in_cut, backwards.end(), in_cut);
  std::reverse(backwards.begin() + in_cut, backwards.end());
  const int32_t* positions = in_slices && form != WinogradWeights::kChannelLanes ? backwards.data() : nullptr;
  for (int32_t band = 0; band < bands; ++band) {
    std::vector<float> v(static_cast<size_t>(winograd_band_scratch(table, shape, form, bands)), nan);
    const TileRows rows = all.rows(band, bands);
    if (call.n_in > in_cut) table.winograd_input(shape, rows, form, call, positions, in_cut, call.n_in, v.data());
    if (in_cut > 0) table.winograd_input(shape, rows, form, call, nullptr, 0, in_cut, v.data());
    table.winograd_output(shape, rows, form, packed.data(), v.data(), call, out_cut, call.n_out, scratch.data());
    if (out_cut > 0)
      table.winograd_output(shape, rows, form, packed.data(), v.data(), call, 0, out_cut, scratch.data());
  }
}

void test_winograd(const KernelTable& table, int32_t m, const Conv& conv, int32_t n_in, int32_t n_out, int terms) {
  Random random(static_cast<uint64_t>(conv.height * 131 + conv.width * 17 + n_in * 5 + n_out));
  PlanarInput in(conv, random);
  const std::vector<float> weights =
      random.vector(static_cast<size_t>(conv.out_channels) * conv.in_channels * conv.taps());
  EpilogueData data(conv, in.out, random);
  const std::vector<int32_t> live_in = random.subset(conv.in_channels, n_in);
  const std::vector<int32_t> live_out = random.subset(conv.out_channels, n_out);
  const Epilogue epilogue = data.select(terms, live_out);
  const WinogradShape shape{conv.in_channels, conv.out_channels, m, in.out.shape()};
  const std::string name = std::string(table.isa) + " F" + std::to_string(m) + " " + conv.name() + " live " +
                           std::to_string(n_in) + ">" + std::to_string(n_out) + " terms " + std::to_string(terms);
  // Not even the pads may be read, let alone dead planes.
  for (int32_t c = 0; c < conv.in_channels; ++c) {
    in.poison(c);
    for (int32_t y = 0; y < conv.height; ++y) {
      for (int32_t x = 0; x < conv.width; ++x) {
        if (std::binary_search(live_in.begin(), live_in.end(), c)) {
          in.plane(c)[y * in.pitch + x] = in.value(conv, c, y, x);
        }
      }
    }
  }
  Run run(conv, in, live_in, live_out);
  run_winograd(table, shape, WinogradWeights::kTransformed, weights, run, epilogue, false);
  check_run(name, conv, in, weights, run, epilogue, data.residual, winograd_tolerance(m));

  std::vector<WinogradWeights> forms{WinogradWeights::kTransformed, WinogradWeights::kOnTheFly};
  if (table.has_channel_lanes && winograd_fits_channel_lanes(shape)) forms.push_back(WinogradWeights::kChannelLanes);
  const auto check_bits = [&](const Run& other, const char* what) {
    bool same_bits = true;
    for (int32_t k : live_out) same_bits = same_bits && equal_planes(run.output, other.output, k);
    check(same_bits, name + ": " + what);
  };
  for (const WinogradWeights form : forms) {
    Run sliced(conv, in, live_in, live_out);
    run_winograd(table, shape, form, weights, sliced, epilogue, true);
    check_bits(sliced, "slices and weight forms give the same bits");
  }
  for (int32_t c = 0; c < conv.in_channels; ++c) {
    if (!std::binary_search(live_in.begin(), live_in.end(), c)) in.clear(c);
  }
  const std::vector<int32_t> every_out = all_of(conv.out_channels);
  for (const WinogradWeights form : forms) {
    Run dense(conv, in, all_of(conv.in_channels), every_out);
    run_winograd(table, shape, form, weights, dense, data.select(terms, every_out), false);
    check_bits(dense, "skipping gives the bits of the dense run");
  }
  if (terms & kResidual) {
    for (const WinogradWeights form : forms) {
      Run in_place(conv, in, live_in, live_out);
      for (int32_t k : live_out) {
        std::copy(data.residual.plane(k), data.residual.plane(k) + in.out.shape().blocks * kBlock,
                  in_place.output.plane(k));
      }
      Epilogue aliased = data.select(terms, live_out);
      aliased.residual = in_place.outputs.data();
      run_winograd(table, shape, form, weights, in_place, aliased, false);
      check_bits(in_place, "residual in place");
    }
  }
}

void test_winograd_grid(const KernelTable& table) {
  if (!table.has_winograd) return;
  constexpr int kUsual = kBias | kOuter;
  const int32_t sizes[][2] = {{1, 1},   {2, 3},   {4, 4},   {5, 6},   {7, 7},   {8, 8},   {9, 9},   {14, 14},
                              {15, 13}, {16, 16}, {17, 20}, {28, 28}, {32, 32}, {33, 31}, {35, 64}, {56, 56}};
  for (int32_t m : {2, 4}) {
    for (const auto& size : sizes) {
      for (int terms : {kUsual, kAllTerms - 1}) {
        test_winograd(table, m, same(3, 5, size[0], size[1], 3, 3), 2, 4, terms);
      }
    }
    test_winograd(table, m, same(2, 2, 112, 112, 3, 3), 2, 2, kUsual);
    test_winograd(table, m, same(2, 2, 6, 150, 3, 3), 2, 2, kUsual);
    for (int32_t n_in : {0, 1, 15, 16, 17, 35}) {
      for (int32_t n_out : {0, 1, 15, 16, 17, 31, 32, 33, 50}) {
        test_winograd(table, m, same(35, 50, 7, 7, 3, 3), n_in, n_out, kUsual);
      }
    }
    // Every register tile of the products.
    for (int32_t n_out = 1; n_out <= 33; ++n_out) {
      for (int32_t height : {4, 8, 12, 16, 24, 32}) {
        test_winograd(table, m, same(5, 33, height, 12, 3, 3), 4, n_out, kUsual);
      }
    }
    for (int terms = 0; terms < kAllTerms; ++terms) test_winograd(table, m, same(3, 5, 15, 13, 3, 3), 2, 4, terms);
  }
}

// NaN in a live input must reach the outputs whose windows hold it, and only those.
void test_nan(const KernelTable& table) {
  const Conv conv = same(4, 4, 14, 14, 3, 3);
  Random random(3);
  PlanarInput in(conv, random);
  const std::vector<float> weights = random.vector(4 * 4 * 9);
  in.plane(2)[6 * in.pitch + 5] = std::numeric_limits<float>::quiet_NaN();
  EpilogueData data(conv, in.out, random);
  const std::vector<int32_t> list = all_of(4);
  for (int terms : {kBias | kOuter, kAllTerms - 1}) {
    Run run(conv, in, list, list);
    const DirectShape shape{4, 4, 9, in.tap_offset.data(), in.out.shape()};
    table.conv_direct(shape, weights.data(), run.call(data.select(terms, list)), 0, shape.out.blocks);
    bool right = true;
    for (int32_t k = 0; k < 4; ++k) {
      for (int32_t y = 0; y < 14; ++y) {
        for (int32_t x = 0; x < 14; ++x) {
          const bool holds = std::abs(y - 6) <= 1 && std::abs(x - 5) <= 1;
          right = right && std::isnan(run.output.at(k, y, x)) == holds;
        }
      }
    }
    check(right, std::string(table.isa) + " direct: NaN reaches exactly its windows, terms " + std::to_string(terms));
  }
}

// The cost model: no less than the multiply-adds, and the known choices.
void test_cost(const KernelTable& table) {
  const std::string isa = table.isa;
  // Every shape of the last vector, half ones included.
  for (int32_t size = 1; table.has_winograd && size <= 40; ++size) {
    const Geometry map(size, size, size + 1);
    for (int32_t m : {2, 4}) {
      for (int32_t live : {1, 5, 16, 20}) {
        const WinogradShape winograd{20, 20, m, map.shape()};
        check(winograd_cycles(table, winograd, WinogradWeights::kOnTheFly, live, live) > 0, isa + " cost: positive");
      }
    }
  }
  for (int32_t size : {7, 8, 14, 28, 56}) {
    const Geometry map(size, size, size + 1);
    const PlaneShape& shape = map.shape();
    const DirectShape direct{64, 64, 9, nullptr, shape};
    for (int32_t live : {1, 7, 16, 33, 64}) {
      const double cycles = direct_cycles(table, direct, live, live);
      const double pixels = static_cast<double>(size) * size;
      check(cycles >= 9.0 * live * live * pixels / (table.lanes * direct_tiles(table.lanes).fma_per_cycle),
            isa + " cost: direct is bound by its multiply-adds");
      check(direct_cycles(table, direct, live, 0) == 0, isa + " cost: no outputs cost nothing");
    }
    if (!table.has_winograd) continue;
    const int32_t m = size >= 12 ? 4 : 2;
    const WinogradShape winograd{64, 64, m, shape};
    for (const WinogradWeights form : {WinogradWeights::kTransformed, WinogradWeights::kOnTheFly}) {
      check(winograd_cycles(table, winograd, form, 64, 64) < direct_cycles(table, direct, 64, 64),
            isa + " cost: Winograd wins dense");
      check(winograd_cycles(table, winograd, form, 2, 2) > direct_cycles(table, direct, 2, 2),
            isa + " cost: direct wins with two channels");
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu::testing

int main() {
  using namespace dynprune::cpu;
  using namespace dynprune::cpu::testing;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Isa isas[] = {
      {"generic",
       4,
       true,
       {fill_conv_direct_generic, fill_conv_depthwise_generic, fill_conv_winograd_generic,
        fill_conv_channel_lanes_generic, fill_conv_stem_generic, fill_conv_small_map_generic}},
      {"avx2",
       8,
       avx2,
       {fill_conv_direct_avx2, fill_conv_depthwise_avx2, fill_conv_winograd_avx2, fill_conv_channel_lanes_avx2,
        fill_conv_stem_avx2, fill_conv_small_map_avx2}},
      {"avx512",
       16,
       avx512,
       {fill_conv_direct_avx512, fill_conv_depthwise_avx512, fill_conv_winograd_avx512, fill_conv_channel_lanes_avx512,
        fill_conv_stem_avx512, fill_conv_small_map_avx512}},
  };
  for (const Isa& isa : isas) {
    if (!isa.supported) {
      std::printf("%s: this CPU lacks it\n", isa.name);
      continue;
    }
    KernelTable table{};
    table.isa = isa.name;
    table.lanes = isa.lanes;
    for (const auto fill : isa.fill) {
      if (fill) fill(table);
    }
    test_direct_grid(table);
    test_channel_lanes_grid(table);
    test_stem_grid(table);
    test_depthwise_grid(table);
    test_nan(table);
    test_winograd_grid(table);
    test_cost(table);
  }
  std::printf("%d passed, %d failed\n", g_passed, g_failed);
  return g_failed != 0;
}
