#include "core/thread_team.h"

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace dynprune {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// Long enough to bridge the serial steps between two regions of one run, short enough not to take
// a core from torch's own pool when the session is idle.
constexpr auto kSpin = std::chrono::microseconds(100);

// Spins until `done` holds or kSpin has passed; says whether it holds.
template <class Condition>
bool spin_until(Condition done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 256; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace

ThreadTeam::ThreadTeam(int size) {
  workers_.reserve(static_cast<size_t>(size > 1 ? size - 1 : 0));
  for (int rank = 1; rank < size; ++rank) workers_.emplace_back([this, rank] { worker_loop(rank); });
}

ThreadTeam::~ThreadTeam() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::fork_join(Entry entry, void* body) {
  entry_ = entry;
  body_ = body;
  unfinished_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  // A worker counts itself as a sleeper before it checks the epoch for the last time, so that either
  // it sees this epoch or we see the sleeper.
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }
  entry(body, 0);
  int spins = 0;
  while (unfinished_.load(std::memory_order_acquire) > 0) {
    relax();
    if (++spins > 4096) std::this_thread::yield();  // more threads than cores: let the worker have ours
  }
}

void ThreadTeam::worker_loop(int rank) {
#if defined(__x86_64__) || defined(__i386__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // flush denormals, as every thread that executes a plan does
#endif
  uint32_t seen = 0;
  for (;;) {
    const auto arrived = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(arrived)) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return epoch_.load(std::memory_order_seq_cst) != seen; });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    entry_(body_, rank);
    unfinished_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace dynprune
