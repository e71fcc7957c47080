#include "core/quantized_steps.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/quantized_conv_cost.h"

namespace dynprune {
namespace {

using cpu::kChannelsPerWord;

// Below this, a convolution is faster on one thread than the fork and join cost.
constexpr int64_t kSerialCycles = 12000;

}  // namespace

QuantizedConvStep::QuantizedConvStep(Plan& plan, QuantizedConvParams params)
    : p_(std::move(params)), tap_masks_(plan.shape_of(p_.out_map), p_.tap_column) {
  const auto taps = static_cast<int32_t>(p_.tap_offset.size());
  const int32_t columns = p_.depthwise ? 1 : p_.in_channels / p_.groups;
  const cpu::PlaneShape& out = plan.shape_of(p_.out_map);
  shape_ = {p_.depthwise ? 1 : p_.in_channels,
            p_.out_channels,
            p_.groups,
            taps,
            p_.tap_offset.data(),
            tap_masks_.data(),
            out,
            p_.in_type,
            p_.out_type,
            p_.residual_type,
            p_.residual_scale,
            p_.inner_low,
            p_.inner_high};
  const int32_t row_channels = cpu::quantized_row_channels(columns);
  const int64_t row_bytes = static_cast<int64_t>(taps) * row_channels;
  const auto bytes = static_cast<size_t>(p_.out_channels * row_bytes + cpu::kRowOverread);
  rows_ = static_cast<int8_t*>(plan.packed.allocate_bytes(bytes));
  std::memset(rows_, 0, bytes);
  row_sum_.assign(static_cast<size_t>(p_.out_channels), 0);
  const int8_t* source = p_.weights;
  for (int32_t k = 0; k < p_.out_channels; ++k)
    for (int32_t c = 0; c < columns; ++c)
      for (int32_t t = 0; t < taps; ++t, ++source) {
        rows_[k * row_bytes + t * row_channels + c] = *source;
        row_sum_[static_cast<size_t>(k)] += *source;
      }
  p_.weights = nullptr;
  winograd_ = winograd_pays(p_.in_channels, p_.out_channels) && fits_winograd(plan);
}

// 3x3 taps in their order, stride 1, padding 1; and whatever the inputs are, live or not, no sum of an output leaves
// the range that dividing by the scales of the transforms needs.
bool QuantizedConvStep::fits_winograd(const Plan& plan) const {
  const cpu::PlaneShape &in = plan.shape_of(p_.in_map), &out = shape_.out;
  if (!plan.kernels->quantized->winograd || p_.depthwise || p_.groups > 1 || shape_.taps != 9) return false;
  if (in.height != out.height || in.width != out.width || in.pitch != out.pitch) return false;
  for (int32_t t = 0; t < shape_.taps; ++t) {
    const int32_t column = t % 3 - 1;
    if (p_.tap_column[static_cast<size_t>(t)] != column) return false;
    if (p_.tap_offset[static_cast<size_t>(t)] != (t / 3 - 1) * out.pitch + column) return false;
  }
  const int64_t row_bytes = int64_t{shape_.taps} * cpu::quantized_row_channels(p_.in_channels);
  const bool is_signed = p_.in_type == cpu::QuantizedType::kS8;
  for (int32_t k = 0; k < p_.out_channels; ++k) {
    int64_t positive = 0, negative = 0;
    for (const int8_t* w = rows_ + k * row_bytes; w < rows_ + (k + 1) * row_bytes; ++w)
      (*w > 0 ? positive : negative) += *w;
    const int64_t most = is_signed ? 128 * (positive - negative) : 255 * std::max(positive, -negative);
    if (most >= cpu::kWinogradSumLimit) return false;
  }
  return true;
}

bool QuantizedConvStep::winograd_pays(int32_t n_in, int32_t n_out) const {
  return cpu::quantized_winograd_cycles(shape_, n_in, n_out) < cpu::quantized_direct_cycles(shape_, n_in, n_out);
}

size_t QuantizedConvStep::scratch_bytes(const Plan& plan) const {
  if (p_.depthwise) return 0;
  const cpu::QuantizedKernels& kernels = *plan.kernels->quantized;
  return std::max(kernels.conv_scratch(shape_), winograd_ ? kernels.winograd_scratch(shape_) : 0);
}

void QuantizedConvStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& in = context.lists[p_.in_list];
  const LiveList& out = context.lists[p_.out_list];
  const bool winograd = winograd_ && in.count > 0 && out.count > 0 && winograd_pays(in.count, out.count);
  if (context.record) {
    context.record->live_in = p_.model_inputs ? p_.model_inputs : in.count;
    context.record->live_out = out.count;
    const int64_t pairs = p_.depthwise      ? out.count
                          : p_.model_inputs ? int64_t{p_.model_inputs} * out.count
                                            : live_pairs(in, out, p_.in_channels, p_.out_channels, p_.groups);
    context.record->macs = p_.macs_per_pair * pairs;
    context.record->kernel = p_.depthwise    ? "int8 depthwise"
                             : p_.groups > 1 ? "int8 grouped"
                             : winograd      ? "int8 winograd F(4x4)"
                                             : "int8 direct";
  }
  const cpu::QuantizedWeights weights{rows_, row_sum_.data(), p_.scale.data(), p_.bias.data()};
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
      const Share share = share_of(planes_for(out.count, kChannelsPerWord), rank, size);
      plan.kernels->quantized->depthwise(shape_, weights, call, share.first, share.last);
    } else {
      plan.kernels->quantized->conv(shape_, weights, call, first_entry_of(out, kChannelsPerWord, adds, rank, size),
                                    first_entry_of(out, kChannelsPerWord, adds, rank + 1, size),
                                    context.thread_scratch + rank * plan.thread_scratch_size);
    }
  };
  const int64_t words_in = p_.depthwise ? 1 : planes_for(in.count / p_.groups, kChannelsPerWord);
  const int64_t cycles = words_in * out.count * shape_.taps * shape_.out.blocks;
  if (winograd)
    run_winograd(plan, context, team, weights, call, out);
  else if (cycles < kSerialCycles)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
  if (p_.pass_list >= 0) pass_through(plan, context);
}

// A thread takes a band of rows where there are enough, else a share of the outputs; either way it transforms the
// inputs that it needs for itself.
void QuantizedConvStep::run_winograd(const Plan& plan, Context& context, ThreadTeam& team,
                                     const cpu::QuantizedWeights& weights, const cpu::QuantizedConvCall& call,
                                     const LiveList& out) const {
  constexpr int kTile = 4, kLanes = 16;
  const cpu::WinogradBands bands = cpu::winograd_bands({p_.in_channels, p_.out_channels, kTile, shape_.out}, kLanes);
  const bool banded = team.size() <= bands.most();
  const bool adds = p_.residual_scale != 0.0f;
  team.run([&](int rank) {
    const int size = team.size();
    plan.kernels->quantized->winograd(shape_, weights, call, banded ? bands.rows(rank, size) : bands.rows(0, 1),
                                      banded ? 0 : first_entry_of(out, kChannelsPerWord, adds, rank, size),
                                      banded ? out.count : first_entry_of(out, kChannelsPerWord, adds, rank + 1, size),
                                      context.thread_scratch + rank * plan.thread_scratch_size);
  });
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
                                     group_plane(plan, context, p_.out_map, group));
  }
}

void QuantizeStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& shape = plan.shape_of(p_.out_map);
  const int64_t pixels = static_cast<int64_t>(shape.height) * shape.width;
  const int32_t pitch = p_.input >= 0 ? shape.width : plan.shape_of(p_.in_map).pitch;
  record_list(context, list);
  for_each_group_plane(list, kChannelsPerWord, shape.blocks, team, [&](int32_t i, int) {
    const float* x[kChannelsPerWord] = {};
    for (int32_t a = 0; a < kChannelsPerWord && i * kChannelsPerWord + a < list.count; ++a) {
      const int32_t channel = list.index[i * kChannelsPerWord + a];
      x[a] = p_.input >= 0 ? context.inputs[p_.input] + channel * pixels
                           : plan.live_plane(context, p_.in_map, channel, p_.in_live);
    }
    plan.kernels->quantized->quantize(shape, x, pitch, p_.inverse_scale, p_.type,
                                      group_plane(plan, context, p_.out_map, i));
  });
}

void DequantizeStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& in = plan.shape_of(p_.in_map);
  const cpu::PlaneShape& out = plan.shape_of(p_.out_map);
  record_list(context, list);
  for_each_group_plane(list, kChannelsPerWord, out.blocks, team, [&](int32_t i, int) {
    const uint32_t* words = group_plane(plan, context, p_.in_map, i);
    for (int32_t a = 0; a < kChannelsPerWord && i * kChannelsPerWord + a < list.count; ++a)
      plan.kernels->quantized->dequantize(in, out, words, a, p_.scale, p_.type,
                                          plan.plane(context, p_.out_map, list.index[i * kChannelsPerWord + a]));
  });
}

void QuantizedReduceStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& shape = plan.shape_of(p_.in_map);
  float* y = plan.flat(context, p_.out_flat);
  record_list(context, list);
  std::fill_n(y, plan.flats[static_cast<size_t>(p_.out_flat)].size(), 0.0f);
  const auto kernel = plan.kernels->quantized->reduce[static_cast<int>(p_.kind)];
  for_each_group_plane(list, kChannelsPerWord, shape.blocks, team, [&](int32_t i, int) {
    int32_t reduced[kChannelsPerWord];
    kernel(shape, group_plane(plan, context, p_.in_map, i), p_.type, reduced);
    for (int32_t a = 0; a < kChannelsPerWord && i * kChannelsPerWord + a < list.count; ++a) {
      const auto value = static_cast<float>(reduced[a]);
      y[list.index[i * kChannelsPerWord + a]] = (p_.root ? std::sqrt(value) : value) * p_.scale;
    }
  });
}

void QuantizedMaxPoolStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  record_list(context, list);
  for_each_group_plane(list, kChannelsPerWord, shape_.in.blocks, team, [&](int32_t i, int rank) {
    plan.kernels->quantized->max_pool(
        shape_, type_, group_plane(plan, context, in_map_, i), group_plane(plan, context, out_map_, i),
        reinterpret_cast<uint32_t*>(context.thread_scratch + rank * plan.thread_scratch_size));
  });
}

}  // namespace dynprune
