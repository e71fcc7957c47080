// The thread team, the plan builder's checks, and the executor: threads, batches, concurrency, memory.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/executor.h"
#include "core/isa.h"
#include "core/plan_builder.h"
#include "tests/kernel_test.h"

namespace {

std::atomic<int64_t> allocations{0};

}  // namespace

// Counts every C++ allocation of the process, so that a run can be shown to make none.
void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = std::malloc(size ? size : 1);
  if (!p) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace dynprune {
namespace {

test::Counter counter;

void check(bool ok, const std::string& what) { counter.check(ok, what); }

void check_throws(const std::function<void()>& body, const std::string& what) {
  try {
    body();
  } catch (const std::invalid_argument&) {
    check(true, what);
    return;
  }
  check(false, what + " was accepted");
}

void test_team_runs_every_rank_once() {
  for (int size : {1, 2, 3, 5}) {
    ThreadTeam team(size);
    std::vector<int> counts(static_cast<size_t>(size), 0);
    for (int round = 0; round < 2000; ++round) team.run([&](int rank) { ++counts[static_cast<size_t>(rank)]; });
    bool ok = true;
    for (int count : counts) ok = ok && count == 2000;
    check(ok, "every rank of " + std::to_string(size) + " runs once per region");
  }
}

void test_team_wakes_sleeping_workers() {
  ThreadTeam team(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // longer than the workers spin
    std::atomic<int> ran{0};
    team.run([&](int) { ++ran; });
    check(ran == 3, "workers that went to sleep take part again");
  }
}

void test_team_works_in_a_forked_process() {
  ThreadTeam team(3);
  team.run([](int) {});
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> ran{0};
    for (int round = 0; round < 3; ++round) team.run([&](int) { ++ran; });
    _exit(ran == 9 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a forked process gets threads of its own");
}

void test_shares_cover_everything() {
  for (int32_t count : {0, 1, 7, 64})
    for (int size : {1, 2, 3, 8}) {
      int32_t next = 0;
      bool ok = true;
      for (int rank = 0; rank < size; ++rank) {
        const Share share = share_of(count, rank, size);
        ok = ok && share.first == next && share.last >= share.first;
        next = share.last;
      }
      check(ok && next == count, "shares are adjacent and complete");
    }
}

// conv 3x3 (gated by a mask input) + relu, then conv 1x1: x [4,9,9], mask [20] -> y [6,9,9].
constexpr int kIn = 4, kMid = 20, kOut = 6, kSize = 9, kPitch = 10;

struct Network {
  std::vector<float> w1, w2, bias;
  std::shared_ptr<Plan> plan;
};

Network gated_network(const std::string& isa) {
  Network net;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& v, size_t n) {
    v.resize(n);
    for (float& x : v) x = normal(random);
  };
  fill(net.w1, kMid * kIn * 9);
  fill(net.w2, kOut * kMid);
  fill(net.bias, kMid);

  PlanBuilder b(isa);
  const int64_t guard = 96, stride = 256;
  int64_t next = guard;
  const auto planes = [&](int n) {
    std::vector<int64_t> offsets;
    for (int c = 0; c < n; ++c, next += stride) offsets.push_back(next);
    return offsets;
  };
  const int64_t zero = planes(1)[0];
  const int32_t shape = b.add_shape(kSize, kSize, kPitch, zero);
  const int32_t x = b.add_map(shape, planes(kIn)), mid = b.add_map(shape, planes(kMid)),
                y = b.add_map(shape, planes(kOut));
  const int32_t mask = b.add_flat((next + 15) / 16 * 16, {kMid});
  b.add_input(kIn * kSize * kSize);
  b.add_input(kMid);
  b.add_output(kOut * kSize * kSize);
  b.add_load_planes("x", -1, 0, x);
  b.add_copy("mask", mask, 1, -1);
  std::vector<int32_t> all_in, all_out;
  for (int c = 0; c < kIn; ++c) all_in.push_back(c);
  for (int c = 0; c < kOut; ++c) all_out.push_back(c);
  const int32_t in_list = b.add_constant_list(all_in), out_list = b.add_constant_list(all_out);
  const int32_t live = b.add_live_list(kMid, mask, -1, false);
  ConvParams conv;
  conv.in_map = x;
  conv.out_map = mid;
  conv.kernel_h = conv.kernel_w = 3;
  for (int r = -1; r <= 1; ++r)
    for (int s = -1; s <= 1; ++s) conv.tap_offset.push_back(r * kPitch + s);
  conv.weights = net.w1.data();
  conv.bias = b.add_constant(net.bias.data(), {kMid});
  conv.gate = mask;
  conv.inner = {0.0f, INFINITY};
  conv.outer = {-INFINITY, INFINITY};
  conv.in_list = in_list;
  conv.out_list = live;
  conv.macs_per_pair = 9 * kSize * kSize;
  b.add_conv("first", conv);
  ConvParams last;
  last.in_map = mid;
  last.out_map = y;
  last.tap_offset = {0};
  last.weights = net.w2.data();
  last.inner = last.outer = {-INFINITY, INFINITY};
  last.in_list = live;
  last.out_list = out_list;
  last.macs_per_pair = kSize * kSize;
  b.add_conv("last", last);
  b.add_store_planes("y", y, out_list, -1, 0);
  net.plan = b.finish(next + 1024);
  return net;
}

struct Batch {
  std::vector<float> x, mask, y;
  explicit Batch(int64_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    x.resize(static_cast<size_t>(n) * kIn * kSize * kSize);
    mask.resize(static_cast<size_t>(n) * kMid);
    y.assign(static_cast<size_t>(n) * kOut * kSize * kSize, -1.0f);
    for (float& v : x) v = normal(random);
    for (float& v : mask) v = random() % 2 ? 1.5f : 0.0f;
  }
  void run(Executor& executor, bool skip, bool poison = false) {
    const float* inputs[] = {x.data(), mask.data()};
    float* outputs[] = {y.data()};
    RunRequest request{inputs, outputs, static_cast<int64_t>(mask.size()) / kMid, skip, poison, nullptr};
    executor.run(request);
  }
};

std::vector<double> reference(const Network& net, const Batch& batch) {
  const int64_t n = static_cast<int64_t>(batch.mask.size()) / kMid;
  std::vector<double> y;
  for (int64_t b = 0; b < n; ++b) {
    std::vector<double> mid(kMid * kSize * kSize);
    for (int k = 0; k < kMid; ++k)
      for (int i = 0; i < kSize; ++i)
        for (int j = 0; j < kSize; ++j) {
          double sum = net.bias[static_cast<size_t>(k)];
          for (int c = 0; c < kIn; ++c)
            for (int r = 0; r < 3; ++r)
              for (int s = 0; s < 3; ++s) {
                const int h = i + r - 1, w = j + s - 1;
                if (h < 0 || w < 0 || h >= kSize || w >= kSize) continue;
                sum += static_cast<double>(net.w1[static_cast<size_t>((k * kIn + c) * 9 + r * 3 + s)]) *
                       batch.x[static_cast<size_t>(((b * kIn + c) * kSize + h) * kSize + w)];
              }
          mid[static_cast<size_t>((k * kSize + i) * kSize + j)] =
              std::max(sum, 0.0) * batch.mask[static_cast<size_t>(b * kMid + k)];
        }
    for (int k = 0; k < kOut; ++k)
      for (int p = 0; p < kSize * kSize; ++p) {
        double sum = 0;
        for (int c = 0; c < kMid; ++c)
          sum += static_cast<double>(net.w2[static_cast<size_t>(k * kMid + c)]) *
                 mid[static_cast<size_t>(c * kSize * kSize + p)];
        y.push_back(sum);
      }
  }
  return y;
}

void test_executor(const std::string& isa) {
  const Network net = gated_network(isa);
  Executor one(net.plan, 1);
  Batch batch(5, 11);
  batch.run(one, true);
  const std::vector<double> expected = reference(net, batch);
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) worst = std::max(worst, std::abs(expected[i] - batch.y[i]));
  check(worst < 1e-4, isa + ": outputs match a double-precision loop");

  const std::vector<float> bits = batch.y;
  batch.run(one, false);
  check(batch.y == bits, isa + ": the same bits without skipping");
  batch.run(one, true, true);
  check(batch.y == bits, isa + ": no memory is read that was not written");
  for (int threads : {2, 3}) {
    Executor team(net.plan, threads);
    batch.run(team, true);
    check(batch.y == bits, isa + ": the same bits on " + std::to_string(threads) + " threads");
  }

  // After the first run with every team member, nothing is allocated.
  Executor team(net.plan, 2);
  batch.run(team, true);
  const int64_t before = allocations.load();
  for (int i = 0; i < 10; ++i) batch.run(team, i % 2 == 0);
  const int64_t after = allocations.load();
  check(after == before, isa + ": run allocates nothing after the first call");

  // Concurrent callers share the executor and do not mix their results.
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (unsigned seed = 0; seed < 4; ++seed)
    callers.emplace_back([&, seed] {
      Batch own(3, 100 + seed);
      own.run(team, true);
      const std::vector<float> first = own.y;
      for (int i = 0; i < 50; ++i) {
        own.run(team, true);
        if (own.y != first) ++wrong;
      }
    });
  for (std::thread& caller : callers) caller.join();
  check(wrong == 0, isa + ": concurrent runs keep their results apart");
}

void test_builder_refuses_bad_plans() {
  check_throws([] { PlanBuilder("pentium"); }, "an unknown instruction set");
  PlanBuilder b("generic");
  const int32_t shape = b.add_shape(3, 3, 4, 0);
  const int32_t map = b.add_map(shape, {64, 128});
  check_throws([&] { b.add_shape(3, 5, 4, 0); }, "a pitch below the width");
  check_throws([&] { b.add_map(7, {0}); }, "an unknown shape");
  check_throws([&] { b.add_map(shape, {}); }, "an empty map");
  check_throws([&] { b.add_flat(-4, {2}); }, "a negative offset");
  check_throws([&] { b.add_constant_list({2, 1}); }, "a list that descends");
  check_throws([&] { b.add_live_list(4, 99, -1, false); }, "an unknown mask");
  check_throws([&] { b.add_load_planes("x", -1, 0, 42); }, "an unknown map");
  const int32_t too_long = b.add_constant_list({0, 1, 2});
  check_throws([&] { b.add_store_planes("y", map, too_long, -1, 0); }, "a list beyond the channels");
  check_throws([&] { b.add_flat_op("f", "no such operator", {}, {}, {}, {}, -1); }, "an unknown flat operator");
  ConvParams conv;
  conv.in_map = conv.out_map = map;
  check_throws([&] { b.add_conv("c", conv); }, "a convolution without weights");
  check_throws([&] { b.finish(100); }, "a plane outside the arena");
  check_throws([&] { b.add_load_phases("x", 0, 6, 6, 2, 2, 64, map); }, "an unknown input");
  const float weights[4] = {};
  conv.weights = weights;
  conv.tap_offset = {0};
  conv.in_list = conv.out_list = b.add_constant_list({0, 1});
  conv.shared_planes = 3;
  check_throws([&] { b.add_conv("c", conv); }, "more shared planes than channels");
  conv.shared_planes = 2;
  b.add_conv("expand", conv);
  check_throws([&] { b.finish(1000); }, "an expansion without a reader");
}

}  // namespace
}  // namespace dynprune

int main() {
  using namespace dynprune;
  test_team_runs_every_rank_once();
  test_team_wakes_sleeping_workers();
  test_team_works_in_a_forked_process();
  test_shares_cover_everything();
  test_builder_refuses_bad_plans();
  for (const std::string& isa : available_isas()) test_executor(isa);
  return counter.report();
}
