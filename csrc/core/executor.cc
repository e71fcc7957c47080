#include "core/executor.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dynprune {
namespace {

// Denormals cost up to a hundred cycles each on some CPUs and mean nothing here.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

size_t context_floats(const Plan& plan, int team_size) {
  return static_cast<size_t>(plan.arena_size) +
         static_cast<size_t>(plan.thread_scratch_size) * static_cast<size_t>(team_size) + 64;
}

}  // namespace

ContextMemory::ContextMemory(const Plan& plan, int team_size) {
  const size_t floats = context_floats(plan, team_size);
  const size_t alignment = floats * sizeof(float) >= kHugePage ? kHugePage : 64;
  arena_bytes_ = (floats * sizeof(float) + alignment - 1) / alignment * alignment;
  arena_block_ = std::aligned_alloc(alignment, arena_bytes_);
  if (!arena_block_) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(arena_block_, arena_bytes_, MADV_HUGEPAGE);
#endif
  std::memset(arena_block_, 0, arena_bytes_);
  lists_.resize(plan.lists.size());
  list_pool_.resize(static_cast<size_t>(plan.list_pool_size) + 1);
  kept_inputs_.resize(static_cast<size_t>(plan.kept_inputs));
  choices_.resize(static_cast<size_t>(plan.choices));
  const auto channels = static_cast<size_t>(plan.max_channels);
  read_planes_.resize(channels);
  residual_planes_.resize(channels);
  write_planes_.resize(channels);
  channels_.resize(2 * channels);
  context.arena = static_cast<float*>(arena_block_);
  context.thread_scratch = context.arena + (plan.arena_size + 15) / 16 * 16;
  context.lists = lists_.data();
  context.list_pool = list_pool_.data();
  context.kept_inputs = kept_inputs_.data();
  context.choices = choices_.data();
  context.read_planes = read_planes_.data();
  context.residual_planes = residual_planes_.data();
  context.write_planes = write_planes_.data();
  context.channels = channels_.data();
  for (size_t i = 0; i < plan.lists.size(); ++i) {
    const LiveListDesc& desc = plan.lists[i];
    const auto count = static_cast<int32_t>(desc.constant.size());
    lists_[i] = desc.is_constant ? LiveList{desc.constant.data(), count, count} : LiveList{nullptr, 0, 0};
  }
}

ContextMemory::~ContextMemory() { std::free(arena_block_); }

void ContextMemory::poison(const Plan& plan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const FlatRef& flat : plan.flats)
    if (!flat.constant) std::fill_n(context.arena + flat.offset, flat.size(), nan);
  for (const MapRef& map : plan.maps) {
    const cpu::PlaneShape& shape = plan.shape_of(map);
    for (int64_t plane : map.plane)
      if (plane != plan.zero_plane[static_cast<size_t>(map.shape)])
        for (int32_t y = 0; y < shape.height; ++y)
          std::fill_n(context.arena + plane + static_cast<int64_t>(y) * shape.pitch, shape.width, nan);
  }
}

Executor::Executor(std::shared_ptr<const Plan> plan, int threads) : plan_(std::move(plan)), team_(threads) {
  members_.resize(static_cast<size_t>(team_.size()));
}

int64_t Executor::memory_bytes() const { return memory_bytes_.load(std::memory_order_relaxed); }

void Executor::run_image(const RunRequest& request, int64_t image, ContextMemory& memory, ThreadTeam& team) const {
  const Plan& plan = *plan_;
  Context& context = memory.context;
  if (request.poison) memory.poison(plan);
  constexpr size_t kMaxPorts = 64;
  const float* inputs[kMaxPorts];
  float* outputs[kMaxPorts];
  for (size_t i = 0; i < plan.input_sizes.size(); ++i) inputs[i] = request.inputs[i] + image * plan.input_sizes[i];
  for (size_t i = 0; i < plan.output_sizes.size(); ++i) outputs[i] = request.outputs[i] + image * plan.output_sizes[i];
  context.inputs = inputs;
  context.outputs = outputs;
  context.skip = request.skip;
  context.record = nullptr;
  if (!request.records) {
    for (const auto& step : plan.steps) step->run(plan, context, team);
    return;
  }
  StepRecord* records = request.records + image * static_cast<int64_t>(plan.steps.size());
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    context.record = &records[i];
    const auto start = std::chrono::steady_clock::now();
    plan.steps[i]->run(plan, context, team);
    records[i].nanoseconds +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
  }
  context.record = nullptr;
}

void Executor::run_batch(const RunRequest& request) {
  const int size = team_.size();
  const auto member = [&](int rank) -> ContextMemory& {
    auto& slot = members_[static_cast<size_t>(rank)];
    if (!slot) {
      // Rank 0 lends its memory to layers that the whole team works on.
      const int scratches = rank == 0 ? size : 1;
      slot = std::make_unique<ContextMemory>(*plan_, scratches);
      memory_bytes_ += static_cast<int64_t>(context_floats(*plan_, scratches) * sizeof(float));
    }
    return *slot;
  };
  // Whole images per thread as far as they go round, the rest layer by layer with all threads.
  const int64_t rounds = size > 1 ? request.batch / size : 0;
  if (rounds > 0) {
    for (int rank = 0; rank < size; ++rank) member(rank);
    std::atomic<int64_t> next{0};
    const int64_t whole = rounds * size;
    team_.run([&](int rank) {
      FlushDenormals flush;
      ThreadTeam alone(1);
      for (int64_t image; (image = next.fetch_add(1, std::memory_order_relaxed)) < whole;)
        run_image(request, image, *members_[static_cast<size_t>(rank)], alone);
    });
  }
  FlushDenormals flush;
  for (int64_t image = rounds * size; image < request.batch; ++image) run_image(request, image, member(0), team_);
}

std::unique_ptr<ContextMemory> Executor::take_guest() {
  std::lock_guard<std::mutex> lock(guests_mutex_);
  if (guests_.empty()) {
    memory_bytes_ += static_cast<int64_t>(context_floats(*plan_, 1) * sizeof(float));
    return std::make_unique<ContextMemory>(*plan_, 1);
  }
  auto guest = std::move(guests_.back());
  guests_.pop_back();
  return guest;
}

void Executor::run(const RunRequest& request) {
  if (!busy_.test_and_set(std::memory_order_acquire)) {
    struct Release {
      std::atomic_flag& flag;
      ~Release() { flag.clear(std::memory_order_release); }
    } release{busy_};
    run_batch(request);
    return;
  }
  std::unique_ptr<ContextMemory> guest = take_guest();
  ThreadTeam alone(1);
  {
    FlushDenormals flush;
    for (int64_t image = 0; image < request.batch; ++image) run_image(request, image, *guest, alone);
  }
  std::lock_guard<std::mutex> lock(guests_mutex_);
  guests_.push_back(std::move(guest));
}

}  // namespace dynprune
