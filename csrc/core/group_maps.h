// What steps on group planes (cpu/group_planes.h) share, whatever their element type.
#pragma once

#include <map>
#include <vector>

#include "core/plan.h"
#include "cpu/group_planes.h"

namespace dynprune {

inline int32_t planes_for(int32_t channels, int32_t per_word) { return (channels + per_word - 1) / per_word; }

inline uint32_t* group_plane(const Plan& plan, const Context& context, int32_t map, int32_t index) {
  return reinterpret_cast<uint32_t*>(plan.plane(context, map, index));
}

inline cpu::GroupPlanes group_planes(const Plan& plan, const Context& context, int32_t map) {
  const std::vector<int64_t>& planes = plan.maps[static_cast<size_t>(map)].plane;
  return {group_plane(plan, context, map, 0), planes.size() > 1 ? planes[1] - planes[0] : 0};
}

// Below this, a pass over planes is faster on one thread than the fork and join cost.
constexpr int64_t kSerialPlaneBlocks = 4096;

// Calls f(plane, rank) for the planes that `list` fills.
template <class F>
void for_each_group_plane(const LiveList& list, int32_t per_word, int64_t blocks_per_plane, ThreadTeam& team,
                          const F& f) {
  const int32_t planes = planes_for(list.count, per_word);
  const auto part = [&](int rank, int size) {
    const Share share = share_of(planes, rank, size);
    for (int32_t i = share.first; i < share.last; ++i) f(i, rank);
  };
  if (planes * blocks_per_plane < kSerialPlaneBlocks)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
}

inline void record_list(Context& context, const LiveList& list) {
  if (context.record) context.record->live_in = context.record->live_out = list.count;
}

// Where the entries of thread `rank` of `size` begin: never inside a word that another thread writes. `adds`: entries
// go to the word of their channel, not of their position.
int32_t first_entry_of(const LiveList& out, int32_t per_word, bool adds, int rank, int size);

// Pairs of a live input and a live output in the same group.
int64_t live_pairs(const LiveList& in, const LiveList& out, int32_t in_channels, int32_t out_channels, int32_t groups);

// Per tap and block, the positions from which the tap stays inside its row.
class TapMasks {
 public:
  // columns[t]: how far tap t is to the right of its output.
  TapMasks(const cpu::PlaneShape& out, const std::vector<int32_t>& columns);
  const uint16_t* const* data() const { return tap_.data(); }

 private:
  std::map<int32_t, std::vector<uint16_t>> by_column_;
  std::vector<const uint16_t*> tap_;
};

// As PhaseSplitStep. The float kernel moves 32-bit words and computes nothing.
class GroupPhaseSplitStep final : public Step {
 public:
  GroupPhaseSplitStep(int32_t per_word, int32_t stride_h, int32_t stride_w, int64_t phase_stride, int32_t in_map,
                      int32_t out_map, int32_t list)
      : per_word_(per_word),
        stride_h_(stride_h),
        stride_w_(stride_w),
        phase_stride_(phase_stride),
        in_map_(in_map),
        out_map_(out_map),
        list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t per_word_, stride_h_, stride_w_;
  int64_t phase_stride_;
  int32_t in_map_, out_map_, list_;
};

// A copy of all planes: a residual that is still needed after a convolution has added to it.
class GroupCopyStep final : public Step {
 public:
  GroupCopyStep(int32_t in_map, int32_t out_map) : in_map_(in_map), out_map_(out_map) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t in_map_, out_map_;
};

// Maps side by side: a stored channel of the output comes from the input that has it; zeros where that does not store
// it. Elements keep their bits.
class GroupCatStep final : public Step {
 public:
  struct Input {
    int32_t map, list, channels;
  };
  GroupCatStep(int32_t per_word, std::vector<Input> inputs, int32_t out_map, int32_t list)
      : per_word_(per_word), inputs_(std::move(inputs)), out_map_(out_map), list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;
  size_t scratch_bytes() const;

 private:
  int32_t per_word_;
  std::vector<Input> inputs_;
  int32_t out_map_, list_;
};

}  // namespace dynprune
