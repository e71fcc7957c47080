#include "core/thread_team.h"

#include <pthread.h>

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

// Forks between the process that loaded this module and this one.
std::atomic<uint32_t> forks{0};
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });

}  // namespace

ThreadTeam::ThreadTeam(int size) : size_(size > 1 ? size : 1) {
  if (size_ > 1) hire();
}

ThreadTeam::~ThreadTeam() {
  if (!crew_) return;
  if (forks_ == forks.load(std::memory_order_relaxed)) {
    dismiss(*crew_);
  } else {
    static_cast<void>(crew_.release());  // its threads are the parent's: nobody to stop or to join
  }
}

void ThreadTeam::hire() {
  auto crew = std::make_unique<Crew>();
  crew->workers.reserve(static_cast<size_t>(size_ - 1));
  try {
    for (int rank = 1; rank < size_; ++rank) {
      crew->workers.emplace_back([crew = crew.get(), rank] { worker_loop(*crew, rank); });
    }
  } catch (...) {
    dismiss(*crew);
    throw;
  }
  static_cast<void>(crew_.release());  // a crew from before a fork: its mutex may be locked for ever, so leave it be
  crew_ = std::move(crew);
  forks_ = forks.load(std::memory_order_relaxed);
}

void ThreadTeam::dismiss(Crew& crew) {
  {
    std::lock_guard<std::mutex> lock(crew.mutex);
    crew.stop.store(true, std::memory_order_relaxed);
    crew.epoch.fetch_add(1, std::memory_order_seq_cst);
  }
  crew.wake.notify_all();
  for (std::thread& worker : crew.workers) worker.join();
}

void ThreadTeam::fork_join(Entry entry, void* body) {
  if (forks_ != forks.load(std::memory_order_relaxed)) hire();
  Crew& crew = *crew_;
  crew.entry = entry;
  crew.body = body;
  crew.unfinished.store(size_ - 1, std::memory_order_relaxed);
  crew.epoch.fetch_add(1, std::memory_order_seq_cst);
  // A worker counts itself as a sleeper before it checks the epoch for the last time, so that either
  // it sees this epoch or we see the sleeper.
  if (crew.sleepers.load(std::memory_order_seq_cst) > 0) {
    {
      std::lock_guard<std::mutex> lock(crew.mutex);
    }
    crew.wake.notify_all();
  }
  entry(body, 0);
  int spins = 0;
  while (crew.unfinished.load(std::memory_order_acquire) > 0) {
    relax();
    if (++spins > 4096) std::this_thread::yield();  // more threads than cores: let the worker have ours
  }
}

void ThreadTeam::worker_loop(Crew& crew, int rank) {
#if defined(__x86_64__) || defined(__i386__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // flush denormals, as every thread that executes a plan does
#endif
  uint32_t seen = 0;
  for (;;) {
    const auto arrived = [&] { return crew.epoch.load(std::memory_order_acquire) != seen; };
    if (!spin_until(arrived)) {
      std::unique_lock<std::mutex> lock(crew.mutex);
      crew.sleepers.fetch_add(1, std::memory_order_seq_cst);
      crew.wake.wait(lock, [&] { return crew.epoch.load(std::memory_order_seq_cst) != seen; });
      crew.sleepers.fetch_sub(1, std::memory_order_relaxed);
    }
    seen = crew.epoch.load(std::memory_order_acquire);
    if (crew.stop.load(std::memory_order_relaxed)) return;
    crew.entry(crew.body, rank);
    crew.unfinished.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace dynprune
