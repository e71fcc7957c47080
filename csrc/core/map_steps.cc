#include "core/map_steps.h"

#include <algorithm>

#include "core/plane_reduction.h"

namespace dynprune {
namespace {

// Plane passes shorter than this many blocks stay on the calling thread.
constexpr int64_t kSerialBlocks = 4096;

// Calls f(share) for parts of `list`, on the team where the planes are large enough to pay.
template <class F>
void for_each_share(const LiveList& list, int64_t blocks_per_channel, ThreadTeam& team, const F& f) {
  if (list.count * blocks_per_channel < kSerialBlocks)
    f(share_of(list.count, 0, 1));
  else
    team.run([&](int rank) { f(share_of(list.count, rank, team.size())); });
}

// The same for each channel.
template <class F>
void for_each_channel(const LiveList& list, int64_t blocks_per_channel, ThreadTeam& team, const F& f) {
  for_each_share(list, blocks_per_channel, team, [&](Share share) {
    for (int32_t i = share.first; i < share.last; ++i) f(list.index[i]);
  });
}

void record_lists(Context& context, const LiveList& list) {
  if (context.record) context.record->live_in = context.record->live_out = list.count;
}

}  // namespace

void LiveListStep::run(const Plan& plan, Context& context, ThreadTeam&) const {
  const LiveListDesc& desc = plan.lists[static_cast<size_t>(list_)];
  const float* include = plan.flat_or_null(context, desc.include);
  const float* exclude = plan.flat_or_null(context, desc.exclude);
  int32_t* index = context.list_pool + desc.slot;
  const auto list_where = [&](auto&& is_live) {
    // Branch-free: every channel is written, the cursor moves only past live ones.
    int32_t live = 0;
    for (int32_t c = 0; c < desc.capacity; ++c) {
      index[live] = c;
      live += static_cast<int32_t>(is_live(c));
    }
    return live;
  };
  const int32_t live = !exclude ? list_where([&](int32_t c) { return include[c] != 0.0f; })
                       : !include
                           ? list_where([&](int32_t c) { return exclude[c] == 0.0f; })
                           : list_where([&](int32_t c) {
                               return static_cast<int>(include[c] != 0.0f) & static_cast<int>(exclude[c] == 0.0f);
                             });
  int32_t count = live;
  if (!context.skip) {
    // Everything is computed. What an exclude list would pass through is computed instead.
    count = desc.exclude >= 0 ? 0 : desc.capacity;
    if (desc.live_first) {
      for (int32_t c = 0, at = live; c < count && at < count; ++c)
        if (include && include[c] == 0.0f) index[at++] = c;
    } else {
      for (int32_t c = 0; c < count; ++c) index[c] = c;
    }
  }
  context.lists[list_] = {index, count, live};
}

void PlaneUnaryStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& shape = plan.shape_of(p_.out_map);
  const float* a = plan.flat_or_null(context, p_.a_flat);
  const float* b = plan.flat_or_null(context, p_.b_flat);
  record_lists(context, list);
  for_each_channel(list, shape.blocks, team, [&](int32_t c) {
    plan.kernels->plane_unary(p_.kind, a ? a[c] : p_.a, b ? b[c] : p_.b, shape,
                              plan.live_plane(context, p_.in_map, c, p_.in_live), plan.plane(context, p_.out_map, c));
  });
}

void PlaneBinaryStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& shape = plan.shape_of(p_.out_map);
  record_lists(context, list);
  struct Source {
    const float* plane;
    float number;
  };
  const auto source = [&](const Operand& x, int32_t c) -> Source {
    if (x.map < 0) return {nullptr, plan.flat(context, x.flat)[x.one_number ? 0 : c]};
    return {plan.live_plane(context, x.map, x.one_plane ? 0 : c, x.live_mask), 0.0f};
  };
  for_each_channel(list, shape.blocks, team, [&](int32_t c) {
    const Source x0 = source(p_.x0, c), x1 = source(p_.x1, c);
    float* y = plan.plane(context, p_.out_map, c);
    if (x0.plane || x1.plane) {
      plan.kernels->plane_binary(p_.kind, p_.clamp, shape, x0.plane, x1.plane, x0.plane ? x1.number : x0.number, y);
    } else {
      // Both operands are constant over the plane: fill one with a number first.
      plan.kernels->plane_fill(shape, x0.number, y);
      plan.kernels->plane_binary(p_.kind, p_.clamp, shape, y, nullptr, x1.number, y);
    }
  });
}

void PoolStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  record_lists(context, list);
  const int64_t work = static_cast<int64_t>(shape_.out.blocks) * std::max(1, shape_.kernel_h * shape_.kernel_w);
  for_each_channel(list, work, team, [&](int32_t c) {
    const float* x = plan.live_plane(context, in_map_, c, in_live_);
    float* y = plan.plane(context, out_map_, c);
    switch (kind_) {
      case Kind::kMax:
        plan.kernels->plane_max_pool(shape_, x, y);
        break;
      case Kind::kAverage:
        plan.kernels->plane_avg_pool(shape_, x, y);
        break;
      case Kind::kAdaptiveAverage:
        plan.kernels->plane_adaptive_pool(shape_.in, shape_.out, true, x, y);
        break;
      case Kind::kAdaptiveMax:
        plan.kernels->plane_adaptive_pool(shape_.in, shape_.out, false, x, y);
        break;
    }
  });
}

void SpatialReduceStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  const int32_t channels = plan.maps[static_cast<size_t>(in_map_)].channels();
  float* y = plan.flat(context, out_flat_);
  record_lists(context, list);
  if (list.count < channels) std::fill(y, y + channels, 0.0f);
  for_each_share(list, plan.shape_of(in_map_).blocks, team,
                 [&](Share share) { reduce_channels(plan, context, kind_, in_map_, list, share, y); });
}

void PhaseSplitStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  const cpu::PlaneShape& in = plan.shape_of(in_map_);
  const cpu::PlaneShape& phase = plan.shape_of(out_map_);
  record_lists(context, list);
  for_each_channel(list, in.blocks, team, [&](int32_t c) {
    plan.kernels->phase_split(in, phase, stride_h_, stride_w_, phase_stride_, plan.plane(context, in_map_, c),
                              plan.plane(context, out_map_, c));
  });
}

void LoadPlanesStep::run(const Plan& plan, Context& context, ThreadTeam&) const {
  const MapRef& map = plan.maps[static_cast<size_t>(out_map_)];
  const cpu::PlaneShape& shape = plan.shape_of(map);
  const float* dense = flat_ >= 0 ? plan.flat(context, flat_) : context.inputs[input_];
  const int64_t pixels = static_cast<int64_t>(shape.height) * shape.width;
  for (int32_t c = 0; c < map.channels(); ++c)
    plan.kernels->plane_load(shape, dense + c * pixels, context.arena + map.plane[static_cast<size_t>(c)]);
}

void StorePlanesStep::run(const Plan& plan, Context& context, ThreadTeam&) const {
  const LiveList& list = context.lists[list_];
  const MapRef& map = plan.maps[static_cast<size_t>(in_map_)];
  const cpu::PlaneShape& shape = plan.shape_of(map);
  float* dense = flat_ >= 0 ? plan.flat(context, flat_) : context.outputs[output_];
  const int64_t pixels = static_cast<int64_t>(shape.height) * shape.width;
  if (list.count < map.channels()) std::fill(dense, dense + map.channels() * pixels, 0.0f);
  for (int32_t i = 0; i < list.count; ++i) {
    const int32_t c = list.index[i];
    plan.kernels->plane_store(shape, context.arena + map.plane[static_cast<size_t>(c)], dense + c * pixels);
  }
}

}  // namespace dynprune
