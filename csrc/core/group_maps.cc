#include "core/group_maps.h"

#include <algorithm>
#include <cstring>

namespace dynprune {

int32_t first_entry_of(const LiveList& out, int32_t per_word, bool adds, int rank, int size) {
  const auto at = static_cast<int32_t>(static_cast<int64_t>(out.count) * rank / size);
  if (rank == size) return out.count;
  if (!adds) return at / per_word * per_word;
  int32_t first = at;
  while (first > 0 && out.index[first - 1] / per_word == out.index[first] / per_word) --first;
  return first;
}

int64_t live_pairs(const LiveList& in, const LiveList& out, int32_t in_channels, int32_t out_channels, int32_t groups) {
  if (groups == 1) return static_cast<int64_t>(in.count) * out.count;
  std::vector<int64_t> inputs(static_cast<size_t>(groups), 0);
  for (int32_t i = 0; i < in.count; ++i) ++inputs[static_cast<size_t>(in.index[i] / (in_channels / groups))];
  int64_t pairs = 0;
  for (int32_t i = 0; i < out.count; ++i) pairs += inputs[static_cast<size_t>(out.index[i] / (out_channels / groups))];
  return pairs;
}

TapMasks::TapMasks(const cpu::PlaneShape& out, const std::vector<int32_t>& columns) {
  for (int32_t column : columns) {
    std::vector<uint16_t>& mask = by_column_[column];
    if (mask.empty()) {
      mask.assign(static_cast<size_t>(out.blocks), 0);
      for (int64_t p = 0; p < static_cast<int64_t>(out.blocks) * cpu::kBlock; ++p) {
        const int64_t x = p % out.pitch + column;
        if (x >= 0 && x < out.pitch)
          mask[static_cast<size_t>(p / cpu::kBlock)] |= static_cast<uint16_t>(1u << (p % cpu::kBlock));
      }
    }
    tap_.push_back(mask.data());
  }
}

void GroupPhaseSplitStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  const cpu::PlaneShape& in = plan.shape_of(in_map_);
  const cpu::PlaneShape& phase = plan.shape_of(out_map_);
  record_list(context, list);
  for_each_group_plane(list, per_word_, in.blocks, team, [&](int32_t i, int) {
    plan.kernels->phase_split(in, phase, stride_h_, stride_w_, phase_stride_, plan.plane(context, in_map_, i),
                              plan.plane(context, out_map_, i));
  });
}

void GroupCopyStep::run(const Plan& plan, Context& context, ThreadTeam&) const {
  const MapRef& in = plan.maps[static_cast<size_t>(in_map_)];
  const size_t bytes = static_cast<size_t>(plan.shape_of(in).blocks) * cpu::kBlock * sizeof(uint32_t);
  for (int32_t i = 0; i < in.channels(); ++i)
    std::memcpy(plan.plane(context, out_map_, i), plan.plane(context, in_map_, i), bytes);
}

size_t GroupCatStep::scratch_bytes() const {
  size_t channels = 0;
  for (const Input& input : inputs_) channels += static_cast<size_t>(input.channels);
  return channels * 2 * sizeof(int32_t);
}

void GroupCatStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  // Per channel of the output: the input that stores it, or -1, and its position there.
  auto* table = reinterpret_cast<int32_t*>(context.thread_scratch);
  std::fill_n(table, scratch_bytes() / sizeof(int32_t), -1);
  int32_t base = 0;
  for (size_t j = 0; j < inputs_.size(); ++j) {
    const LiveList& stored = context.lists[inputs_[j].list];
    for (int32_t i = 0; i < stored.count; ++i) {
      table[2 * (base + stored.index[i])] = static_cast<int32_t>(j);
      table[2 * (base + stored.index[i]) + 1] = i;
    }
    base += inputs_[j].channels;
  }
  const LiveList& list = context.lists[list_];
  const int32_t blocks = plan.shape_of(out_map_).blocks;
  const int64_t words = int64_t{blocks} * cpu::kBlock;
  const int32_t bits = 32 / per_word_;
  const uint32_t element = per_word_ == 1 ? ~0u : (1u << bits) - 1;
  record_list(context, list);
  for_each_group_plane(list, per_word_, blocks, team, [&](int32_t plane, int) {
    uint32_t* y = group_plane(plan, context, out_map_, plane);
    std::fill_n(y, words, 0u);
    for (int32_t a = 0; a < per_word_ && plane * per_word_ + a < list.count; ++a) {
      const int32_t* entry = table + 2 * list.index[plane * per_word_ + a];
      if (entry[0] < 0) continue;
      const uint32_t* x = group_plane(plan, context, inputs_[static_cast<size_t>(entry[0])].map, entry[1] / per_word_);
      const int32_t from = entry[1] % per_word_ * bits, to = a * bits;
      for (int64_t i = 0; i < words; ++i) y[i] |= (x[i] >> from & element) << to;
    }
  });
}

}  // namespace dynprune
