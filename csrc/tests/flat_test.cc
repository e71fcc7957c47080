// Tests of the flat operators against plain loops: exact-size heap buffers, so that the address
// sanitizer sees any access outside a tensor; NaN, infinities, ties, odd sizes. The comparison of every
// IR operator with the reference interpreter is in python_tests/backends/test_flat_ops.py.
#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>

#include "elementwise_reference.h"
#include "kernel_test.h"

namespace dynprune::test {
namespace {

using cpu::Binary;
using cpu::KernelTable;
using cpu::Unary;
using Values = std::vector<float>;
using Ints = std::vector<int64_t>;

Counter counter;
std::string isa_name;
std::set<std::string> covered;

constexpr int64_t kLengths[] = {1, 3, 7, 15, 16, 17, 33, 64, 100};
constexpr float kSpecial[] = {0.0f, -0.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 3.0f, -20.0f, 50.0f, kInf, -kInf, kNan};

// Runs one operator; returns its outputs.
std::vector<Values> run(const KernelTable& table, const std::string& op, std::vector<Values> in,
                        const std::vector<int64_t>& out_sizes, const Ints& ints, const Values& floats = {},
                        int64_t scratch_size = 0) {
  covered.insert(op);
  std::vector<Values> out;
  for (const int64_t n : out_sizes) out.emplace_back(size_t(n), 777.0f);
  std::vector<cpu::Tensor> in_tensors, out_tensors;
  const auto tensor = [](Values& values) {
    cpu::Tensor t{};
    t.data = values.data();
    t.rank = 1;
    t.shape[0] = static_cast<int64_t>(values.size());
    return t;
  };
  for (Values& values : in) in_tensors.push_back(tensor(values));
  for (Values& values : out) out_tensors.push_back(tensor(values));
  Values scratch(static_cast<size_t>(scratch_size));
  cpu::FlatCall call{};
  call.in = in_tensors.data();
  call.n_in = static_cast<int32_t>(in.size());
  call.out = out_tensors.data();
  call.n_out = static_cast<int32_t>(out.size());
  call.ints = ints.data();
  call.n_ints = static_cast<int32_t>(ints.size());
  call.floats = floats.data();
  call.n_floats = static_cast<int32_t>(floats.size());
  call.scratch = scratch.data();
  const std::vector<Values> before = in;
  const cpu::FlatOp* found = std::find_if(table.flat_ops, table.flat_ops + table.n_flat_ops,
                                          [&](const cpu::FlatOp& candidate) { return op == candidate.name; });
  if (found == table.flat_ops + table.n_flat_ops) {
    counter.check(false, isa_name + " has no operator " + op);
    return out;
  }
  found->run(call);
  bool untouched = true;
  for (size_t i = 0; i < in.size(); ++i) {
    untouched &= before[i].empty() || std::memcmp(before[i].data(), in[i].data(), in[i].size() * sizeof(float)) == 0;
  }
  counter.check(untouched, isa_name + " " + op + " changes an operand");
  return out;
}

void check(const std::string& what, const Values& got, const std::vector<double>& expected, double ulps = 0,
           double floor = 0) {
  bool ok = got.size() == expected.size();
  for (size_t i = 0; ok && i < got.size(); ++i) {
    ok = close(got[i], expected[i], ulps, floor);
    if (!ok) std::printf("%s: element %zu is %.9g, expected %.9g\n", what.c_str(), i, got[i], expected[i]);
  }
  counter.check(ok, isa_name + " " + what);
}

Values with_specials(Random& random, int64_t n) {
  Values x = random.values(static_cast<size_t>(n), 4.0f);
  for (int64_t i = 0; i < n; i += 2) x[size_t(i)] = kSpecial[(i / 2) % int64_t(std::size(kSpecial))];
  return x;
}

Values ties(Random& random, int64_t n, bool with_nan = false) {
  Values x(static_cast<size_t>(n));
  for (float& v : x) v = static_cast<float>(random.below(5) - 2);
  if (with_nan) x[x.size() / 2] = x.back() = kNan;
  return x;
}

void test_elementwise(const KernelTable& table) {
  Random random(1);
  for (const int64_t n : kLengths) {
    for (int op = 0; op <= static_cast<int>(Unary::kCastBool); ++op) {
      const Unary kind = static_cast<Unary>(op);
      const Values x = random.values(size_t(n), 4.0f);
      std::vector<double> expected;
      for (const float v : x) expected.push_back(unary_reference(kind, v, 3.0f, 4.0f));
      check("unary " + std::to_string(op), run(table, "unary", {x}, {n}, {op, n}, {3.0f, 4.0f})[0], expected, 4, 2e-6);
    }
    for (int op = 0; op <= static_cast<int>(Binary::kXor); ++op) {
      const Binary kind = static_cast<Binary>(op);
      const Values a = with_specials(random, n), b = random.values(size_t(n)), one = {1.5f};
      for (int form = 0; form < 3; ++form) {  // both, constant second, constant first
        std::vector<double> expected;
        for (int64_t i = 0; i < n; ++i) {
          const float u = form == 2 ? one[0] : a[size_t(i)], v = form == 1 ? one[0] : b[size_t(i)];
          expected.push_back(binary_reference(kind, u, v));
        }
        const Ints ints = {op, 1, n, form != 2, form != 1};
        const Values y = run(table, "binary", {form == 2 ? one : a, form == 1 ? one : b}, {n}, ints)[0];
        check("binary " + std::to_string(op * 10 + form), y, expected, 2, 1e-6);
      }
    }
    // Rank 2: rows of a against a column b.
    const Values a = random.values(size_t(3 * n)), column = random.values(3);
    std::vector<double> sum, chosen;
    for (int64_t i = 0; i < 3 * n; ++i) sum.push_back(double(a[size_t(i)] + column[size_t(i / n)]));
    check("binary rows", run(table, "binary", {a, column}, {3 * n}, {0, 2, 3, n, n, 1, 1, 0})[0], sum);

    Values condition = ties(random, n, true);
    for (int64_t i = 0; i < n; ++i) chosen.push_back(condition[size_t(i)] != 0 ? a[size_t(i)] : column[0]);
    check("where", run(table, "where", {condition, a, {column[0]}}, {n}, {1, n, 1, 1, 0})[0], chosen);

    const Values scale = random.values(size_t(n)), shift = random.values(size_t(n)),
                 maps = random.values(size_t(n * 5));
    std::vector<double> vector, planes;
    for (int64_t i = 0; i < n; ++i) vector.push_back(double(a[size_t(i)] * scale[size_t(i)] + shift[size_t(i)]));
    for (int64_t i = 0; i < n * 5; ++i) {
      planes.push_back(double(maps[size_t(i)] * scale[size_t(i / 5)] + shift[size_t(i / 5)]));
    }
    const Values first_rows(a.begin(), a.begin() + n);
    check("affine", run(table, "affine", {first_rows, scale, shift}, {n}, {n, 1})[0], vector, 1, 1e-6);
    check("affine planes", run(table, "affine", {maps, scale, shift}, {n * 5}, {n, 5})[0], planes, 1, 1e-6);
  }
}

void test_shape(const KernelTable& table) {
  Random random(2);
  for (const int64_t n : kLengths) {
    const Values x = random.values(size_t(4 * n));
    std::vector<double> transposed(size_t(4 * n)), padded(size_t(4 * (n + 3)), -1.5), joined, tiled;
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        transposed[size_t(j * 4 + i)] = x[size_t(i * n + j)];
        padded[size_t(i * (n + 3) + j + 1)] = x[size_t(i * n + j)];
      }
    }
    check("transpose", run(table, "copy", {x}, {4 * n}, {0, 0, 0, 2, n, 4, 1, n, 4, 1}, {0.0f})[0], transposed);
    const Ints pad = {4 * (n + 3), 0, 1, 2, 4, n, n, 1, n + 3, 1};
    check("pad", run(table, "copy", {x}, {4 * (n + 3)}, pad, {-1.5f})[0], padded);
    for (int i = 0; i < 3; ++i) tiled.insert(tiled.end(), x.begin(), x.end());
    check("repeat", run(table, "copy", {x}, {12 * n}, {0, 0, 0, 2, 3, 4 * n, 0, 1, 4 * n, 1}, {0.0f})[0], tiled);

    const Values other = random.values(8);
    for (int64_t i = 0; i < 4; ++i) {
      joined.insert(joined.end(), x.begin() + i * n, x.begin() + (i + 1) * n);
      joined.insert(joined.end(), other.begin() + i * 2, other.begin() + (i + 1) * 2);
    }
    check("cat", run(table, "cat", {x, other}, {4 * (n + 2)}, {4, n, 2})[0], joined);
  }
}

void test_indexing(const KernelTable& table) {
  Random random(3);
  for (const int64_t n : kLengths) {
    const Values x = random.values(size_t(n));
    Values index(static_cast<size_t>(n)), source = random.values(size_t(n));
    for (float& v : index) v = static_cast<float>(random.below(static_cast<int>(n)));
    std::vector<double> gathered, scattered(x.begin(), x.end());
    for (int64_t i = 0; i < n; ++i) {
      gathered.push_back(x[size_t(index[size_t(i)])]);
      scattered[size_t(index[size_t(i)])] = source[size_t(i)];
    }
    check("gather", run(table, "gather", {x, index}, {n}, {n, 1, 1, n, 0, 1})[0], gathered);
    check("scatter", run(table, "scatter", {x, index, source}, {n}, {n, n, 1, 1, n, 0, 1, 1})[0], scattered);
    check("index_select", run(table, "index_select", {x, index}, {n}, {1, n, 1, n})[0], gathered);

    std::vector<double> one_hot(size_t(n * 3), 0.0);
    for (int64_t i = 0; i < n; ++i) {
      if (index[size_t(i)] < 3) one_hot[size_t(i * 3) + size_t(index[size_t(i)])] = 1.0;
    }
    check("one_hot", run(table, "one_hot", {index}, {n * 3}, {n, 3})[0], one_hot);
  }
  const Values bad = {-1.0f, 4.0f, kNan, kInf, 1e30f, 2.0f}, x = {10, 11, 12, 13};
  const std::vector<double> read = {kNan, kNan, kNan, kNan, kNan, 12}, written = {10, 11, 9, 13};
  check("gather out of range", run(table, "gather", {x, bad}, {6}, {4, 1, 1, 6, 0, 1})[0], read);
  check("index_select out of range", run(table, "index_select", {x, bad}, {6}, {1, 4, 1, 6})[0], read);
  check("scatter out of range", run(table, "scatter", {x, bad, {9}}, {4}, {4, 4, 1, 1, 6, 0, 1, 0})[0], written);
}

void test_reductions(const KernelTable& table) {
  Random random(4);
  for (const int64_t n : kLengths) {
    const Values x = random.values(size_t(2 * n));  // two rows
    Values poisoned = x;
    poisoned[0] = kNan;
    std::vector<double> sum, mean, top, bottom, first_nan, softmax, log_softmax, cumsum;
    for (int row = 0; row < 2; ++row) {
      const auto begin = x.begin() + row * n, end = begin + n;
      double total = 0, exponentials = 0;
      for (auto v = begin; v != end; ++v) cumsum.push_back(float(total += *v));
      sum.push_back(total);
      mean.push_back(total / double(n));
      top.push_back(*std::max_element(begin, end));
      bottom.push_back(*std::min_element(begin, end));
      first_nan.push_back(row == 0 ? kNan : top.back());
      for (auto v = begin; v != end; ++v) exponentials += std::exp(double(*v));
      for (auto v = begin; v != end; ++v) softmax.push_back(std::exp(double(*v)) / exponentials);
      for (auto v = begin; v != end; ++v) log_softmax.push_back(*v - std::log(exponentials));
    }
    const auto rows = [&](int kind) { return Ints{kind, n, 1, 2, n, 1, n, 1}; };
    check("reduce sum", run(table, "reduce", {x}, {2}, rows(0))[0], sum, 1, 1e-6);
    check("reduce mean", run(table, "reduce", {x}, {2}, rows(1))[0], mean, 1, 1e-6);
    check("reduce max", run(table, "reduce", {x}, {2}, rows(2))[0], top);
    check("reduce min", run(table, "reduce", {x}, {2}, rows(3))[0], bottom);
    check("reduce max of NaN", run(table, "reduce", {poisoned}, {2}, rows(2))[0], first_nan);
    check("reduce columns", run(table, "reduce", {x}, {n}, {2, 2, 1, n, 1, 1, 2, n})[0], [&] {
      std::vector<double> columns;
      for (int64_t i = 0; i < n; ++i) columns.push_back(std::max(x[size_t(i)], x[size_t(n + i)]));
      return columns;
    }());
    check("softmax", run(table, "softmax", {x}, {2 * n}, {2, n, 1}, {}, 2 * n)[0], softmax, 8, 1e-7);
    check("log_softmax", run(table, "log_softmax", {x}, {2 * n}, {2, n, 1}, {}, 2 * n)[0], log_softmax, 8, 1e-6);
    check("cumsum", run(table, "cumsum", {x}, {2 * n}, {2, n, 1})[0], cumsum, 1, 1e-6);

    const Values tied = ties(random, n), tied_nan = ties(random, n, true);
    const auto position = [](auto it, const Values& in) { return double(it - in.begin()); };
    const auto is_nan = [](float v) { return std::isnan(v); };
    check("argmax", run(table, "arg_extreme", {tied}, {1}, {1, n, 1, 1})[0],
          {position(std::max_element(tied.begin(), tied.end()), tied)});
    check("argmin", run(table, "arg_extreme", {tied}, {1}, {1, n, 1, 0})[0],
          {position(std::min_element(tied.begin(), tied.end()), tied)});
    check("argmax of NaN", run(table, "arg_extreme", {tied_nan}, {1}, {1, n, 1, 1})[0],
          {position(std::find_if(tied_nan.begin(), tied_nan.end(), is_nan), tied_nan)});
  }
}

void test_order(const KernelTable& table) {
  Random random(5);
  for (const int64_t n : {1, 3, 16, 17, 63, 64, 65, 88, 89, 100, 128, 129, 513}) {
    for (int variant = 0; variant < 6; ++variant) {
      const bool descending = variant % 2;
      const int64_t inner = variant < 4 ? 1 : 3;  // strided lines
      const Values x = variant / 2 == 0 ? with_specials(random, n * inner) : ties(random, n * inner, variant / 2 == 1);
      for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, n}, {0, (n + 3) / 4}, {n / 2, 1}}) {
        std::vector<double> values(size_t(count * inner)), indices(size_t(count * inner));
        for (int64_t k = 0; k < inner; ++k) {
          std::vector<int64_t> order(static_cast<size_t>(n));
          std::iota(order.begin(), order.end(), 0);
          const auto at = [&](int64_t i) { return x[size_t(i * inner + k)]; };
          std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
            const float a = at(descending ? j : i), b = at(descending ? i : j);
            return std::isnan(b) ? !std::isnan(a) : a < b;
          });
          for (int64_t i = 0; i < count; ++i) {
            values[size_t(i * inner + k)] = at(order[size_t(first + i)]);
            indices[size_t(i * inner + k)] = double(order[size_t(first + i)]);
          }
        }
        const Ints ints = {1, n, inner, first, count, descending};
        const auto out = run(table, "order", {x}, {count * inner, count * inner}, ints, {}, 4 * n);
        check("order values", out[0], values);
        check("order indices", out[1], indices);
      }
    }
  }
}

void test_scatter_top(const KernelTable& table) {
  Random random(9);
  for (const int64_t n : {1, 3, 16, 33, 64, 88, 128, 129, 513}) {
    for (int variant = 0; variant < 6; ++variant) {
      const bool descending = variant % 2;
      const Values x = variant / 2 == 0 ? with_specials(random, n) : ties(random, n, variant / 2 == 1);
      const Values base = random.values(size_t(n)), value = {3.5f};
      for (const int64_t count : {int64_t{1}, (n + 1) / 2, n}) {
        const auto top = run(table, "order", {x}, {count, count}, {1, n, 1, 0, count, descending}, {}, 4 * n);
        std::vector<double> expected(base.begin(), base.end());
        for (const float at : top[1]) expected[size_t(at)] = value[0];
        check("scatter_top", run(table, "scatter_top", {x, base, value}, {n}, {n, count, descending}, {}, 4 * n)[0],
              expected);
      }
    }
  }
}

void test_matrices(const KernelTable& table) {
  Random random(6);
  for (const int64_t n : kLengths) {
    const Values x = random.values(size_t(3 * n)), w = random.values(size_t(n * n)), bias = random.values(size_t(n));
    std::vector<double> linear, product, group, layer;
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t k = 0; k < n; ++k) {
        double sum = bias[size_t(k)], plain = 0;
        for (int64_t c = 0; c < n; ++c) {
          sum += double(x[size_t(r * n + c)]) * w[size_t(k * n + c)];
          plain += double(x[size_t(r * n + c)]) * w[size_t(c * n + k)];
        }
        linear.push_back(std::max(sum, 0.0));
        product.push_back(plain);
      }
      double mean = 0, variance = 0;
      for (int64_t c = 0; c < n; ++c) mean += x[size_t(r * n + c)] / double(n);
      for (int64_t c = 0; c < n; ++c) variance += std::pow(x[size_t(r * n + c)] - mean, 2) / double(n);
      for (int64_t c = 0; c < n; ++c) {
        const double normal = (x[size_t(r * n + c)] - mean) / std::sqrt(variance + double(1e-2f));
        layer.push_back(normal * bias[size_t(c)]);
        if (n >= 3) group.push_back(normal * bias[size_t(r)] + bias[size_t(r)]);
      }
    }
    const double slack = 4e-6 * double(n);
    check("linear", run(table, "linear", {x, w, bias}, {3 * n}, {3, n, n, 1}, {0.0f, kInf})[0], linear, 2, slack);
    check("matmul", run(table, "matmul", {x, w}, {3 * n}, {3, n, n, 1, 1, 1, 1})[0], product, 2, slack);
    check("layer_norm", run(table, "layer_norm", {x, bias}, {3 * n}, {3, n, 1, 0}, {1e-2f})[0], layer, 2, 1e-5);
    if (n >= 3) {  // three groups of one channel
      const Values three(bias.begin(), bias.begin() + 3);
      check("group_norm", run(table, "group_norm", {x, three, three}, {3 * n}, {3, 3, n, 1, 1}, {1e-2f})[0], group, 2,
            1e-5);
    }
  }
}

void test_space(const KernelTable& table) {
  Random random(7);
  const int64_t h = 7, w = 9, out_h = 4, out_w = 5;  // 3x3, stride 2, pad 1
  const Values x = random.values(size_t(2 * h * w));
  for (const bool average : {false, true}) {
    std::vector<double> pooled, adaptive;
    for (int64_t c = 0; c < 2; ++c) {
      const auto at = [&](int64_t i, int64_t j) { return x[size_t((c * h + i) * w + j)]; };
      for (int64_t i = 0; i < out_h; ++i) {
        for (int64_t j = 0; j < out_w; ++j) {
          double sum = 0, top = -kInf, part = 0, part_top = -kInf, pixels = 0;
          for (int64_t r = std::max<int64_t>(0, 2 * i - 1); r < std::min(h, 2 * i + 2); ++r) {
            for (int64_t s = std::max<int64_t>(0, 2 * j - 1); s < std::min(w, 2 * j + 2); ++s) {
              sum += at(r, s);
              top = std::max<double>(top, at(r, s));
            }
          }
          for (int64_t r = i * h / out_h; r * out_h < (i + 1) * h; ++r) {
            for (int64_t s = j * w / out_w; s * out_w < (j + 1) * w; ++s, ++pixels) {
              part += at(r, s);
              part_top = std::max<double>(part_top, at(r, s));
            }
          }
          pooled.push_back(average ? sum / 9 : top);
          adaptive.push_back(average ? part / pixels : part_top);
        }
      }
    }
    const Ints pool = {2, average, 1, 0, h, out_h, 3, 2, 1, 1, 1, w, out_w, 3, 2, 1, 1, 1};
    check("pool2d", run(table, "pool2d", {x}, {2 * out_h * out_w}, pool)[0], pooled, 2, 1e-6);
    const Ints parts = {2, average, h, w, out_h, out_w};
    check("adaptive_pool2d", run(table, "adaptive_pool2d", {x}, {2 * out_h * out_w}, parts)[0], adaptive, 2, 1e-6);
  }
  // 2x2 to 1x3: half way between the rows; columns 0, half way, 1.
  const Ints tables = {1, 2, 2, 1, 3, 0, 1, 0, 0, 1, 0, 1, 1};
  const Values square = {1, 2, 3, 4}, weights = {0.5f, 0.0f, 0.5f, 0.0f};
  check("interpolate", run(table, "interpolate", {square}, {3}, tables, weights)[0], {2, 2.5, 3});
}

void test_coverage(const KernelTable& table) {
  for (int32_t i = 0; i < table.n_flat_ops; ++i) {
    counter.check(covered.count(table.flat_ops[i].name) == 1, std::string("no test for ") + table.flat_ops[i].name);
  }
}

}  // namespace
}  // namespace dynprune::test

int main() {
  using namespace dynprune::test;
  for (const Isa& isa : usable_isas()) {
    isa_name = isa.name;
    const dynprune::cpu::KernelTable table = table_of(isa);
    covered.clear();
    test_elementwise(table);
    test_shape(table);
    test_indexing(table);
    test_reductions(table);
    test_order(table);
    test_scatter_top(table);
    test_matrices(table);
    test_space(table);
    test_coverage(table);
  }
  return counter.report();
}
