// Tests of the planar kernels other than convolution, and of linear, against plain loops.
#include <algorithm>

#include "elementwise_reference.h"
#include "kernel_test.h"

namespace dynprune::test {
namespace {

using cpu::Binary;
using cpu::KernelTable;
using cpu::PlaneShape;
using cpu::PoolShape;
using cpu::Reduce;
using cpu::Unary;

Counter counter;
std::string isa_name;

struct Size {
  int height, width;
};
constexpr Size kSizes[] = {{1, 1}, {7, 7}, {15, 13}, {33, 31}, {112, 112}};

std::string label(const char* what, int op, const Plane& plane) {
  return isa_name + " " + what + " " + std::to_string(op) + " on " + std::to_string(plane.height()) + "x" +
         std::to_string(plane.width());
}

constexpr float kSpecial[] = {0.0f,  -0.0f, 0.5f,   1.5f,    2.5f,  -0.5f, -1.5f, 3.0f,   -3.0f,
                              6.0f,  1e-3f, -1e-3f, -20.0f,  20.5f, 50.0f, 88.0f, -87.0f, 90.0f,
                              1e-7f, 0.6f,  1.0f,   0.9999f, kInf,  -kInf, kNan};

void put_special_values(Plane& plane) {
  int i = 0;
  for (int y = 0; y < plane.height() && plane.width() > 5; ++y) {
    for (int x = 0; x < plane.width() && i < int(std::size(kSpecial)); x += 2) plane.at(y, x) = kSpecial[i++];
  }
}

// exp(-x) overflows before the exact quotient becomes zero; there x * sigmoid(x) may be 0 or NaN.
bool is_limit_of_quotient(Unary op, float x) {
  return (op == Unary::kSilu || op == Unary::kMish || op == Unary::kGelu || op == Unary::kGeluTanh) && std::isinf(x);
}

void test_unary(const KernelTable& table) {
  Random random(1);
  for (const Size size : kSizes) {
    for (int op = 0; op <= static_cast<int>(Unary::kCastBool); ++op) {
      const Unary kind = static_cast<Unary>(op);
      const bool powers = kind == Unary::kPowScalar;
      const float a = kind == Unary::kClamp ? -0.5f : powers ? 3.0f : 0.25f, b = 1.25f;
      Plane x(size.height, size.width), y(size.height, size.width);
      x.randomize(random, op % 2 ? 2.0f : 12.0f);
      put_special_values(x);
      table.plane_unary(kind, a, b, x.shape(), x.data(), y.data());
      bool ok = true;
      for (int i = 0; i < size.height; ++i) {
        for (int j = 0; j < size.width; ++j) {
          if (is_limit_of_quotient(kind, x.at(i, j))) continue;
          // gelu and affine cancel: their error is relative to the terms, not to the sum.
          const bool cancels = kind == Unary::kGelu || kind == Unary::kGeluTanh || kind == Unary::kAffine;
          const double exact = unary_reference(kind, x.at(i, j), a, b);
          if (!close(y.at(i, j), exact, 4, cancels ? 3e-7 * std::fmax(1.0f, std::fabs(x.at(i, j))) : 1e-37)) {
            if (ok) std::printf("x %.9g got %.9g exact %.9g\n", x.at(i, j), y.at(i, j), exact);
            ok = false;
          }
        }
      }
      counter.check(ok, label("unary", op, x));
      counter.check(y.pads_are_zero(), label("unary pads", op, x));
      Plane in_place = x;
      table.plane_unary(kind, a, b, x.shape(), in_place.data(), in_place.data());
      bool equal = true;
      for (int i = 0; i < size.height; ++i) {
        for (int j = 0; j < size.width; ++j) equal &= same(in_place.at(i, j), y.at(i, j));
      }
      counter.check(equal && in_place.pads_are_zero(), label("unary in place", op, x));
    }
  }
}

// The same value gives the same bits wherever it stands.
void test_unary_position(const KernelTable& table) {
  for (int op = 0; op <= static_cast<int>(Unary::kCastBool); ++op) {
    bool ok = true;
    for (const float value : kSpecial) {
      Plane x(7, 13), y(7, 13);
      for (int i = 0; i < 7; ++i) {
        for (int j = 0; j < 13; ++j) x.at(i, j) = value;
      }
      table.plane_unary(static_cast<Unary>(op), 0.75f, 1.5f, x.shape(), x.data(), y.data());
      for (int i = 0; i < 7; ++i) {
        for (int j = 0; j < 13; ++j) ok &= same(y.at(i, j), y.at(0, 0));
      }
    }
    counter.check(ok, isa_name + " unary depends on position " + std::to_string(op));
  }
}

void test_binary(const KernelTable& table) {
  Random random(2);
  const cpu::Clamp clamps[] = {{-kInf, kInf}, {0.0f, kInf}, {0.5f, 1.5f}};
  for (const Size size : kSizes) {
    for (int op = 0; op <= static_cast<int>(Binary::kXor); ++op) {
      for (int form = 0; form < 12; ++form) {  // operands: both, scalar first, scalar second, in place
        const cpu::Clamp limits = clamps[form / 4];
        const int operands = form % 4;
        Plane x0(size.height, size.width), x1(size.height, size.width), y(size.height, size.width);
        x0.randomize(random);
        x1.randomize(random);
        if (size.width > 5) {
          x0.at(0, 0) = kNan;
          x1.at(0, 1) = kNan;
          x0.at(0, 2) = x1.at(0, 2);
          x0.at(0, 3) = 0.0f;
          x1.at(0, 4) = 0.0f;
        }
        const float scalar = 1.5f;
        const float* p0 = operands == 1 ? nullptr : x0.data();
        const float* p1 = operands == 2 ? nullptr : x1.data();
        const Plane x0_before = x0;
        float* target = operands == 3 ? x0.data() : y.data();
        table.plane_binary(static_cast<Binary>(op), limits, x0.shape(), p0, p1, scalar, target);
        const Plane& result = operands == 3 ? x0 : y;
        bool ok = true;
        for (int i = 0; i < size.height; ++i) {
          for (int j = 0; j < size.width; ++j) {
            const float u = operands == 1 ? scalar : x0_before.at(i, j), v = operands == 2 ? scalar : x1.at(i, j);
            double exact = binary_reference(static_cast<Binary>(op), u, v);
            exact = exact < limits.lo ? limits.lo : exact > limits.hi ? limits.hi : exact;
            const bool cancels = static_cast<Binary>(op) == Binary::kRemainder;
            ok &= close(result.at(i, j), exact, 2, cancels ? 3e-7 : 1e-37);
          }
        }
        counter.check(ok, label("binary", op * 100 + form, x0));
        counter.check(result.pads_are_zero(), label("binary pads", op * 100 + form, x0));
      }
    }
  }
}

void test_fill_and_reduce(const KernelTable& table) {
  Random random(3);
  for (const Size size : kSizes) {
    Plane x(size.height, size.width, size.width + 2);
    table.plane_fill(x.shape(), 1.5f, x.data());
    bool filled = true;
    for (int i = 0; i < size.height; ++i) {
      for (int j = 0; j < size.width; ++j) filled &= x.at(i, j) == 1.5f;
    }
    counter.check(filled && x.pads_are_zero(), label("fill", 0, x));
    for (int variant = 0; variant < 4; ++variant) {
      x.randomize(random);
      for (int i = 0; i < size.height; ++i) {  // all negative, all positive: pads must not win
        for (int j = 0; j < size.width; ++j) {
          if (variant == 1) x.at(i, j) = -std::fabs(x.at(i, j)) - 1;
          if (variant == 2) x.at(i, j) = std::fabs(x.at(i, j)) + 1;
        }
      }
      if (variant == 3) x.at(size.height / 2, size.width / 2) = kNan;
      double sum = 0, sum_abs = 0, squares = 0, top = -kInf, bottom = kInf, top_abs = 0;
      for (int i = 0; i < size.height; ++i) {
        for (int j = 0; j < size.width; ++j) {
          const double v = x.at(i, j);
          sum += v;
          sum_abs += std::fabs(v);
          squares += v * v;
          top = std::isnan(v) || std::isnan(top) ? kNan : std::max(top, v);
          bottom = std::isnan(v) || std::isnan(bottom) ? kNan : std::min(bottom, v);
          top_abs = std::isnan(v) || std::isnan(top_abs) ? kNan : std::max(top_abs, std::fabs(v));
        }
      }
      const double n = double(size.height) * size.width;
      const double expected[] = {sum / n, sum, sum_abs / n, sum_abs, squares, std::sqrt(squares), top, bottom, top_abs};
      for (int kind = 0; kind < 9; ++kind) {
        // Among other planes: 17 fill more than one group of every ISA.
        const float* planes[17];
        float results[17];
        for (const float*& plane : planes) plane = x.data();
        table.plane_reduce(static_cast<Reduce>(kind), x.shape(), planes, 1 + variant * 4, results);
        const float got = results[variant * 4];
        const double slack = kind < 2 ? 1e-6 * (kind == 0 ? sum_abs / n : sum_abs) : 0;
        counter.check(close(got, expected[kind], 8, std::fmax(slack, 1e-37)), label("reduce", kind * 10 + variant, x));
      }
    }
  }
}

void reference_pool(const PoolShape& p, bool average, const Plane& x, Plane& y) {
  for (int i = 0; i < y.height(); ++i) {
    for (int j = 0; j < y.width(); ++j) {
      double sum = 0;
      float top = -kInf;
      int inside = 0, padded = 0;
      for (int r = 0; r < p.kernel_h; ++r) {
        for (int s = 0; s < p.kernel_w; ++s) {
          const int row = i * p.stride_h - p.pad_top + r * p.dilation_h;
          const int column = j * p.stride_w - p.pad_left + s * p.dilation_w;
          padded += row < x.height() + p.pad_bottom && column < x.width() + p.pad_right;
          if (row < 0 || column < 0 || row >= x.height() || column >= x.width()) continue;
          ++inside;
          const float v = x.at(row, column);
          sum += v;
          top = std::isnan(v) || std::isnan(top) ? kNan : std::max(top, v);
        }
      }
      const int divisor = p.divisor ? p.divisor : p.count_include_pad ? padded : inside;
      y.at(i, j) = average ? static_cast<float>(sum / divisor) : top;
    }
  }
}

void test_pooling(const KernelTable& table) {
  struct Case {
    int kernel_h, kernel_w, stride_h, stride_w, pad, pad_end, dilation;
  };
  const Case cases[] = {{3, 3, 2, 2, 1, 1, 1}, {2, 2, 2, 2, 0, 0, 1}, {3, 3, 1, 1, 1, 1, 1}, {2, 2, 1, 1, 0, 1, 1},
                        {3, 3, 2, 2, 0, 1, 1}, {5, 5, 1, 1, 2, 2, 1}, {5, 3, 3, 4, 1, 1, 1}, {3, 3, 2, 2, 1, 1, 2},
                        {3, 3, 1, 1, 1, 1, 3}, {1, 7, 1, 2, 0, 0, 1}, {4, 2, 2, 1, 1, 1, 1}, {7, 7, 7, 7, 0, 0, 1}};
  const Size sizes[] = {{1, 1}, {7, 7}, {15, 13}, {33, 31}, {112, 112}, {2, 700}};
  Random random(4);
  for (const Size size : sizes) {
    for (const Case& c : cases) {
      PoolShape pool{};
      pool.kernel_h = c.kernel_h, pool.kernel_w = c.kernel_w;
      pool.stride_h = c.stride_h, pool.stride_w = c.stride_w;
      pool.dilation_h = pool.dilation_w = c.dilation;
      pool.pad_top = pool.pad_left = c.pad;
      pool.pad_bottom = pool.pad_right = c.pad_end;
      const int out_h = (size.height + c.pad + c.pad_end - (c.kernel_h - 1) * c.dilation - 1) / c.stride_h + 1;
      const int out_w = (size.width + c.pad + c.pad_end - (c.kernel_w - 1) * c.dilation - 1) / c.stride_w + 1;
      const bool fits = size.height + c.pad + c.pad_end > (c.kernel_h - 1) * c.dilation &&
                        size.width + c.pad + c.pad_end > (c.kernel_w - 1) * c.dilation;
      if (!fits) continue;
      Plane x(size.height, size.width), y(out_h, out_w), expected(out_h, out_w);
      x.randomize(random);
      for (int i = 0; i < size.height; ++i) {
        for (int j = 0; j < size.width; ++j) x.at(i, j) -= 2.5f;  // all negative: the pads must not win
      }
      pool.in = x.shape(), pool.out = y.shape();
      for (int mode = 0; mode < 5; ++mode) {
        if (mode == 1 && size.width > 3) x.at(size.height / 2, size.width / 3) = kNan;
        if (mode == 2) x.at(size.height / 2, size.width / 3) = 1.0f;
        const bool average = mode >= 2;
        pool.count_include_pad = mode == 3;
        pool.divisor = mode == 4 ? 5 : 0;
        (average ? table.plane_avg_pool : table.plane_max_pool)(pool, x.data(), y.data());
        reference_pool(pool, average, x, expected);
        bool ok = true;
        for (int i = 0; i < out_h; ++i) {
          for (int j = 0; j < out_w; ++j) {
            ok &= average ? close(y.at(i, j), expected.at(i, j), 8, 1e-6) : same(y.at(i, j), expected.at(i, j));
          }
        }
        const std::string what = "pool " + std::to_string(c.kernel_h) + "x" + std::to_string(c.kernel_w) + " stride " +
                                 std::to_string(c.stride_h) + " dilation " + std::to_string(c.dilation) + " mode";
        counter.check(ok, label(what.c_str(), mode, x));
        counter.check(y.pads_are_zero(), label((what + " pads").c_str(), mode, x));
      }
    }
  }
}

void test_wide_pooling(const KernelTable& table) {
  Random random(5);
  for (const int kernel_w : {5, 3000}) {
    Plane x(3, 4500), y(1, (4500 - kernel_w) / 2 + 1), expected(1, (4500 - kernel_w) / 2 + 1);
    x.randomize(random);
    PoolShape pool{};
    pool.in = x.shape(), pool.out = y.shape();
    pool.kernel_h = 3, pool.kernel_w = kernel_w, pool.stride_h = 1, pool.stride_w = 2;
    pool.dilation_h = pool.dilation_w = 1;
    table.plane_max_pool(pool, x.data(), y.data());
    reference_pool(pool, false, x, expected);
    bool ok = y.pads_are_zero();
    for (int j = 0; j < y.width(); ++j) ok &= y.at(0, j) == expected.at(0, j);
    counter.check(ok, label("wide pool", kernel_w, x));
  }
}

void test_adaptive_pooling(const KernelTable& table) {
  Random random(6);
  for (const Size size : kSizes) {
    for (const Size out : {Size{1, 1}, Size{2, 3}, Size{7, 7}, Size{6, 6}}) {
      Plane x(size.height, size.width), y(out.height, out.width);
      x.randomize(random);
      for (const bool average : {false, true}) {
        table.plane_adaptive_pool(x.shape(), y.shape(), average, x.data(), y.data());
        bool ok = y.pads_are_zero();
        for (int i = 0; i < out.height; ++i) {
          for (int j = 0; j < out.width; ++j) {
            double sum = 0;
            float top = -kInf;
            int n = 0;
            for (int r = i * size.height / out.height; r * out.height < (i + 1) * size.height; ++r) {
              for (int s = j * size.width / out.width; s * out.width < (j + 1) * size.width; ++s) {
                sum += x.at(r, s), top = std::max(top, x.at(r, s)), ++n;
              }
            }
            ok &= average ? close(y.at(i, j), sum / n, 8, 3e-6) : y.at(i, j) == top;
          }
        }
        counter.check(ok, label("adaptive pool", out.height * 10 + average, x));
      }
    }
  }
}

void test_layout(const KernelTable& table) {
  Random random(7);
  for (const Size size : kSizes) {
    Plane x(size.height, size.width, size.width + 3);
    const std::vector<float> dense = random.values(size_t(size.height) * size.width);
    table.plane_load(x.shape(), dense.data(), x.data());
    bool ok = x.pads_are_zero();
    for (int i = 0; i < size.height; ++i) {
      for (int j = 0; j < size.width; ++j) ok &= x.at(i, j) == dense[size_t(i) * size.width + j];
    }
    counter.check(ok, label("load", 0, x));
    std::vector<float> back(dense.size());
    table.plane_store(x.shape(), x.data(), back.data());
    counter.check(back == dense, label("store", 0, x));

    for (const Size stride : {Size{2, 2}, Size{3, 3}, Size{1, 2}, Size{2, 1}, Size{4, 2}}) {
      for (const int extra : {0, 1}) {  // phase planes larger than the input needs
        const int height = (size.height + stride.height - 1) / stride.height + extra;
        const int width = (size.width + stride.width - 1) / stride.width + extra;
        const Plane phase(height, width);
        const int pitch = phase.shape().pitch;
        const int64_t phase_stride = int64_t{height} * pitch + 40;
        const int phases = stride.height * stride.width;
        std::vector<float> y(size_t(phases * phase_stride), 0.0f);
        for (int p = 0; p < phases; ++p) {  // stale pixels must be overwritten, pads must not
          for (int i = 0; i < height; ++i) {
            for (int j = 0; j < width; ++j) y[size_t(p * phase_stride + i * pitch + j)] = 9.0f;
          }
        }
        table.phase_split(x.shape(), phase.shape(), stride.height, stride.width, phase_stride, x.data(), y.data());
        std::vector<float> expected(y.size(), 0.0f);
        for (int i = 0; i < size.height; ++i) {
          for (int j = 0; j < size.width; ++j) {
            const int p = i % stride.height * stride.width + j % stride.width;
            expected[size_t(p * phase_stride + i / stride.height * pitch + j / stride.width)] = x.at(i, j);
          }
        }
        counter.check(y == expected, label("phase split", stride.height * 100 + stride.width * 10 + extra, x));
        std::vector<float> first(expected.begin(), expected.begin() + phase_stride);
        y.assign(size_t(phase_stride), 0.0f);
        table.phase_split(x.shape(), phase.shape(), stride.height, stride.width, 0, x.data(), y.data());
        counter.check(y == first, label("first phase", stride.height * 100 + stride.width * 10 + extra, x));
      }
    }
  }
}

void test_linear(const KernelTable& table) {
  Random random(8);
  for (const int in : {1, 3, 15, 16, 17, 64, 100, 512, 1024, 2100}) {
    for (const int out : {1, 3, 4, 8, 13, 64, 65, 100, 130, 176}) {
      const std::vector<float> w = random.values(size_t(in) * out), bias = random.values(out);
      std::vector<float> x = random.values(in), y(out), alone(out);
      for (int c = 0; c < in; ++c) {
        if (out % 4 ? c % 3 == 0 : c % 5 != 1) x[c] = 0.0f;  // some are zero, or most
      }
      const cpu::Clamp limits = out % 2 ? cpu::Clamp{0.0f, 6.0f} : cpu::Clamp{-kInf, kInf};
      const float* bias_data = out == 13 ? nullptr : bias.data();
      std::vector<float> packed(table.linear_size(out, in));
      table.linear_pack(out, in, w.data(), packed.data());
      const int panels = (out + cpu::kLinearPanel - 1) / cpu::kLinearPanel;
      table.linear(out, in, packed.data(), bias_data, x.data(), limits, 0, panels, y.data());
      for (int panel = panels - 1; panel >= 0; --panel)
        table.linear(out, in, packed.data(), bias_data, x.data(), limits, panel, panel + 1, alone.data());
      bool ok = true;
      for (int k = 0; k < out; ++k) {
        double sum = bias_data ? bias[k] : 0, terms = std::fabs(sum);
        for (int c = 0; c < in; ++c) {
          sum += double(w[size_t(k) * in + c]) * x[c];
          terms += std::fabs(double(w[size_t(k) * in + c]) * x[c]);
        }
        ok &= close(y[k], std::min(std::max(sum, double(limits.lo)), double(limits.hi)), 2, terms * 1e-6);
      }
      counter.check(ok, isa_name + " linear " + std::to_string(in) + " -> " + std::to_string(out));
      counter.check(alone == y, isa_name + " linear panels alone " + std::to_string(in) + " -> " + std::to_string(out));
    }
  }
}

}  // namespace
}  // namespace dynprune::test

int main() {
  using namespace dynprune::test;
  for (const Isa& isa : usable_isas()) {
    isa_name = isa.name;
    const dynprune::cpu::KernelTable table = table_of(isa);
    test_unary(table);
    test_unary_position(table);
    test_binary(table);
    test_fill_and_reduce(table);
    test_pooling(table);
    test_wide_pooling(table);
    test_adaptive_pooling(table);
    test_layout(table);
    test_linear(table);
  }
  return counter.report();
}
