// Times the convolution kernels, hot, on one thread, over the layers that matter:
//
//     conv_bench [--isa generic|avx2|avx512] [--layer SUBSTRING] [--rounds N] [--dense] [--cold] [--minimum]
//
// --cold rotates through copies of the weights, 64 MB of them, so that they come from memory as in a large network.
// Per layer and algorithm it prints microseconds of thread time (median of interleaved rounds), useful GFLOP/s
// dense, their share of the multiply-add peak measured in the same run, and the time when only a share of the
// inputs and outputs is live (random channels). "eff" is dense time times the share of the work, over the time. The
// line "direct or" says for each live share which of the two the cost model picks, and how much slower than the better
// one the pick is. --minimum takes the best round, for a busy machine.
// --sweep measures live shares of 0, 5, ..., 100 % instead and appends a JSON line per layer to FILE.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>

#include "../cpu/conv_cost.h"
#include "planar.h"

namespace dynprune::cpu::testing {
namespace {

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Multiply-adds per second with everything in registers.
#if defined(__x86_64__)
#define PEAK(NAME, TARGET, LANES, INSTRUCTION)                                                                        \
  __attribute__((target(TARGET), noinline)) double NAME() {                                                           \
    const double start = thread_seconds();                                                                            \
    constexpr int kRepeats = 2000000;                                                                                 \
    for (int i = 0; i < kRepeats; ++i) {                                                                              \
      asm volatile(INSTRUCTION(0) INSTRUCTION(1) INSTRUCTION(2) INSTRUCTION(3) INSTRUCTION(4) INSTRUCTION(5)          \
                       INSTRUCTION(6) INSTRUCTION(7) INSTRUCTION(8) INSTRUCTION(9) INSTRUCTION(10) INSTRUCTION(11)::  \
                           : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                             "xmm11");                                                                                \
    }                                                                                                                 \
    return 12.0 * kRepeats * LANES / (thread_seconds() - start);                                                      \
  }
#define FMA_ZMM(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n"
#define FMA_YMM(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
#define MUL_XMM(i) "mulps %%xmm13, %%xmm" #i "\n addps %%xmm12, %%xmm" #i "\n"
PEAK(peak_avx512, "avx512f", 16, FMA_ZMM)
PEAK(peak_avx2, "avx2,fma", 8, FMA_YMM)
PEAK(peak_generic, "sse2", 4, MUL_XMM)
#endif

struct Isa {
  const char* name;
  int32_t lanes;
  bool supported;
  void (*fill[5])(KernelTable&);
  double (*peak)();
};

struct Layer {
  const char* name;
  int32_t in_channels, out_channels, size, kernel, stride;  // square; padding kernel / 2
  bool depthwise;
};

const Layer kLayers[] = {
    {"3x3 64 56", 64, 64, 56, 3, 1, false},
    {"3x3 128 28", 128, 128, 28, 3, 1, false},
    {"3x3 256 14", 256, 256, 14, 3, 1, false},
    {"3x3 512 7", 512, 512, 7, 3, 1, false},
    {"3x3 16 32", 16, 16, 32, 3, 1, false},
    {"3x3 32 16", 32, 32, 16, 3, 1, false},
    {"3x3 64 8", 64, 64, 8, 3, 1, false},
    {"3x3 3>16 32", 3, 16, 32, 3, 1, false},
    {"3x3 3>64 32", 3, 64, 32, 3, 1, false},
    {"3x3 64 32", 64, 64, 32, 3, 1, false},
    {"3x3 128 16", 128, 128, 16, 3, 1, false},
    {"3x3 256 8", 256, 256, 8, 3, 1, false},
    {"3x3 512 4", 512, 512, 4, 3, 1, false},
    {"3x3 64 112", 64, 64, 112, 3, 1, false},
    {"7x7s2 3>64 224", 3, 64, 224, 7, 2, false},
    {"3x3s2 64>128 56", 64, 128, 56, 3, 2, false},
    {"3x3s2 128>256 28", 128, 256, 28, 3, 2, false},
    {"3x3s2 256>512 14", 256, 512, 14, 3, 2, false},
    {"3x3s2 16>32 32", 16, 32, 32, 3, 2, false},
    {"3x3s2 32>64 16", 32, 64, 16, 3, 2, false},
    {"1x1s2 64>128 56", 64, 128, 56, 1, 2, false},
    {"1x1s2 256>512 14", 256, 512, 14, 1, 2, false},
    {"1x1 256>64 56", 256, 64, 56, 1, 1, false},
    {"1x1 64>256 56", 64, 256, 56, 1, 1, false},
    {"1x1 512>128 28", 512, 128, 28, 1, 1, false},
    {"1x1 128>512 28", 128, 512, 28, 1, 1, false},
    {"1x1 1024>256 14", 1024, 256, 14, 1, 1, false},
    {"1x1 256>1024 14", 256, 1024, 14, 1, 1, false},
    {"1x1 2048>512 7", 2048, 512, 7, 1, 1, false},
    {"1x1 512>2048 7", 512, 2048, 7, 1, 1, false},
    {"1x1s2 256>512 56", 256, 512, 56, 1, 2, false},
    {"1x1 64>384 14", 64, 384, 14, 1, 1, false},
    {"1x1 384>64 14", 384, 64, 14, 1, 1, false},
    {"1x1 160>960 7", 160, 960, 7, 1, 1, false},
    {"1x1 960>160 7", 960, 160, 7, 1, 1, false},
    {"1x1 32>192 28", 32, 192, 28, 1, 1, false},
    {"1x1 144>24 56", 144, 24, 56, 1, 1, false},
    {"1x1 24>144 56", 24, 144, 56, 1, 1, false},
    {"1x1 16>96 112", 16, 96, 112, 1, 1, false},
    {"3x3 512 2", 512, 512, 2, 3, 1, false},
    {"dw3x3 32 112", 32, 32, 112, 3, 1, true},
    {"dw3x3s2 64 112", 64, 64, 112, 3, 2, true},
    {"dw3x3s2 144 56", 144, 144, 56, 3, 2, true},
    {"dw3x3s2 192 28", 192, 192, 28, 3, 2, true},
    {"dw3x3s2 576 14", 576, 576, 14, 3, 2, true},
    {"dw3x3 128 56", 128, 128, 56, 3, 1, true},
    {"dw3x3 256 28", 256, 256, 28, 3, 1, true},
    {"dw3x3 512 14", 512, 512, 14, 3, 1, true},
    {"dw3x3 1024 7", 1024, 1024, 7, 3, 1, true},
    {"dw5x5 240 14", 240, 240, 14, 5, 1, true},
};

// Planes in one arena as an executor lays them out: guards of zeros between them, and an odd number of cache lines
// from plane to plane, so that the lines of a tile spread over all sets of the first-level cache.
struct Arena {
  Arena(int32_t planes, int64_t size, int64_t guard) : stride(((size + guard + 15) / 16 | 1) * 16), before(guard) {
    const size_t bytes = (static_cast<size_t>(stride) * planes + guard + 64) * sizeof(float);
    memory = static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    std::memset(memory, 0, bytes);
    before = (guard + 15) / 16 * 16;
  }
  ~Arena() { std::free(memory); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  float* plane(int32_t c) { return memory + before + stride * c; }
  int64_t stride, before;
  float* memory;
};

struct Timed {
  Timed(std::string label, double cycles, std::function<void()> body)
      : name(std::move(label)), estimate(cycles), run(std::move(body)) {}
  std::string name;
  double estimate;  // cycles, conv_cost.h
  std::function<void()> run;
  int repeats = 1;
  std::vector<double> samples;
  double seconds(bool minimum) {
    std::sort(samples.begin(), samples.end());
    return samples[minimum ? 0 : samples.size() / 2];
  }
};

void measure(std::vector<Timed>& jobs, int rounds) {
  for (Timed& job : jobs) {
    job.run();
    const double start = thread_seconds();
    job.run();
    job.repeats = std::max(1, static_cast<int>(1e-3 / std::max(1e-7, thread_seconds() - start)));
  }
  for (int round = 0; round < rounds; ++round) {
    for (Timed& job : jobs) {
      const double start = thread_seconds();
      for (int i = 0; i < job.repeats; ++i) job.run();
      job.samples.push_back((thread_seconds() - start) / job.repeats);
    }
  }
}

struct Activity {
  int32_t in_percent, out_percent;
};
constexpr Activity kActivities[] = {{100, 100}, {100, 50}, {50, 100}, {50, 50}, {25, 25}};

// A layer's planes, lists and weights, and its convolution by every algorithm that applies.
class Bench {
 public:
  Bench(const KernelTable& table, const Layer& layer, bool cold)
      : table_(table),
        layer_(layer),
        cold_(cold),
        random_(7),
        out_size_((layer.size + layer.stride - 1) / layer.stride),
        out_(out_size_, out_size_,
             out_size_ + (layer.kernel > 1 ? (layer.kernel / 2 + layer.stride - 1) / layer.stride : 1)),
        phase_stride_((out_.shape().blocks * kBlock + 16 * out_.shape().pitch) / 16 * 16 + 16),
        in_(layer.in_channels, phase_stride_ * layer.stride * layer.stride, 8 * out_.shape().pitch + 16),
        whole_pitch_(layer.size + std::max(1, layer.kernel / 2)),
        whole_(layer.in_channels, int64_t{layer.size} * whole_pitch_, 4 * whole_pitch_ + 16),
        output_(layer.out_channels, out_.shape().blocks * kBlock + 6 * out_.shape().pitch, 4 * out_.shape().pitch + 16),
        weights_(random_.vector(static_cast<size_t>(layer.out_channels) * (layer.depthwise ? 1 : layer.in_channels) *
                                layer.kernel * layer.kernel)),
        bias_(random_.vector(static_cast<size_t>(layer.out_channels))) {
    for (int32_t c = 0; c < layer.in_channels; ++c) {
      for (int32_t phase = 0; phase < layer.stride * layer.stride; ++phase) {
        for (int32_t y = 0; y < out_size_; ++y) {
          for (int32_t x = 0; x < out_size_; ++x) {
            in_.plane(c)[phase * phase_stride_ + y * out_.shape().pitch + x] = std::max(0.0f, random_.uniform());
          }
        }
      }
    }
    for (int32_t r = 0; r < layer.kernel; ++r) {
      for (int32_t s = 0; s < layer.kernel; ++s) {
        const int32_t y = r - layer.kernel / 2, x = s - layer.kernel / 2, stride = layer.stride;
        const int32_t row = (y + 8 * stride) / stride - 8, column = (x + 8 * stride) / stride - 8;
        const int64_t phase = (y - row * stride) * stride + x - column * stride;
        tap_offset_.push_back(static_cast<int32_t>(phase * phase_stride_) + row * out_.shape().pitch + column);
      }
    }
    for (int32_t c = 0; c < layer.in_channels; ++c) {
      for (int32_t y = 0; y < layer.size; ++y) {
        for (int32_t x = 0; x < layer.size; ++x) {
          whole_.plane(c)[y * whole_pitch_ + x] = std::max(0.0f, random_.uniform());
        }
      }
    }
    for (int32_t r = 0; r < layer.kernel; ++r) {
      for (int32_t s = 0; s < layer.kernel; ++s) {
        whole_offset_.push_back((r - layer.kernel / 2) * whole_pitch_ + s - layer.kernel / 2);
      }
    }
    direct_ = {layer.depthwise ? 1 : layer.in_channels, layer.out_channels, layer.kernel * layer.kernel,
               tap_offset_.data(), out_.shape()};
    strided_ = {direct_.in_channels, layer.out_channels, direct_.taps, whole_offset_.data(),
                whole_pitch_,        layer.stride,       layer.stride, out_.shape()};
    direct_weights_ = copies(weights_.data(), weights_.size());
  }

  double flops(Activity activity) const {
    const double inputs = layer_.depthwise ? 1 : live(layer_.in_channels, activity.in_percent);
    return 2.0 * inputs * live(layer_.out_channels, activity.out_percent) * out_size_ * out_size_ * layer_.kernel *
           layer_.kernel;
  }

  bool channel_lanes_pay() const { return table_.has_channel_lanes && cpu::channel_lanes_pay(table_, strided_); }

  std::vector<Timed> jobs(Activity activity) {
    lists_.push_back(std::make_unique<Lists>());
    Lists& l = *lists_.back();
    l.in = random_.subset(layer_.in_channels, live(layer_.in_channels, activity.in_percent));
    l.out = random_.subset(layer_.out_channels, live(layer_.out_channels, activity.out_percent));
    for (int32_t c : layer_.depthwise ? l.out : l.in) l.inputs.push_back(in_.plane(c));
    for (int32_t c : layer_.depthwise ? l.out : l.in) l.whole_inputs.push_back(whole_.plane(c));
    for (int32_t k : l.out) l.outputs.push_back(output_.plane(k));
    constexpr float inf = std::numeric_limits<float>::infinity();
    l.call = {l.inputs.data(),
              l.in.data(),
              static_cast<int32_t>(l.inputs.size()),
              l.outputs.data(),
              l.out.data(),
              static_cast<int32_t>(l.out.size()),
              {bias_.data(), nullptr, nullptr, nullptr, {-inf, inf}, {0.0f, inf}}};
    std::vector<Timed> jobs;
    if (layer_.depthwise) {
      if (table_.conv_depthwise) {
        jobs.push_back(
            {"depthwise", 0, [this, &l] { table_.conv_depthwise(direct_, direct_weights_.next(), l.call); }});
        if (layer_.stride == 2) {
          l.whole_call = l.call;
          l.whole_call.input = l.whole_inputs.data();
          jobs.push_back({"unsplit", 0, [this, &l] {
                            table_.conv_depthwise_strided(strided_, direct_weights_.next(), l.whole_call);
                          }});
        }
      }
      return jobs;
    }
    jobs.push_back({"direct", direct_cycles(table_, direct_, l.call.n_in, l.call.n_out), [this, &l] {
                      table_.conv_direct(direct_, direct_weights_.next(), l.call, 0, direct_.out.blocks);
                    }});
    if (table_.has_channel_lanes) add_channel_lanes(jobs, l);
    if (fits_small_map(direct_)) {
      use_scratch(table_.small_map_scratch(direct_));
      jobs.push_back({"small map", small_map_cycles(table_, direct_, l.call.n_in, l.call.n_out),
                      [this, &l] { table_.conv_small_map(direct_, direct_weights_.next(), l.call, scratch_.get()); }});
    }
    if (table_.has_winograd && layer_.kernel == 3 && layer_.stride == 1) {
      for (int32_t m : {4, 2}) {
        for (const auto form : {WinogradWeights::kTransformed, WinogradWeights::kOnTheFly}) {
          add_winograd(jobs, l, m, form);
        }
        const WinogradShape shape{layer_.in_channels, layer_.out_channels, m, out_.shape()};
        if (table_.has_channel_lanes && winograd_fits_channel_lanes(shape))
          add_winograd(jobs, l, m, WinogradWeights::kChannelLanes);
      }
    }
    return jobs;
  }

 private:
  struct Lists {
    std::vector<int32_t> in, out;
    std::vector<const float*> inputs, whole_inputs;
    std::vector<float*> outputs;
    ConvCall call, whole_call;
  };
  // Identical weights to use in turn.
  struct Copies {
    std::shared_ptr<float> memory;
    size_t stride = 0, count = 1, at = 0;
    const float* next() {
      at = (at + 1) % count;
      return memory.get() + at * stride;
    }
  };
  Copies copies(const float* weights, size_t n) const {
    Copies c;
    c.stride = (n + 15) / 16 * 16;
    c.count = cold_ ? (size_t{16} << 20) / c.stride + 1 : 1;
    c.memory = floats(c.stride * c.count);
    for (size_t i = 0; i < c.count; ++i) std::memcpy(c.memory.get() + i * c.stride, weights, n * sizeof(float));
    return c;
  }
  struct Winograd {
    WinogradShape shape;
    TileRows all;
    Copies packed;
    size_t v_size = 0;
  };
  static int32_t live(int32_t channels, int32_t percent) { return std::max(1, channels * percent / 100); }
  static std::shared_ptr<float> floats(size_t n) {
    return {static_cast<float*>(std::aligned_alloc(64, (n * sizeof(float) / 64 + 1) * 64)), std::free};
  }
  void add_channel_lanes(std::vector<Timed>& jobs, Lists& l) {
    const ChannelLanesSizes sizes = table_.channel_lanes_sizes(strided_);
    if (!lanes_weights_.memory) {
      const std::shared_ptr<float> packed = floats(sizes.weights);
      table_.channel_lanes_pack(strided_, weights_.data(), packed.get());
      lanes_weights_ = copies(packed.get(), sizes.weights);
    }
    use_scratch(sizes.thread_scratch);
    l.whole_call = l.call;
    l.whole_call.input = l.whole_inputs.data();
    jobs.push_back({"channel lanes", channel_lanes_cycles(strided_, l.call.n_in, l.call.n_out), [this, &l] {
                      table_.conv_channel_lanes(strided_, lanes_weights_.next(), l.whole_call, 0, strided_.out.height,
                                                scratch_.get());
                    }});
  }
  void use_scratch(size_t size) {
    if (size <= scratch_size_) return;
    scratch_size_ = size;
    scratch_ = floats(size + 16);
  }
  void add_winograd(std::vector<Timed>& jobs, Lists& l, int32_t m, WinogradWeights form) {
    constexpr const char* kForms[] = {" stored", " on the fly", " lanes"};
    const std::string name = "F" + std::to_string(m) + kForms[static_cast<int>(form)];
    Winograd& w = winograd_[m == 4][static_cast<int>(form)];
    if (!w.packed.memory) {
      w.shape = {layer_.in_channels, layer_.out_channels, m, out_.shape()};
      w.all = winograd_bands(w.shape, table_.lanes).rows(0, 1);
      const WinogradSizes sizes = table_.winograd_sizes(w.shape, form);
      const std::shared_ptr<float> packed = floats(sizes.weights);
      use_scratch(sizes.input_scratch + sizes.thread_scratch);
      w.v_size = (sizes.input_scratch + 15) / 16 * 16;
      table_.winograd_pack(w.shape, form, weights_.data(), packed.get());
      w.packed = copies(packed.get(), sizes.weights);
    }
    jobs.push_back({name, winograd_cycles(table_, w.shape, form, l.call.n_in, l.call.n_out), [this, &l, &w, form] {
                      float* v = scratch_.get();
                      table_.winograd_input(w.shape, w.all, form, l.call, nullptr, 0, l.call.n_in, v);
                      table_.winograd_output(w.shape, w.all, form, w.packed.next(), v, l.call, 0, l.call.n_out,
                                             v + w.v_size);
                    }});
  }

  const KernelTable& table_;
  Layer layer_;
  bool cold_;
  Random random_;
  int32_t out_size_;
  Geometry out_;
  int64_t phase_stride_;
  Arena in_;
  int32_t whole_pitch_;
  Arena whole_, output_;  // whole_: the input without phases
  std::vector<float> weights_, bias_;
  std::vector<int32_t> tap_offset_, whole_offset_;
  DirectShape direct_;
  StridedShape strided_{};
  Copies lanes_weights_;
  Copies direct_weights_;
  Winograd winograd_[2][3];
  // Shared by all: an executor has one, and it stays in the caches.
  std::shared_ptr<float> scratch_;
  size_t scratch_size_ = 0;
  std::vector<std::unique_ptr<Lists>> lists_;
};

KernelTable table_of(const Isa& isa) {
  KernelTable table{};
  table.isa = isa.name;
  table.lanes = isa.lanes;
  for (const auto fill : isa.fill) {
    if (fill) fill(table);
  }
  return table;
}

void bench_isa(const Isa& isa, const char* only_layer, int rounds, bool dense_only, bool cold, bool minimum) {
  const KernelTable table = table_of(isa);
  const double peak = 2.0 * std::max({isa.peak(), isa.peak(), isa.peak()});
  std::printf("%s: %.1f GFLOP/s multiply-add peak\n%-18s %-14s %9s %7s %6s", isa.name, peak * 1e-9, "layer",
              "algorithm", "us", "GFLOP/s", "% peak");
  for (const Activity& a : kActivities) std::printf("  (%d,%d) us eff", a.in_percent, a.out_percent);
  std::printf("\n");
  for (const Layer& layer : kLayers) {
    if (only_layer && !std::strstr(layer.name, only_layer)) continue;
    Bench bench(table, layer, cold);
    std::vector<Timed> all;
    size_t algorithms = 0;
    for (const Activity& a : kActivities) {
      if (dense_only && a.in_percent * a.out_percent != 10000) continue;
      std::vector<Timed> jobs = bench.jobs(a);
      algorithms = jobs.size();
      for (Timed& job : jobs) all.push_back(std::move(job));
    }
    measure(all, rounds);
    for (size_t i = 0; i < algorithms; ++i) {
      const double dense = all[i].seconds(minimum);
      const double rate = bench.flops({100, 100}) / dense;
      std::printf("%-18s %-14s %9.1f %7.1f %5.1f%%", layer.name, all[i].name.c_str(), dense * 1e6, rate * 1e-9,
                  100 * rate / peak);
      for (size_t a = 1; a * algorithms < all.size(); ++a) {
        const double seconds = all[a * algorithms + i].seconds(minimum);
        const double share = bench.flops(kActivities[a]) / bench.flops({100, 100});
        std::printf("  %9.1f %3.0f", seconds * 1e6, 100 * dense * share / seconds);
      }
      std::printf("\n");
    }
    for (size_t i = 1; i < algorithms; ++i) {
      std::printf("%-18s direct or %-22s", layer.name, all[i].name.c_str());
      for (size_t a = 0; a * algorithms < all.size(); ++a) {
        Timed& direct = all[a * algorithms];
        Timed& other = all[a * algorithms + i];
        const double t0 = direct.seconds(minimum), t1 = other.seconds(minimum);
        const bool pick_other = other.estimate < direct.estimate;
        std::printf("  %s %+3.0f%% (%.2f %.2f)", pick_other ? "other " : "direct",
                    100 * ((pick_other ? t1 : t0) / std::min(t0, t1) - 1), direct.estimate / t0 * 1e-9,
                    other.estimate / t1 * 1e-9);
      }
      std::printf("\n");
    }
    std::fflush(stdout);
  }
}

// The algorithms that a plan offers the cost model for a layer; see dynprune_rt/backends/cpu/lower_maps.py.
bool is_planned(const KernelTable& table, const Layer& layer, const Bench& bench, const std::string& algorithm) {
  if (layer.depthwise) return algorithm == (layer.stride == 2 ? "unsplit" : "depthwise");
  if (layer.stride == 2 && table.has_channel_lanes) return algorithm == "channel lanes";
  if (algorithm == "direct" || algorithm == "small map") return true;
  if (table.has_winograd && layer.kernel == 3 && layer.size > 2) {
    if (table.has_channel_lanes && layer.size <= 8) return algorithm == (layer.size > 4 ? "F4 lanes" : "F2 lanes");
    const int m = layer.size >= 12 ? 4 : 2;
    const bool stored = 4 * (m + 2) * (m + 2) * layer.in_channels * layer.out_channels <= 64 << 10;
    return algorithm == "F" + std::to_string(m) + (stored ? " stored" : " on the fly");
  }
  return algorithm == "channel lanes" && bench.channel_lanes_pay();
}

// Live shares of 0, 5, ... 100 % of the inputs, of the outputs and of both: what the cost model's choice takes beside
// all channels live, and beside the best algorithm of the plan. Writes one JSON object per layer to `file`.
void sweep_isa(const KernelTable& table, const char* only_layer, int rounds, bool cold, std::FILE* file) {
  constexpr const char* kSides[] = {"inputs", "outputs", "both"};
  constexpr int32_t kStep = 5;
  const auto algorithm = [](const Timed& job) { return job.name.substr(0, job.name.rfind(' ')); };
  std::printf("%-18s %-8s %9s %18s %22s %16s\n", "layer", "side", "dense us", "worst of dense", "worst of best choice",
              "worst step down");
  for (const Layer& layer : kLayers) {
    if (only_layer && !std::strstr(layer.name, only_layer)) continue;
    for (int side = 0; side < (layer.depthwise ? 1 : 3); ++side) {
      Bench bench(table, layer, cold);
      std::vector<std::vector<Timed>> by_share;
      std::vector<Timed> all;
      for (int32_t share = 100; share >= 0; share -= kStep) {
        const bool in = side != 1, out = side != 0 || layer.depthwise;
        for (Timed& job : bench.jobs({in ? share : 100, out ? share : 100})) {
          if (!is_planned(table, layer, bench, job.name)) continue;
          job.name += ' ' + std::to_string(share);
          all.push_back(std::move(job));
        }
      }
      measure(all, rounds);
      const size_t algorithms = all.size() / (100 / kStep + 1);
      double dense = 0, worst_of_dense = 0, worst_choice = 0, worst_step = 0, previous = 0;
      int32_t at_dense = 0, at_choice = 0;
      std::fprintf(file, "{\"isa\": \"%s\", \"cold\": %s, \"layer\": \"%s\", \"side\": \"%s\", \"shares\": [",
                   table.isa, cold ? "true" : "false", layer.name, kSides[side]);
      for (size_t i = 0; i < all.size(); i += algorithms) {
        const auto share = static_cast<int32_t>(100 - i / algorithms * kStep);
        Timed* chosen = &all[i];
        double best = 1e9;
        for (size_t a = i; a < i + algorithms; ++a) {
          if (all[a].estimate < chosen->estimate) chosen = &all[a];
          best = std::min(best, all[a].seconds(true));
        }
        const double seconds = chosen->seconds(true);
        if (i == 0) dense = seconds;
        if (i > 0 && seconds / dense > worst_of_dense) worst_of_dense = seconds / dense, at_dense = share;
        if (seconds / best > worst_choice) worst_choice = seconds / best, at_choice = share;
        if (i > 0) worst_step = std::max(worst_step, seconds / previous);
        previous = seconds;
        std::fprintf(file, "%s{\"live\": %d, \"chosen\": \"%s\"", i ? ", " : "", share, algorithm(*chosen).c_str());
        for (size_t a = i; a < i + algorithms; ++a) {
          std::fprintf(file, ", \"%s\": {\"us\": %.2f, \"estimated_cycles\": %.0f}", algorithm(all[a]).c_str(),
                       all[a].seconds(true) * 1e6, all[a].estimate);
        }
        std::fprintf(file, "}");
      }
      std::fprintf(file, "]}\n");
      std::printf("%-18s %-8s %9.1f %9.3f at %3d%% %13.3f at %3d%% %16.3f\n", layer.name, kSides[side], dense * 1e6,
                  worst_of_dense, at_dense, worst_choice, at_choice, worst_step);
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace dynprune::cpu::testing

int main(int argc, char** argv) {
  using namespace dynprune::cpu;
  using namespace dynprune::cpu::testing;
  const char* only_isa = nullptr;
  const char* only_layer = nullptr;
  int rounds = 9;
  const char* sweep = nullptr;
  bool dense_only = false, cold = false, minimum = false;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--isa") && i + 1 < argc) {
      only_isa = argv[++i];
    } else if (!std::strcmp(argv[i], "--layer") && i + 1 < argc) {
      only_layer = argv[++i];
    } else if (!std::strcmp(argv[i], "--rounds") && i + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[++i]));
    } else if (!std::strcmp(argv[i], "--sweep") && i + 1 < argc) {
      sweep = argv[++i];
    } else if (!std::strcmp(argv[i], "--dense")) {
      dense_only = true;
    } else if (!std::strcmp(argv[i], "--cold")) {
      cold = true;
    } else if (!std::strcmp(argv[i], "--minimum")) {
      minimum = true;
    } else {
      std::fprintf(stderr,
                   "usage: conv_bench [--isa NAME] [--layer SUBSTRING] [--rounds N] [--dense] [--cold] [--minimum]"
                   " [--sweep FILE]\n");
      return 2;
    }
  }
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Isa isas[] = {
      {"avx512",
       16,
       avx512,
       {fill_conv_direct_avx512, fill_conv_depthwise_avx512, fill_conv_winograd_avx512, fill_conv_channel_lanes_avx512,
        fill_conv_small_map_avx512},
       peak_avx512},
      {"avx2",
       8,
       avx2,
       {fill_conv_direct_avx2, fill_conv_depthwise_avx2, fill_conv_winograd_avx2, fill_conv_channel_lanes_avx2,
        fill_conv_small_map_avx2},
       peak_avx2},
      {"generic",
       4,
       true,
       {fill_conv_direct_generic, fill_conv_depthwise_generic, fill_conv_winograd_generic,
        fill_conv_channel_lanes_generic, fill_conv_small_map_generic},
       peak_generic},
  };
  for (const Isa& isa : isas) {
    if (!isa.supported || (only_isa && std::strcmp(only_isa, isa.name))) continue;
    if (sweep) {
      std::FILE* file = std::fopen(sweep, "a");
      if (!file) return 1;
      sweep_isa(table_of(isa), only_layer, rounds, cold, file);
      std::fclose(file);
    } else {
      bench_isa(isa, only_layer, rounds, dense_only, cold, minimum);
    }
  }
  return 0;
}
