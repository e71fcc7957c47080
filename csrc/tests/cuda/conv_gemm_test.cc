// The tensor-core convolution on the emulator: every layout over channels, sets, strides, tails and grids.
#include "cuda/kernels.cu"
#include "tests/cuda/device_test.h"

namespace dynprune::cuda::testing {
namespace {

struct Case {
  const char* name;
  int batch, size, channels, outputs, kernel, stride, pad, dilation;
  double live_inputs, live_outputs;  // shares; negative = a map that stores all channels, no set
  bool fixed_outputs;                // some outputs are stored without being computed
  bool residual;
};

// Sizes that leave tails in pixels, inputs and outputs; and the cases where a set is empty, full or absent.
const Case kCases[] = {
    {"3x3, both gated", 3, 7, 40, 48, 3, 1, 1, 1, 0.5, 0.5, false, false},
    {"3x3 stride 2", 2, 9, 24, 72, 3, 2, 1, 1, 0.4, 0.4, true, true},
    {"1x1 of many channels", 2, 9, 136, 130, 1, 1, 0, 1, 0.5, 0.5, false, true},
    {"1x1 stride 2", 2, 8, 16, 24, 1, 2, 0, 1, 0.6, 0.6, true, false},
    {"no live input", 2, 7, 16, 16, 3, 1, 1, 1, 0.0, 1.0, false, true},
    {"no computed output", 2, 8, 16, 16, 1, 1, 0, 1, 0.5, 0.0, true, true},
    {"all live", 2, 8, 16, 72, 3, 1, 1, 1, 1.0, 1.0, false, false},
    {"dense stem", 2, 15, 3, 20, 7, 2, 3, 1, -1, -1, false, false},
    {"dense to gated", 3, 6, 24, 40, 1, 1, 0, 1, -1, 0.5, true, true},
    {"gated to dense", 3, 6, 40, 24, 1, 1, 0, 1, 0.5, -1, false, true},
    {"dilated", 2, 9, 8, 16, 3, 1, 2, 2, 0.7, 0.7, false, false},
    {"dense to gated, tiles of one image", 2, 8, 24, 40, 1, 1, 0, 1, -1, 0.5, true, true},
    {"one pixel, one channel", 5, 1, 1, 1, 1, 1, 0, 1, 0.5, 0.5, false, false},
};

// An element as the products take it.
template <typename T>
float as_operand(T v) {
  uint32_t raw = 0;
  memcpy(&raw, &v, sizeof(T));
  raw = operand<T>(raw);
  memcpy(&v, &raw, sizeof(T));
  return to_float(v);
}

bool same_bits(Array<float>& a, Array<float>& b) { return memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

// Memory for the reductions of an output, and their kinds.
struct Reductions {
  std::vector<SpatialKind> kinds;
  size_t line;  // floats of one kind
  Array<float> memory;

  Reductions(const ConvParams& p, std::vector<SpatialKind> wanted)
      : kinds(std::move(wanted)),
        line(static_cast<size_t>(p.batch) * group_count(p.shape.out_pixels()) * p.shape.outputs),
        memory(kinds.size() * line) {}

  GroupResults ref() {
    GroupResults results;
    results.data = memory.data();
    for (SpatialKind kind : kinds) results.kinds[results.count++] = kind;
    return results;
  }
};

// What the convolution reduced while it stored its output is what a pass over the output makes of it, bit for bit; and
// nothing is written for other channels than the `wanted` ones.
template <typename T>
void check_reductions(const ConvParams& p, Reductions& made, const Mask& wanted, const std::string& what) {
  const size_t outputs = static_cast<size_t>(p.shape.outputs);
  for (size_t i = 0; i < made.kinds.size(); ++i) {
    float* const results = made.memory.data() + i * made.line;
    Array<float> here(p.batch * outputs), there(p.batch * outputs);
    must_run(spatial_reduce({p.y, here.data(), made.kinds[i], results, p.computed, p.batch}, element_of<T>(), nullptr),
             what);
    must_run(spatial_reduce({p.y, there.data(), made.kinds[i], nullptr, nullptr, p.batch}, element_of<T>(), nullptr),
             what);
    expect(same_bits(here, there), what + ": reduction of kind " + std::to_string(static_cast<int>(made.kinds[i])));
    const size_t of_image = made.line / static_cast<size_t>(p.batch);
    bool as_computed = true;
    for (size_t at = 0; at < made.line; ++at) {
      const bool written = results[at] == results[at];
      as_computed = as_computed && written == (wanted[at / of_image * outputs + at % outputs] != 0);
    }
    expect(as_computed, what + ": groups of other channels than the computed ones");
  }
}

// `spread`: every segment of K is a block's work of its own.
template <typename T>
void run(const Case& c, WeightLayout layout, int segments, bool spread, int blocks, unsigned seed) {
  Random random(seed);
  const int out = (c.size + 2 * c.pad - c.dilation * (c.kernel - 1) - 1) / c.stride + 1;
  ConvShape s{c.size,   c.size,   out,      out,   c.channels, c.outputs,  c.kernel,
              c.kernel, c.stride, c.stride, c.pad, c.pad,      c.dilation, c.dilation};
  const Mask inputs = random.mask(c.batch, c.channels, c.live_inputs);
  const Mask outputs = random.mask(c.batch, c.outputs, c.live_outputs);
  Mask stored = outputs;
  if (c.fixed_outputs) {
    for (uint8_t& b : stored) b = b || random.chance(0.2);
  }
  const bool gated_outputs = c.live_outputs >= 0, dense_layout = layout == WeightLayout::kDense;
  Map<T> x(c.batch, c.channels, c.size, c.size, c.live_inputs < 0 ? nullptr : &inputs);
  Map<T> y(c.batch, c.outputs, out, out, gated_outputs ? &stored : nullptr);
  const Mask residual_mask = random.mask(c.batch, c.outputs, 0.6);
  Map<T> residual(c.batch, c.outputs, out, out, &residual_mask);
  x.fill(random, as_operand<T>);
  residual.fill(random);
  Array<uint8_t> computed(host_sets(outputs, c.batch, c.outputs));
  const Mask all(static_cast<size_t>(c.batch) * c.outputs, 1);
  const Mask& computes = gated_outputs && !dense_layout ? outputs : all;

  const int taps = s.taps();
  std::vector<double> dense(static_cast<size_t>(c.outputs) * taps * c.channels);
  Array<T> weights(layout == WeightLayout::kByOutput
                       ? weight_by_output(s, c.outputs, 0, 0)
                       : static_cast<size_t>(taps) * (c.channels + 1) * round_up(c.outputs, kChunk));
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = from_float<T>(0.0f);
  for (int k = 0; k < c.outputs; ++k) {
    for (int tap = 0; tap < taps; ++tap) {
      for (int channel = 0; channel < c.channels; ++channel) {
        const T v = from_float<T>(as_operand(from_float<T>(random.uniform())));
        dense[(static_cast<size_t>(k) * taps + tap) * c.channels + channel] = to_float(v);
        weights[layout == WeightLayout::kByOutput ? weight_by_output(s, k, tap, channel)
                                                  : weight_by_input(s, tap, channel, k)] = v;
      }
    }
  }
  Array<float> bias(random.vector(static_cast<size_t>(c.outputs)));
  const int shift_stride = c.residual ? c.outputs : 0;  // one shift per image, or one for all
  Array<float> shift(random.vector(static_cast<size_t>(c.outputs) * (shift_stride ? c.batch : 1)));
  Array<float> gate(random.vector(static_cast<size_t>(c.batch) * c.outputs));

  ConvParams p{};
  p.x = x.ref();
  p.y = y.ref();
  p.computed = gated_outputs && !dense_layout ? computed.data() : nullptr;
  p.weights = weights.data();
  p.epilogue = Epilogue{bias.data(), gate.data(), shift.data(), shift_stride, c.residual ? residual.ref() : MapRef{},
                        -4.0f,       6.0f,        -3.0f,        5.0f};
  p.shape = s;
  p.layout = layout;
  p.batch = c.batch;
  p.groups = 1;
  p.segments = segments;
  Array<float> partials(spread ? static_cast<size_t>(gemm_partials(s, c.batch, segments)) : 1);
  if (spread) p.partials = partials.data();
  constexpr Element element = element_of<T>();
  constexpr int kKinds = static_cast<int>(SpatialKind::kMaxAbs) + 1;
  Reductions reductions(p, {static_cast<SpatialKind>(seed % kKinds), static_cast<SpatialKind>((seed + 4) % kKinds)});
  const bool reduces = makes_group_results(layout, c.batch, s.out_pixels());
  if (reduces) p.group_results = reductions.ref();

  const std::string what = std::string(c.name) + ", layout " + std::to_string(static_cast<int>(layout)) + ", " +
                           std::to_string(blocks) + " blocks, " + std::to_string(segments) + (spread ? " spread" : "") +
                           " segments, element " + std::to_string(static_cast<int>(element));
  // The two kernels write disjoint channels: either order gives the same.
  const auto pass = [&] {
    if (!p.computed) return;
    const std::string error = pass_through(PassThroughParams{p.y, p.computed, p.epilogue, c.batch}, element, nullptr);
    expect(error.empty(), what + ": " + error);
  };
  if (element == Element::kHalf) pass();
  const std::string why = conv_gemm(p, element, blocks, nullptr);
  expect(why.empty(), what + ": " + why);
  if (spread) must_run(conv_gemm_finish(p, element, blocks + 1, nullptr), what);
  if (element != Element::kHalf) pass();

  std::vector<double> expected(y.values.size());
  for (int n = 0; n < c.batch; ++n) {
    for (int pixel = 0; pixel < out * out; ++pixel) {
      for (int k = 0; k < c.outputs; ++k) {
        double v = 0.0;
        if (computes[static_cast<size_t>(n) * c.outputs + k]) {
          v = bias[static_cast<size_t>(k)];
          for (int tap = 0; tap < taps; ++tap) {
            const int iy = pixel / out * c.stride - c.pad + tap / c.kernel * c.dilation;
            const int ix = pixel % out * c.stride - c.pad + tap % c.kernel * c.dilation;
            if (iy < 0 || ix < 0 || iy >= c.size || ix >= c.size) continue;
            for (int channel = 0; channel < c.channels; ++channel) {
              v += x.values[x.at(n, iy * c.size + ix, channel)] *
                   dense[(static_cast<size_t>(k) * taps + tap) * c.channels + channel];
            }
          }
          v = std::min(std::max(v, -4.0), 6.0) * gate[static_cast<size_t>(n) * c.outputs + k];
        }
        v += shift[static_cast<size_t>(n) * shift_stride + k];
        if (c.residual) v += residual.values[residual.at(n, pixel, k)];
        expected[y.at(n, pixel, k)] = std::min(std::max(v, -3.0), 5.0);
      }
    }
  }
  y.compare(expected, rounding<T>(), what);
  if (reduces) {
    Mask written = computes;
    for (size_t i = 0; i < written.size(); ++i) written[i] = written[i] && y.mask[i];
    check_reductions<T>(p, reductions, written, what);
  }
}

// An image gives the same bits alone and in a batch, whatever its neighbours' sets, and wherever its segments are
// summed; its output, and the reductions of it.
template <typename T>
void batch_invariance(WeightLayout layout, int segments, int h, int w) {
  constexpr int kChannels = 40, kOutputs = 72, kBatch = 3;
  const bool dense = layout == WeightLayout::kDense;
  Random random(99);
  ConvShape s{h, w, h, w, kChannels, kOutputs, 3, 3, 1, 1, 1, 1, 1, 1};
  Array<T> weights(static_cast<size_t>(9) * (kChannels + 1) * kOutputs);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = from_float<T>(random.uniform());
  for (int tap = 0; tap < 9; ++tap) {
    for (int k = 0; k < kOutputs; ++k) weights[weight_by_input(s, tap, kChannels, k)] = from_float<T>(0.0f);
  }
  const Mask inputs = random.mask(kBatch, kChannels, 0.5), outputs = random.mask(kBatch, kOutputs, 0.5);
  Map<T> x(kBatch, kChannels, h, w, dense ? nullptr : &inputs), y(kBatch, kOutputs, h, w, &outputs);
  x.fill(random);
  ConvParams p{};
  p.x = x.ref();
  p.y = y.ref();
  p.computed = dense ? nullptr : y.sets.data();
  p.weights = weights.data();
  p.epilogue = Epilogue{nullptr, nullptr, nullptr, 0, MapRef{}, -INFINITY, INFINITY, 0.0f, INFINITY};
  p.shape = s;
  p.layout = layout;
  p.batch = kBatch;
  p.groups = 1;
  p.segments = segments;
  Reductions together(p, {SpatialKind::kMean});
  const bool reduces = makes_group_results(layout, kBatch, h * w);
  if (reduces) p.group_results = together.ref();
  must_run(conv_gemm(p, element_of<T>(), 2, nullptr), "batch of three");
  const size_t image_bytes = static_cast<size_t>(h * w) * round_up(kOutputs, kChunk) * sizeof(T);
  for (int n = 0; n < kBatch; ++n) {
    Array<T> alone(image_bytes / sizeof(T));
    Array<float> partials(static_cast<size_t>(gemm_partials(s, 1, segments)));
    ConvParams q = p;
    q.batch = 1;
    q.x.data = &x.element(n, 0, 0);
    if (!dense) q.x.stored = x.sets.data() + static_cast<size_t>(n) * set_record_bytes(kChannels);
    q.y.data = alone.data();
    q.y.stored = y.sets.data() + static_cast<size_t>(n) * set_record_bytes(kOutputs);
    if (!dense) q.computed = q.y.stored;
    q.partials = partials.data();
    Reductions of_one(q, together.kinds);
    q.group_results = of_one.ref();
    must_run(conv_gemm(q, element_of<T>(), 5, nullptr), "one image");
    must_run(conv_gemm_finish(q, element_of<T>(), 1, nullptr), "its sums");
    expect(memcmp(alone.data(), &y.element(n, 0, 0), image_bytes) == 0, "bits depend on the batch");
    const float* const results = together.memory.data() + static_cast<size_t>(n) * of_one.line;
    expect(!reduces || memcmp(of_one.memory.data(), results, of_one.line * sizeof(float)) == 0,
           "a reduction's bits depend on the batch");
  }
}

void refusals() {
  ConvParams p{};
  expect(!conv_gemm(p, Element::kHalf, 1, nullptr).empty(), "an empty convolution is refused");
  p.shape = ConvShape{1, 1, 1, 1, 8, 8, 1, 1, 1, 1, 0, 0, 1, 1};
  p.x.channels = p.y.channels = 8;
  p.batch = p.groups = p.segments = 1;
  p.layout = WeightLayout::kByOutput;
  p.x.stored = &p;
  expect(!conv_gemm(p, Element::kHalf, 1, nullptr).empty(), "by output needs a dense input");
  p.x.stored = nullptr;
  p.layout = WeightLayout::kDense;
  p.computed = &p;
  expect(!conv_gemm(p, Element::kHalf, 1, nullptr).empty(), "dense convolutions have no list of outputs");
  p.computed = nullptr;
  expect(!conv_gemm_finish(p, Element::kHalf, 1, nullptr).empty(), "nothing to finish without partial sums");
  p.segments = 0;
  expect(!conv_gemm(p, Element::kHalf, 1, nullptr).empty(), "no segments");
  p.segments = 1;
  p.groups = 2;
  expect(!conv_gemm(p, Element::kHalf, 1, nullptr).empty(), "groups are refused");
  p.groups = 1;
  p.group_results.count = kMaxFusedReductions + 1;
  expect(!conv_gemm(p, Element::kHalf, 1, nullptr).empty(), "too many reductions");
  p.group_results.count = 1;
  p.batch = 2;
  expect(!conv_gemm(p, Element::kHalf, 1, nullptr).empty(), "groups of pixels of two images");
}

}  // namespace
}  // namespace dynprune::cuda::testing

int main() {
  using namespace dynprune::cuda;
  using namespace dynprune::cuda::testing;
  const emulator::Schedule schedules[] = {emulator::Schedule::kForward, emulator::Schedule::kBackward,
                                          emulator::Schedule::kShuffled};
  unsigned seed = 0;
  for (const Case& c : kCases) {
    for (WeightLayout layout :
         {WeightLayout::kByInput, WeightLayout::kByOutput, WeightLayout::kTwoSided, WeightLayout::kDense}) {
      const bool all_inputs = layout == WeightLayout::kByOutput || layout == WeightLayout::kDense;
      if (all_inputs && c.live_inputs >= 0) continue;
      emulator::schedule = schedules[seed % 3];
      const int segments = seed % 4 == 0 ? 1 : static_cast<int>(seed % 4) + 1;
      run<Half>(c, layout, segments, seed % 2 != 0, static_cast<int>(seed % 4) + 1, seed);
      run<BFloat>(c, layout, 1, false, 7, seed + 1000);
      run<float>(c, layout, segments, seed % 2 == 0, 3, seed + 2000);
      ++seed;
    }
  }
  batch_invariance<Half>(WeightLayout::kTwoSided, 1, 6, 6);
  batch_invariance<Half>(WeightLayout::kDense, 4, 6, 6);
  batch_invariance<Half>(WeightLayout::kDense, 1, 4, 8);       // two images share a tile, and a group is one image's
  batch_invariance<float>(WeightLayout::kTwoSided, 3, 6, 10);  // whose results show every bit of the sums
  refusals();
  return report("conv_gemm");
}
