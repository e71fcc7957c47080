// Everything but the tensor-core convolution, on the emulator: sets, grouped convolution, pooling, vectors.
#include "cuda/kernels.cu"
#include "tests/cuda/device_test.h"

namespace dynprune::cuda::testing {
namespace {

void sets_from_masks() {
  Random random(1);
  for (int channels : {1, 8, 31, 32, 33, 200}) {
    for (double share : {0.0, 0.3, 1.0}) {
      const int batch = 6;
      const Mask mask = random.mask(batch, channels, share);
      Array<uint8_t> on_device(mask), sets(static_cast<size_t>(batch) * set_record_bytes(channels));
      must_run(live_lists({on_device.data(), sets.data(), batch, channels}, nullptr), "live_lists");
      const std::vector<uint8_t> expected = host_sets(mask, batch, channels);
      bool equal = true;
      for (int n = 0; n < batch; ++n) {
        const SetView a = set_view(sets.data(), n, channels), b = set_view(expected.data(), n, channels);
        equal = equal && a.count() == b.count() && a.chunk_count() == b.chunk_count() &&
                std::equal(a.index(), a.index() + 2 * set_pitch(channels), b.index()) &&
                std::equal(a.chunk(), a.chunk() + a.chunk_count(), b.chunk());
      }
      expect(equal, "sets of " + std::to_string(channels) + " channels, share " + std::to_string(share));
    }
  }
}

template <typename T>
void grouped(int channels, int outputs, int groups, int stride, double live, bool gated, unsigned seed) {
  constexpr int kBatch = 2, kSize = 6;
  Random random(seed);
  const int out = (kSize + 2 - 3) / stride + 1;
  const ConvShape s{kSize, kSize, out, out, channels, outputs, 3, 3, stride, stride, 1, 1, 1, 1};
  const Mask inputs = random.mask(kBatch, channels, live), computes = random.mask(kBatch, outputs, gated ? live : 2.0);
  Map<T> x(kBatch, channels, kSize, kSize, &inputs), y(kBatch, outputs, out, out, gated ? &computes : nullptr);
  x.fill(random);
  const int group_inputs = channels / groups, group_outputs = outputs / groups;
  Array<float> weights(random.vector(static_cast<size_t>(9) * group_inputs * outputs));
  Array<float> bias(random.vector(static_cast<size_t>(outputs)));
  ConvParams p{};
  p.x = x.ref();
  p.y = y.ref();
  p.computed = gated ? y.sets.data() : nullptr;
  p.weights = weights.data();
  p.epilogue = Epilogue{bias.data(), nullptr, nullptr, 0, MapRef{}, -INFINITY, INFINITY, 0.0f, 6.0f};
  p.shape = s;
  p.batch = kBatch;
  p.groups = groups;
  must_run(conv_direct(p, element_of<T>(), nullptr), "conv_direct");
  std::vector<double> expected(y.values.size());
  for (int n = 0; n < kBatch; ++n) {
    for (int pixel = 0; pixel < out * out; ++pixel) {
      for (int k = 0; k < outputs; ++k) {
        double v = bias[static_cast<size_t>(k)];
        for (int c = 0; c < group_inputs; ++c) {
          for (int tap = 0; tap < 9; ++tap) {
            const int from = input_pixel(s, pixel, tap);
            if (from < 0) continue;
            v += x.values[x.at(n, from, k / group_outputs * group_inputs + c)] *
                 weights[(static_cast<size_t>(tap) * group_inputs + c) * outputs + k];
          }
        }
        expected[y.at(n, pixel, k)] = std::min(std::max(v, 0.0), 6.0);
      }
    }
  }
  y.compare(expected, rounding<T>(), "conv_direct, groups " + std::to_string(groups));
}

template <typename T>
void pooling(PoolKind kind, bool include_pad, bool adaptive, unsigned seed) {
  constexpr int kBatch = 2, kChannels = 20, kSize = 7;
  Random random(seed);
  const Mask stored = random.mask(kBatch, kChannels, 0.5);
  Mask wanted = stored;
  for (uint8_t& b : wanted) b = b || random.chance(0.3);  // a channel that is zero in x may be stored in y
  const int out = adaptive ? 3 : 4;
  Map<T> x(kBatch, kChannels, kSize, kSize, &stored), y(kBatch, kChannels, out, out, &wanted);
  x.fill(random);
  PoolParams p{};
  p.x = x.ref();
  p.y = y.ref();
  p.kind = kind;
  p.kernel_h = p.kernel_w = 3;
  p.stride_h = p.stride_w = 2;
  p.pad_top = p.pad_left = p.pad_bottom = p.pad_right = 1;
  p.dilation_h = p.dilation_w = 1;
  p.count_include_pad = include_pad;
  p.adaptive = adaptive;
  p.batch = kBatch;
  must_run(pool2d(p, element_of<T>(), nullptr), "pool2d");
  std::vector<double> expected(y.values.size());
  for (int n = 0; n < kBatch; ++n) {
    for (int c = 0; c < kChannels; ++c) {
      for (int pixel = 0; pixel < out * out; ++pixel) {
        const int oy = pixel / out, ox = pixel % out;
        const int y0 = adaptive ? oy * kSize / out : oy * 2 - 1, x0 = adaptive ? ox * kSize / out : ox * 2 - 1;
        const int y1 = adaptive ? ((oy + 1) * kSize + out - 1) / out : y0 + 3;
        const int x1 = adaptive ? ((ox + 1) * kSize + out - 1) / out : x0 + 3;
        double sum = 0.0, largest = -INFINITY;
        int inside = 0;
        for (int iy = std::max(y0, 0); iy < std::min(y1, kSize); ++iy) {
          for (int ix = std::max(x0, 0); ix < std::min(x1, kSize); ++ix, ++inside) {
            const double v = x.values[x.at(n, iy * kSize + ix, c)];
            sum += v;
            largest = std::max(largest, v);
          }
        }
        expected[y.at(n, pixel, c)] = kind == PoolKind::kMax ? largest : sum / (include_pad ? 9 : inside);
      }
    }
  }
  y.compare(expected, rounding<T>(), "pool2d");
}

template <typename T>
void spatial_reductions() {
  constexpr int kBatch = 3, kChannels = 37, kSize = 7;  // more than one group of pixels
  Random random(11);
  const Mask stored = random.mask(kBatch, kChannels, 0.5);
  Map<T> x(kBatch, kChannels, kSize, kSize, &stored);
  x.fill(random);
  for (int kind = 0; kind <= static_cast<int>(SpatialKind::kMaxAbs); ++kind) {
    Array<float> y(kBatch * kChannels);
    const auto k = static_cast<SpatialKind>(kind);
    must_run(spatial_reduce({x.ref(), y.data(), k, nullptr, nullptr, kBatch}, element_of<T>(), nullptr),
             "spatial_reduce");
    for (int n = 0; n < kBatch; ++n) {
      for (int c = 0; c < kChannels; ++c) {
        double sum = 0.0, sum_abs = 0.0, squares = 0.0, low = INFINITY, high = -INFINITY;
        for (int pixel = 0; pixel < kSize * kSize; ++pixel) {
          const double v = x.values[x.at(n, pixel, c)];
          sum += v;
          sum_abs += std::fabs(v);
          squares += v * v;
          low = std::min(low, v);
          high = std::max(high, v);
        }
        const double area = kSize * kSize, peak = std::max(std::fabs(low), std::fabs(high));
        const double expected[] = {sum / area, sum, sum_abs / area, sum_abs, squares, std::sqrt(squares), high,
                                   low,        peak};
        expect(std::fabs(y[static_cast<size_t>(n) * kChannels + c] - expected[kind]) < 1e-4,
               "spatial_reduce kind " + std::to_string(kind));
      }
    }
  }
}

template <typename T>
void repacking() {
  constexpr int kBatch = 2, kChannels = 21, kSize = 4;
  Random random(12);
  const Mask stored = random.mask(kBatch, kChannels, 0.5);
  Map<T> map(kBatch, kChannels, kSize, kSize, &stored);
  Array<float> planes(random.vector(map.values.size())), back(map.values.size());
  must_run(pack_map({map.ref(), planes.data(), kBatch}, element_of<T>(), nullptr), "pack_map");
  must_run(unpack_map({map.ref(), back.data(), kBatch}, element_of<T>(), nullptr), "unpack_map");
  for (size_t i = 0; i < planes.size(); ++i) {
    const float expected = stored[i / (kSize * kSize)] ? to_float(from_float<T>(planes[i])) : 0.0f;
    expect(back[i] == expected, "repacking element " + std::to_string(i));
  }
}

void vectors() {
  constexpr int kRows = 5, kFeatures = 77, kOutputs = 9;
  Random random(13);
  Array<float> x(random.vector(kRows * kFeatures)), weights(random.vector(kOutputs * kFeatures));
  Array<float> bias(random.vector(kOutputs)), y(kRows * kOutputs);
  must_run(
      linear({x.data(), weights.data(), bias.data(), y.data(), -1.0f, INFINITY, kRows, kFeatures, kOutputs}, nullptr),
      "linear");
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kOutputs; ++k) {
      double sum = bias[static_cast<size_t>(k)];
      for (int f = 0; f < kFeatures; ++f) {
        sum += static_cast<double>(x[static_cast<size_t>(r) * kFeatures + f]) *
               weights[static_cast<size_t>(k) * kFeatures + f];
      }
      expect(std::fabs(y[static_cast<size_t>(r) * kOutputs + k] - std::max(sum, -1.0)) < 1e-5, "linear");
    }
  }
  constexpr int kOuter = 3, kLength = 45, kInner = 2;
  Array<float> lines(random.vector(kOuter * kLength * kInner)), reduced(kOuter * kInner);
  for (int kind = 0; kind <= static_cast<int>(ReduceKind::kL2); ++kind) {
    must_run(reduce({lines.data(), reduced.data(), static_cast<ReduceKind>(kind), kOuter, kLength, kInner}, nullptr),
             "reduce");
    for (int o = 0; o < kOuter; ++o) {
      for (int i = 0; i < kInner; ++i) {
        double sum = 0.0, low = INFINITY, high = -INFINITY, product = 1.0, l1 = 0.0, squares = 0.0;
        for (int j = 0; j < kLength; ++j) {
          const double v = lines[(static_cast<size_t>(o) * kLength + j) * kInner + i];
          sum += v;
          low = std::min(low, v);
          high = std::max(high, v);
          product *= v;
          l1 += std::fabs(v);
          squares += v * v;
        }
        const double expected[] = {sum, sum / kLength, high, low, product, l1, std::sqrt(squares)};
        expect(std::fabs(reduced[static_cast<size_t>(o) * kInner + i] - expected[kind]) < 1e-5,
               "reduce kind " + std::to_string(kind));
      }
    }
  }
}

void sorting() {
  constexpr int kOuter = 2, kLength = 300, kInner = 2, kKeep = 40;
  Random random(14);
  Array<float> x(kOuter * kLength * kInner);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::round(random.uniform() * 20.0f);  // many equal elements
  for (int i = 0; i < 5; ++i) x[static_cast<size_t>(i) * 16] = NAN;
  for (int descending : {0, 1}) {
    Array<float> values(kOuter * kKeep * kInner);
    Array<int64_t> index(kOuter * kKeep * kInner);
    must_run(sort({x.data(), values.data(), index.data(), kOuter, kLength, kInner, kKeep, descending}, nullptr),
             "sort");
    for (int o = 0; o < kOuter; ++o) {
      for (int i = 0; i < kInner; ++i) {
        const auto at = [&](int j) { return x[(static_cast<size_t>(o) * kLength + j) * kInner + i]; };
        std::vector<int> order(kLength);
        for (int j = 0; j < kLength; ++j) order[static_cast<size_t>(j)] = j;
        const auto key = [&](int j) { return std::isnan(at(j)) ? INFINITY : at(j); };
        std::stable_sort(order.begin(), order.end(),
                         [&](int a, int b) { return descending ? key(a) > key(b) : key(a) < key(b); });
        for (int j = 0; j < kKeep; ++j) {
          const size_t to = (static_cast<size_t>(o) * kKeep + j) * kInner + i;
          const int wanted = order[static_cast<size_t>(j)];
          expect(index[to] == wanted && (values[to] == at(wanted) || std::isnan(at(wanted))), "sort");
        }
      }
    }
  }
  Array<float> none(1);
  Array<int64_t> index(1);
  expect(!sort({none.data(), none.data(), index.data(), 1, kMaxSortLength + 1, 1, 1, 0}, nullptr).empty(),
         "too long a line is refused");
}

template <typename T>
void all_elements() {
  grouped<T>(12, 12, 12, 1, 0.5, true, 2);  // depthwise
  grouped<T>(12, 24, 12, 2, 0.6, true, 3);  // with a channel multiplier
  grouped<T>(12, 18, 3, 1, 0.5, false, 4);  // grouped, all outputs
  grouped<T>(8, 8, 8, 1, 0.0, true, 5);     // nothing live
  for (PoolKind kind : {PoolKind::kMax, PoolKind::kAverage}) {
    pooling<T>(kind, false, false, 6);
    pooling<T>(kind, false, true, 7);
  }
  pooling<T>(PoolKind::kAverage, true, false, 8);
  spatial_reductions<T>();
  repacking<T>();
}

}  // namespace
}  // namespace dynprune::cuda::testing

int main() {
  using namespace dynprune::cuda;
  using namespace dynprune::cuda::testing;
  for (auto s : {emulator::Schedule::kForward, emulator::Schedule::kBackward, emulator::Schedule::kShuffled}) {
    emulator::schedule = s;
    sets_from_masks();
    vectors();
    sorting();
    all_elements<Half>();
    all_elements<BFloat>();
    all_elements<float>();
  }
  return report("map kernels");
}
