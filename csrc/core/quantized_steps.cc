#include "core/quantized_steps.h"

#include <algorithm>
#include <cstring>

namespace dynprune {
namespace {

using cpu::kChannelsPerWord;

// Below these, a step is faster on one thread than the fork and join cost.
constexpr int64_t kSerialCycles = 12000;
constexpr int64_t kSerialBlocks = 4096;

int32_t planes_of(int32_t channels) { return (channels + kChannelsPerWord - 1) / kChannelsPerWord; }

uint32_t* plane(const Plan& plan, const Context& context, int32_t map, int32_t index) {
  return reinterpret_cast<uint32_t*>(plan.plane(context, map, index));
}

cpu::GroupPlanes group_planes(const Plan& plan, const Context& context, int32_t map) {
  const std::vector<int64_t>& planes = plan.maps[static_cast<size_t>(map)].plane;
  return {plane(plan, context, map, 0), planes.size() > 1 ? planes[1] - planes[0] : 0};
}

// Calls f(plane) for the planes that `list` fills.
template <class F>
void for_each_plane(const LiveList& list, int64_t blocks_per_plane, ThreadTeam& team, const F& f) {
  const int32_t planes = planes_of(list.count);
  const auto part = [&](int rank, int size) {
    const Share share = share_of(planes, rank, size);
    for (int32_t i = share.first; i < share.last; ++i) f(i);
  };
  if (planes * blocks_per_plane < kSerialBlocks)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
}

void record_lists(Context& context, const LiveList& list) {
  if (context.record) context.record->live_in = context.record->live_out = list.count;
}

// Where the entries of thread `rank` begin: never inside a word that another thread writes.
int32_t first_entry(const LiveList& out, bool adds, int rank, int size) {
  const auto at = static_cast<int32_t>(static_cast<int64_t>(out.count) * rank / size);
  if (rank == size) return out.count;
  if (!adds) return at / kChannelsPerWord * kChannelsPerWord;
  int32_t first = at;
  while (first > 0 && out.index[first - 1] / kChannelsPerWord == out.index[first] / kChannelsPerWord) --first;
  return first;
}

// Positions from which a tap `column` columns to the right stays inside its row.
std::vector<uint16_t> mask_of_column(const cpu::PlaneShape& shape, int32_t column) {
  std::vector<uint16_t> mask(static_cast<size_t>(shape.blocks), 0);
  for (int64_t p = 0; p < static_cast<int64_t>(shape.blocks) * cpu::kBlock; ++p) {
    const int64_t x = p % shape.pitch + column;
    if (x >= 0 && x < shape.pitch)
      mask[static_cast<size_t>(p / cpu::kBlock)] |= static_cast<uint16_t>(1u << (p % cpu::kBlock));
  }
  return mask;
}

}  // namespace

QuantizedConvStep::QuantizedConvStep(const Plan& plan, QuantizedConvParams params) : p_(std::move(params)) {
  const auto taps = static_cast<int32_t>(p_.tap_offset.size());
  const int32_t columns = p_.depthwise ? 1 : p_.in_channels;
  const cpu::PlaneShape& out = plan.shape_of(p_.out_map);
  for (int32_t column : p_.tap_column) {
    std::vector<uint16_t>& mask = column_mask_[column];
    if (mask.empty()) mask = mask_of_column(out, column);
    tap_mask_.push_back(mask.data());
  }
  shape_ = {columns,     p_.out_channels, taps,        p_.tap_offset.data(), tap_mask_.data(),
            out,         p_.in_type,      p_.out_type, p_.residual_type,     p_.residual_scale,
            p_.inner_low};
  const int32_t row_channels = cpu::quantized_row_channels(columns);
  const int64_t row_bytes = static_cast<int64_t>(taps) * row_channels;
  rows_.assign(static_cast<size_t>(p_.out_channels * row_bytes + cpu::kQuantizedOverread), 0);
  row_sum_.assign(static_cast<size_t>(p_.out_channels), 0);
  const int8_t* source = p_.weights;
  for (int32_t k = 0; k < p_.out_channels; ++k)
    for (int32_t c = 0; c < columns; ++c)
      for (int32_t t = 0; t < taps; ++t, ++source) {
        rows_[static_cast<size_t>(k * row_bytes + t * row_channels + c)] = *source;
        row_sum_[static_cast<size_t>(k)] += *source;
      }
  p_.weights = nullptr;
}

size_t QuantizedConvStep::scratch_bytes(const Plan& plan) const {
  return p_.depthwise ? 0 : plan.kernels->quantized->conv_scratch(shape_);
}

void QuantizedConvStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& in = context.lists[p_.in_list];
  const LiveList& out = context.lists[p_.out_list];
  const int64_t pairs = p_.depthwise ? out.count : static_cast<int64_t>(in.count) * out.count;
  if (context.record) {
    context.record->live_in = in.count;
    context.record->live_out = out.count;
    context.record->macs = p_.macs_per_pair * pairs;
    context.record->kernel = p_.depthwise ? "int8 depthwise" : "int8 direct";
  }
  const cpu::QuantizedWeights weights{rows_.data(), row_sum_.data(), p_.scale.data(), p_.bias.data()};
  const cpu::QuantizedConvCall call{group_planes(plan, context, p_.in_map),
                                    in.index,
                                    in.count,
                                    group_planes(plan, context, p_.out_map),
                                    out.index,
                                    out.count,
                                    plan.flat_or_null(context, p_.gate),
                                    plan.flat_or_null(context, p_.shift)};
  const bool adds = p_.residual_scale != 0.0f;
  const auto part = [&](int rank, int size) {
    if (p_.depthwise) {
      const Share share = share_of(planes_of(out.count), rank, size);
      plan.kernels->quantized->depthwise(shape_, weights, call, share.first, share.last);
    } else {
      plan.kernels->quantized->conv(shape_, weights, call, first_entry(out, adds, rank, size),
                                    first_entry(out, adds, rank + 1, size),
                                    context.thread_scratch + rank * plan.thread_scratch_size);
    }
  };
  const int64_t words_in = p_.depthwise ? 1 : planes_of(in.count);
  const int64_t cycles = words_in * out.count * shape_.taps * shape_.out.blocks;
  if (cycles < kSerialCycles)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
  if (p_.pass_list >= 0) pass_through(plan, context);
}

// Channels that are not computed: the residual alone, in the type and scale of the output.
void QuantizedConvStep::pass_through(const Plan& plan, Context& context) const {
  const LiveList& pass = context.lists[p_.pass_list];
  const float* shifts = plan.flat_or_null(context, p_.shift);
  for (int32_t i = 0; i < pass.count;) {
    const int32_t group = pass.index[i] / kChannelsPerWord;
    uint32_t lanes = 0;
    float shift[kChannelsPerWord] = {};
    for (; i < pass.count && pass.index[i] / kChannelsPerWord == group; ++i) {
      const int32_t byte = pass.index[i] % kChannelsPerWord;
      lanes |= 1u << byte;
      if (shifts) shift[byte] = shifts[pass.index[i]];
    }
    plan.kernels->quantized->rescale(shape_.out, lanes, shift, p_.residual_scale, p_.residual_type, p_.out_type,
                                     plane(plan, context, p_.out_map, group));
  }
}

void QuantizeStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& shape = plan.shape_of(p_.out_map);
  const int64_t pixels = static_cast<int64_t>(shape.height) * shape.width;
  const int32_t pitch = p_.input >= 0 ? shape.width : plan.shape_of(p_.in_map).pitch;
  record_lists(context, list);
  for_each_plane(list, shape.blocks, team, [&](int32_t i) {
    const float* x[kChannelsPerWord] = {};
    for (int32_t a = 0; a < kChannelsPerWord && i * kChannelsPerWord + a < list.count; ++a) {
      const int32_t channel = list.index[i * kChannelsPerWord + a];
      x[a] = p_.input >= 0 ? context.inputs[p_.input] + channel * pixels
                           : plan.live_plane(context, p_.in_map, channel, p_.in_live);
    }
    plan.kernels->quantized->quantize(shape, x, pitch, p_.inverse_scale, p_.type, plane(plan, context, p_.out_map, i));
  });
}

void DequantizeStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& in = plan.shape_of(p_.in_map);
  const cpu::PlaneShape& out = plan.shape_of(p_.out_map);
  record_lists(context, list);
  for_each_plane(list, out.blocks, team, [&](int32_t i) {
    const uint32_t* words = plane(plan, context, p_.in_map, i);
    for (int32_t a = 0; a < kChannelsPerWord && i * kChannelsPerWord + a < list.count; ++a)
      plan.kernels->quantized->dequantize(in, out, words, a, p_.scale, p_.type,
                                          plan.plane(context, p_.out_map, list.index[i * kChannelsPerWord + a]));
  });
}

void QuantizedReduceStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& shape = plan.shape_of(p_.in_map);
  float* y = plan.flat(context, p_.out_flat);
  record_lists(context, list);
  std::fill_n(y, plan.flats[static_cast<size_t>(p_.out_flat)].size(), 0.0f);
  const auto kernel = p_.maximum ? plan.kernels->quantized->max : plan.kernels->quantized->sum;
  for_each_plane(list, shape.blocks, team, [&](int32_t i) {
    int32_t reduced[kChannelsPerWord];
    kernel(shape, plane(plan, context, p_.in_map, i), p_.type, reduced);
    for (int32_t a = 0; a < kChannelsPerWord && i * kChannelsPerWord + a < list.count; ++a)
      y[list.index[i * kChannelsPerWord + a]] = static_cast<float>(reduced[a]) * p_.scale;
  });
}

void QuantizedMaxPoolStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  record_lists(context, list);
  const int32_t planes = planes_of(list.count);
  const auto part = [&](int rank, int size) {
    auto* line = reinterpret_cast<uint32_t*>(context.thread_scratch + rank * plan.thread_scratch_size);
    const Share share = share_of(planes, rank, size);
    for (int32_t i = share.first; i < share.last; ++i)
      plan.kernels->quantized->max_pool(shape_, type_, plane(plan, context, in_map_, i),
                                        plane(plan, context, out_map_, i), line);
  };
  if (planes * static_cast<int64_t>(shape_.in.blocks) < kSerialBlocks)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
}

void QuantizedPhaseSplitStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  const cpu::PlaneShape& in = plan.shape_of(in_map_);
  const cpu::PlaneShape& phase = plan.shape_of(out_map_);
  record_lists(context, list);
  // The float kernel moves 32-bit words and computes nothing.
  for_each_plane(list, in.blocks, team, [&](int32_t i) {
    plan.kernels->phase_split(in, phase, stride_h_, stride_w_, phase_stride_, plan.plane(context, in_map_, i),
                              plan.plane(context, out_map_, i));
  });
}

void QuantizedCopyStep::run(const Plan& plan, Context& context, ThreadTeam&) const {
  const MapRef& in = plan.maps[static_cast<size_t>(in_map_)];
  const size_t bytes = static_cast<size_t>(plan.shape_of(in).blocks) * cpu::kBlock * sizeof(uint32_t);
  for (int32_t i = 0; i < in.channels(); ++i)
    std::memcpy(plan.plane(context, out_map_, i), plan.plane(context, in_map_, i), bytes);
}

}  // namespace dynprune
