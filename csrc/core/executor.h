// Runs a plan: contexts, threads, batches, profiling.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "core/plan.h"
#include "core/thread_team.h"

namespace dynprune {

// One image's memory. Allocated once; run() does not allocate.
class ContextMemory {
 public:
  ContextMemory(const Plan& plan, int team_size);
  ~ContextMemory();
  ContextMemory(const ContextMemory&) = delete;
  ContextMemory& operator=(const ContextMemory&) = delete;

  Context context{};
  // Fills every pixel of every map and every flat arena tensor with NaN; pads stay zero. For tests.
  void poison(const Plan& plan);

 private:
  void* arena_block_ = nullptr;
  size_t arena_bytes_ = 0;
  std::vector<LiveList> lists_;
  std::vector<KeptInputState> kept_inputs_;
  std::vector<AlgorithmChoice> choices_;
  std::vector<int32_t> list_pool_, channels_;
  std::vector<const float*> read_planes_, residual_planes_;
  std::vector<float*> write_planes_;
};

struct RunRequest {
  const float* const* inputs;  // [batch][...] contiguous, per graph input
  float* const* outputs;
  int64_t batch;
  bool skip = true;
  bool poison = false;
  StepRecord* records = nullptr;  // [batch][steps] or null
};

// Thread-safe: the first of several concurrent callers gets the team, the others run on their own
// thread with their own memory.
class Executor {
 public:
  Executor(std::shared_ptr<const Plan> plan, int threads);

  void run(const RunRequest& request);
  int threads() const { return team_.size(); }
  const Plan& plan() const { return *plan_; }
  // Bytes of activation memory allocated so far.
  int64_t memory_bytes() const;

 private:
  void run_image(const RunRequest& request, int64_t image, ContextMemory& memory, ThreadTeam& team) const;
  void run_batch(const RunRequest& request);
  std::unique_ptr<ContextMemory> take_guest();

  std::shared_ptr<const Plan> plan_;
  ThreadTeam team_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::vector<std::unique_ptr<ContextMemory>> members_;  // one per rank; [0] also serves whole-team runs
  mutable std::mutex guests_mutex_;
  std::vector<std::unique_ptr<ContextMemory>> guests_;
  std::atomic<int64_t> memory_bytes_{0};
};

}  // namespace dynprune
