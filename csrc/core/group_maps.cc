#include "core/group_maps.h"

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

}  // namespace dynprune
