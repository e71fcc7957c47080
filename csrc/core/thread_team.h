// A persistent team of threads with fork-join regions, made for layers of a few microseconds.
//
// Workers spin for a short while after a region and then sleep, so that an idle session costs
// nothing and the next layer of a running network finds them awake. A process that was forked off
// has none of its parent's threads: there the team starts its own at the next region.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace dynprune {

class ThreadTeam {
 public:
  // `size` counts the calling thread; size 1 starts no thread.
  explicit ThreadTeam(int size);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }

  // Calls f(rank) for rank 0 .. size()-1, rank 0 on the calling thread; returns when all are done.
  // One caller at a time. f must not throw.
  template <class F>
  void run(F&& f) {
    if (size_ == 1) {
      f(0);
      return;
    }
    using Body = std::remove_reference_t<F>;
    fork_join([](void* body, int rank) { (*static_cast<Body*>(body))(rank); }, &f);
  }

 private:
  using Entry = void (*)(void* body, int rank);
  struct Crew {
    std::vector<std::thread> workers;
    Entry entry = nullptr;
    void* body = nullptr;
    alignas(64) std::atomic<uint32_t> epoch{0};
    alignas(64) std::atomic<int> unfinished{0};
    alignas(64) std::atomic<int> sleepers{0};
    std::atomic<bool> stop{false};
    std::mutex mutex;
    std::condition_variable wake;
  };
  void hire();  // throws std::system_error where the system has no more threads
  static void dismiss(Crew& crew);
  void fork_join(Entry entry, void* body);
  static void worker_loop(Crew& crew, int rank);

  int size_;
  uint32_t forks_ = 0;  // of this process's line when the crew was hired
  std::unique_ptr<Crew> crew_;
};

// The share [first, last) of `count` items that `rank` of `size` works on.
struct Share {
  int32_t first, last;
};
inline Share share_of(int32_t count, int rank, int size) {
  const int64_t n = count;
  return {static_cast<int32_t>(n * rank / size), static_cast<int32_t>(n * (rank + 1) / size)};
}

}  // namespace dynprune
