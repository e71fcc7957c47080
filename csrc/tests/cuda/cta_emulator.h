// Runs CUDA kernel sources on the host, one thread block (CTA) at a time, to test them without a GPU.
//
// Every CUDA thread is a fiber; block barriers and warp collectives are rendezvous. The emulator is made to
// expose mistakes: shared memory starts as NaN and ends at a page that cannot be touched, an asynchronous copy
// arrives only when it is waited for, addresses are checked for alignment and range, and between rendezvous a
// thread runs far ahead of the others, in an order that `schedule` chooses. It does not model tensor-core
// rounding, races between blocks, or time.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/index_math.h"

#define __device__
#define __host__
#define __global__ inline
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct uint4 {
  uint32_t x, y, z, w;
};

namespace dynprune::cuda::emulator {

// Memory whose last byte is followed by a page that cannot be touched, and whose first page is preceded by one.
// Sizes that are no multiple of `alignment` leave a gap of less than that at the end.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes, size_t alignment = 16) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t wanted = (bytes + alignment - 1) / alignment * alignment;
    length_ = (wanted + page - 1) / page * page + 2 * page;
    void* base = mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(base);
    if (length_ > 2 * page) mprotect(base_ + page, length_ - 2 * page, PROT_READ | PROT_WRITE);
    data_ = base_ + length_ - page - wanted;
    size_ = wanted;
    poison();
  }
  ~GuardedMemory() { munmap(base_, length_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  void poison() { memset(data_, 0xFF, size_); }  // NaN as fp16, bf16 and fp32
  unsigned char* data() { return data_; }
  size_t size() const { return size_; }

 private:
  unsigned char* base_;
  unsigned char* data_;
  size_t length_, size_;
};

// The order in which runnable threads of a block run.
enum class Schedule { kForward, kBackward, kShuffled };
inline Schedule schedule = Schedule::kForward;

struct PendingCopy {
  void* to;
  char bytes[16];
};

struct Thread {
  ucontext_t entry;  // where the fiber starts
  jmp_buf resume;    // where it goes on; unlike swapcontext, jumps make no system calls
  bool started = false;
  std::vector<char> stack = std::vector<char>(128 * 1024);
  bool done = false;
  unsigned collective = 0;  // parity of this lane's next warp collective
  std::deque<std::vector<PendingCopy>> groups;
  std::vector<PendingCopy> open;
};

struct Warp {
  int arrived = 0, generation = 0;
  uint64_t slots[2][32];
  uint32_t a[2][32][4], b[2][32][2];
};

struct Block {
  int size = 0, index = 0, grid = 0, current = 0;
  int arrived = 0, generation = 0;
  bool progress = false;
  std::vector<Warp> warps;
  std::vector<Thread>* threads = nullptr;
  GuardedMemory* shared = nullptr;
  jmp_buf scheduler;
  std::string error;
  const std::function<void()>* body = nullptr;
};

inline thread_local Block* block = nullptr;

inline Thread& self() { return (*block->threads)[static_cast<size_t>(block->current)]; }
inline int lane() { return block->current & 31; }
inline Warp& warp() { return block->warps[static_cast<size_t>(block->current >> 5)]; }

inline void suspend() {
  if (_setjmp(self().resume) == 0) _longjmp(block->scheduler, 1);
}

// Runs the current fiber until it suspends. Not inlined: no local of the caller may live in a register here.
__attribute__((noinline)) inline void resume() {
  if (_setjmp(block->scheduler) != 0) return;
  Thread& t = self();
  if (t.started) _longjmp(t.resume, 1);
  t.started = true;
  setcontext(&t.entry);
}

// Ends the launch with an error; does not return to the kernel.
inline void fail(const std::string& what) {
  block->error = what + " (block " + std::to_string(block->index) + ", thread " + std::to_string(block->current) + ")";
  for (;;) suspend();
}

inline void barrier(int& arrived, int& generation, int size) {
  const int mine = generation;
  block->progress = true;
  if (++arrived == size) {
    arrived = 0;
    ++generation;
    return;
  }
  while (generation == mine) suspend();
}

inline void warp_barrier() {
  Warp& w = warp();
  barrier(w.arrived, w.generation, std::min(32, block->size - (block->current & ~31)));
}

// Every lane contributes a value and sees those of all lanes. Two sets of slots in turn make one barrier enough.
inline const uint64_t* exchange(uint64_t value) {
  const unsigned side = self().collective++ & 1;
  warp().slots[side][lane()] = value;
  warp_barrier();
  return warp().slots[side];
}

inline void check_shared(const void* p, size_t bytes, const char* what) {
  const auto* address = static_cast<const unsigned char*>(p);
  if (address < block->shared->data() || address + bytes > block->shared->data() + block->shared->size()) {
    fail(std::string(what) + " outside shared memory");
  }
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail(std::string(what) + " at a misaligned shared address");
}

inline void fiber_main() {
  (*block->body)();
  bool in_flight = !self().open.empty();
  for (const auto& group : self().groups) in_flight = in_flight || !group.empty();
  if (in_flight) fail("the kernel ended with copies in flight");
  self().done = true;
  block->progress = true;
  for (;;) suspend();
}

// Runs the fibers of one block in turns until all have ended. Throws std::runtime_error for a mistake of the kernel.
inline void run_block(Block& state, std::vector<int>& order, uint32_t& random) {
  block = &state;
  for (int live = state.size; live > 0;) {
    live = 0;
    state.progress = false;
    if (schedule == Schedule::kShuffled) {
      for (size_t i = order.size(); i > 1; --i) {
        random = random * 1664525u + 1013904223u;
        std::swap(order[i - 1], order[(random >> 8) % i]);
      }
    }
    for (int thread : order) {
      state.current = thread;
      if (self().done) continue;
      ++live;
      resume();
      if (!state.error.empty()) break;
    }
    if (state.error.empty() && live > 0 && !state.progress) {
      state.error = "deadlock: some threads of a block wait where the others never arrive";
    }
    if (!state.error.empty()) break;
  }
  block = nullptr;
  if (!state.error.empty()) throw std::runtime_error(state.error);
}

inline void start(Thread& t) {
  t.done = t.started = false;
  t.collective = 0;
  t.groups.clear();
  t.open.clear();
  getcontext(&t.entry);
  t.entry.uc_stack.ss_sp = t.stack.data();
  t.entry.uc_stack.ss_size = t.stack.size();
  t.entry.uc_link = nullptr;
  makecontext(&t.entry, fiber_main, 0);
}

// Runs body() as `threads` threads in each of `grid` blocks. Throws std::runtime_error for a mistake of the kernel.
inline void launch(int grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  std::vector<Thread> fibers(static_cast<size_t>(threads));
  GuardedMemory shared(std::max<size_t>(shared_bytes, 16), 128);
  std::vector<int> order;
  for (int i = 0; i < threads; ++i) order.push_back(schedule == Schedule::kBackward ? threads - 1 - i : i);
  uint32_t random = 12345;
  for (int index = 0; index < grid; ++index) {
    Block state;
    state.size = threads;
    state.index = index;
    state.grid = grid;
    state.warps.resize(static_cast<size_t>((threads + 31) / 32));
    state.threads = &fibers;
    state.shared = &shared;
    state.body = &body;
    shared.poison();
    for (Thread& t : fibers) start(t);
    run_block(state, order, random);
  }
}

struct Index {
  int x;
};

}  // namespace dynprune::cuda::emulator

#define threadIdx (dynprune::cuda::emulator::Index{dynprune::cuda::emulator::block->current})
#define blockIdx (dynprune::cuda::emulator::Index{dynprune::cuda::emulator::block->index})
#define blockDim (dynprune::cuda::emulator::Index{dynprune::cuda::emulator::block->size})
#define gridDim (dynprune::cuda::emulator::Index{dynprune::cuda::emulator::block->grid})

namespace dynprune::cuda {

inline void __syncthreads() {
  emulator::Block& b = *emulator::block;
  emulator::barrier(b.arrived, b.generation, b.size);
}

template <typename V>
inline V shuffle_from(V value, int source) {
  static_assert(sizeof(V) == 4);
  uint64_t raw = 0;
  memcpy(&raw, &value, sizeof(V));
  const uint64_t* slots = emulator::exchange(raw);
  V result;
  memcpy(&result, &slots[source], sizeof(V));
  return result;
}
template <typename V>
inline V __shfl_xor_sync(unsigned, V value, int mask) {
  return shuffle_from(value, emulator::lane() ^ mask);
}
template <typename V>
inline V __shfl_up_sync(unsigned, V value, int delta) {
  return shuffle_from(value, emulator::lane() < delta ? emulator::lane() : emulator::lane() - delta);
}
template <typename V>
inline V __shfl_sync(unsigned, V value, int source) {
  return shuffle_from(value, source);
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  const uint64_t* slots = emulator::exchange(predicate);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= static_cast<unsigned>(slots[i]) << i;
  return result;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
template <typename V>
inline V __ldg(const V* p) {
  return *p;
}

using Half = _Float16;
struct BFloat {
  uint16_t raw;
};

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T low, high;
};

inline float to_float(Half v) { return static_cast<float>(v); }
inline float to_float(float v) { return v; }
inline float to_float(BFloat v) {
  const uint32_t wide = static_cast<uint32_t>(v.raw) << 16;
  float result;
  memcpy(&result, &wide, 4);
  return result;
}
template <typename T>
inline T from_float(float v);
template <>
inline Half from_float<Half>(float v) {
  return static_cast<Half>(v);
}
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline BFloat from_float<BFloat>(float v) {  // round to nearest even
  uint32_t wide;
  memcpy(&wide, &v, 4);
  if (v != v) return BFloat{0x7FFF};
  return BFloat{static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16)};
}

inline unsigned char* shared_memory() { return emulator::block->shared->data(); }

inline void copy16_async(void* to, const void* from, int bytes) {
  emulator::check_shared(to, 16, "copy");
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulator::fail("copy from a misaligned global address");
  if (bytes < 0 || bytes > 16) emulator::fail("copy of a size outside 0..16");
  emulator::PendingCopy copy{to, {}};
  memcpy(copy.bytes, from, static_cast<size_t>(bytes));
  emulator::self().open.push_back(copy);
}
inline void commit_copies() {
  emulator::self().groups.push_back(std::move(emulator::self().open));
  emulator::self().open.clear();
}
template <int N>
inline void wait_copies() {
  auto& groups = emulator::self().groups;
  while (groups.size() > N) {
    for (const auto& copy : groups.front()) memcpy(copy.to, copy.bytes, 16);
    groups.pop_front();
  }
}

inline void load_matrices_at(uint32_t (&r)[4], const void* row, bool transposed) {
  emulator::check_shared(row, 16, "ldmatrix");
  const uint64_t* rows = emulator::exchange(reinterpret_cast<uint64_t>(row));
  const int group = emulator::lane() >> 2, pair = (emulator::lane() & 3) * 2;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t v[2];
    for (int e = 0; e < 2; ++e) {
      const int i = transposed ? pair + e : group, j = transposed ? group : pair + e;
      memcpy(&v[e], reinterpret_cast<const char*>(rows[matrix * 8 + i]) + 2 * j, 2);
    }
    memcpy(&r[matrix], v, 4);
  }
  emulator::warp_barrier();  // the hardware reads for all lanes at once: nobody overwrites before all have read
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices_at(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { load_matrices_at(r, row, true); }

// Rounds fp32 to tf32: nearest, ties away from zero.
template <typename T>
inline uint32_t operand(uint32_t raw) {
  const bool finite = (raw & 0x7F800000u) != 0x7F800000u;
  return sizeof(T) == 2 || !finite ? raw : (raw + 0x1000) & 0xFFFFE000u;
}

// Element k of a fragment whose registers for k are given in two halves: two 16-bit elements or one fp32 per register.
template <typename T, typename Registers>
inline float element(int k, Registers registers) {
  if (sizeof(T) == 4) {
    const uint32_t raw = registers(k & 3, k >> 2) & 0xFFFFE000u;  // the hardware reads 19 bits
    float value;
    memcpy(&value, &raw, 4);
    return value;
  }
  const uint16_t raw = static_cast<uint16_t>(registers((k & 7) >> 1, k >> 3) >> (16 * (k & 1)));
  T value;
  memcpy(&value, &raw, std::min<size_t>(2, sizeof(T)));
  return to_float(value);
}

template <typename T>
inline void multiply_accumulate(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::Warp& w = emulator::warp();
  const int lane = emulator::lane(), group = lane >> 2, pair = (lane & 3) * 2;
  const unsigned side = emulator::self().collective++ & 1;
  memcpy(w.a[side][lane], a, sizeof(a));
  w.b[side][lane][0] = b0;
  w.b[side][lane][1] = b1;
  emulator::warp_barrier();
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i >> 1) * 8, column = pair + (i & 1);
    float sum = c[i];
    for (int k = 0; k < (sizeof(T) == 2 ? 16 : 8); ++k) {
      const auto a_of = [&](int place, int half) { return w.a[side][(row & 7) * 4 + place][(row >> 3) + 2 * half]; };
      const auto b_of = [&](int place, int half) { return w.b[side][column * 4 + place][half]; };
      sum += element<T>(k, a_of) * element<T>(k, b_of);
    }
    c[i] = sum;
  }
}

}  // namespace dynprune::cuda
