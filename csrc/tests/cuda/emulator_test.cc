// The emulator must catch the mistakes that it exists for.
#include <sys/wait.h>

#include "cuda/device.h"
#include "tests/cuda/device_test.h"

namespace dynprune::cuda::testing {
namespace {

// The error of a launch of 64 threads with 1 KiB of shared memory; empty when it succeeded.
std::string error_of(const std::function<void()>& body) {
  try {
    emulator::launch(1, 64, 1024, body);
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

bool crashes(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    error_of(body);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

void expect_error(const std::string& wanted, const std::function<void()>& body) {
  const std::string error = error_of(body);
  expect(error.find(wanted) != std::string::npos, "expected '" + wanted + "', got '" + error + "'");
}

// Every thread passes a number to its neighbour through shared memory; returns whether all arrive.
bool neighbours(bool with_barrier) {
  Array<float> out(64);
  const std::string error = error_of([&] {
    float* shared = reinterpret_cast<float*>(shared_memory());
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (with_barrier) __syncthreads();
    out[static_cast<size_t>(threadIdx.x)] = shared[(threadIdx.x + 1) % 64];
  });
  bool right = error.empty();
  for (int i = 0; i < 64; ++i) right = right && out[static_cast<size_t>(i)] == static_cast<float>((i + 1) % 64);
  return right;
}

void barriers() {
  for (auto s : {emulator::Schedule::kForward, emulator::Schedule::kBackward, emulator::Schedule::kShuffled}) {
    emulator::schedule = s;
    expect(neighbours(true), "values pass a barrier");
    expect(!neighbours(false), "a missing barrier shows");
  }
  emulator::schedule = emulator::Schedule::kForward;
  expect_error("deadlock", [] {
    if (threadIdx.x < 32) __syncthreads();
  });
}

void copies() {
  Array<float> source(std::vector<float>(16, 3.0f));
  float seen_early = 0.0f, seen = 0.0f, filled = 1.0f;
  expect(error_of([&] {
           float* shared = reinterpret_cast<float*>(shared_memory());
           if (threadIdx.x != 0) return;
           copy16_async(shared, source.data(), 8);
           commit_copies();
           seen_early = shared[0];
           wait_copies<0>();
           seen = shared[0];
           filled = shared[2];
         }).empty(),
         "a copy that is waited for");
  expect(seen_early != seen_early, "a copy has not arrived before the wait");
  expect(seen == 3.0f && filled == 0.0f, "a copy arrives and zero-fills");
  expect_error("in flight", [&] { copy16_async(shared_memory(), source.data(), 16); });
  expect_error("misaligned global", [&] { copy16_async(shared_memory(), source.data() + 1, 16); });
  expect_error("misaligned shared", [&] { copy16_async(shared_memory() + 4, source.data(), 16); });
  expect_error("outside shared", [&] { copy16_async(shared_memory() + 1024, source.data(), 16); });
  expect_error("outside shared", [] {
    uint32_t r[4];
    load_matrices(r, shared_memory() + 1024);
  });
}

void memory_ends() {
  Array<float> array(64);
  expect(!crashes([&] { array.data()[threadIdx.x] = 0.0f; }), "writing an array");
  expect(crashes([&] { array.data()[threadIdx.x + 1] = 0.0f; }), "writing past an array");
  expect(crashes([&] { shared_memory()[1024 + threadIdx.x] = 0; }), "writing past shared memory");
}

// mma.sync against a matrix product, through ldmatrix in both orientations.
template <typename T>
void matrix_product(bool transposed) {
  Random random(7);
  std::vector<float> a = random.vector(16 * 16), b = random.vector(16 * 8);
  for (float& v : a) v = to_float(from_float<T>(v));
  for (float& v : b) v = to_float(from_float<T>(v));
  std::vector<float> c(16 * 8, 1.0f);
  const std::string error = error_of([&] {
    if (threadIdx.x >= 32) return;
    const int lane = threadIdx.x;
    T* tile = reinterpret_cast<T*>(shared_memory());  // a: 16 rows of 16; then b, k-major or n-major, 8 wide
    if (lane == 0) {
      for (int i = 0; i < 256; ++i) tile[i] = from_float<T>(a[static_cast<size_t>(i)]);
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) {
          tile[256 + (transposed ? k * 8 + n : (k / 8) * 64 + n * 8 + k % 8)] = from_float<T>(b[k * 8 + n]);
        }
      }
    }
    __shfl_sync(kWarp, 0, 0);
    uint32_t ra[4], rb[4];
    load_matrices(ra, tile + (lane & 15) * 16 + (lane >> 4) * 8);
    const T* row = tile + 256 + (lane & 15) * 8;
    if (transposed) {
      load_matrices_transposed(rb, row);
    } else {
      load_matrices(rb, row);
    }
    float sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    multiply_accumulate<T>(sums, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; ++i) c[((lane >> 2) + (i >> 1) * 8) * 8 + (lane & 3) * 2 + (i & 1)] = sums[i];
  });
  expect(error.empty(), error);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      double expected = 1.0;
      for (int k = 0; k < 16; ++k) expected += static_cast<double>(a[i * 16 + k]) * b[k * 8 + j];
      expect(std::fabs(c[i * 8 + j] - expected) < 1e-5, "matrix product");
    }
  }
}

}  // namespace
}  // namespace dynprune::cuda::testing

int main() {
  using namespace dynprune::cuda;
  using namespace dynprune::cuda::testing;
  barriers();
  copies();
  memory_ends();
  for (bool transposed : {false, true}) {
    matrix_product<Half>(transposed);
    matrix_product<BFloat>(transposed);
  }
  return report("emulator");
}
