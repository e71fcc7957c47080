#include "core/bf16_steps.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/bf16_cost.h"

namespace dynprune {
namespace {

using cpu::kBf16PerWord;

// Below this, a convolution is faster on one thread than the fork and join cost.
constexpr int64_t kSerialCycles = 12000;
constexpr int64_t kSerialMacs = 65536;  // of a linear layer

float* scratch_of(const Plan& plan, const Context& context, int rank) {
  return context.thread_scratch + rank * plan.thread_scratch_size;
}

}  // namespace

Bf16ConvStep::Bf16ConvStep(Plan& plan, Bf16ConvParams params)
    : p_(std::move(params)), tap_masks_(plan.shape_of(p_.out_map), p_.tap_column) {
  const auto taps = static_cast<int32_t>(p_.tap_offset.size());
  const int32_t columns = p_.depthwise ? 1 : p_.in_channels / p_.groups;
  shape_ = {
      p_.depthwise ? 1 : p_.in_channels, p_.out_channels, p_.groups, taps,    p_.tap_offset.data(), tap_masks_.data(),
      plan.shape_of(p_.out_map),         p_.adds,         p_.inner,  p_.outer};
  const int32_t row_channels = cpu::bf16_row_channels(columns);
  const int64_t row_size = static_cast<int64_t>(taps) * row_channels;
  const size_t bytes = static_cast<size_t>(p_.out_channels * row_size) * sizeof(uint16_t) + cpu::kRowOverread;
  rows_ = static_cast<uint16_t*>(plan.packed.allocate_bytes(bytes));
  std::memset(rows_, 0, bytes);
  const uint16_t* source = p_.weights;
  for (int32_t k = 0; k < p_.out_channels; ++k)
    for (int32_t c = 0; c < columns; ++c)
      for (int32_t t = 0; t < taps; ++t, ++source) rows_[k * row_size + t * row_channels + c] = *source;
  if (p_.winograd_scratch >= 0) {
    const size_t weights = plan.kernels->bf16->winograd_sizes(shape_).weights;
    winograd_weights_ = static_cast<uint16_t*>(plan.packed.allocate_bytes(weights * sizeof(uint16_t)));
    plan.kernels->bf16->winograd_pack(shape_, p_.weights, winograd_weights_);
  }
  p_.weights = nullptr;
}

size_t Bf16ConvStep::scratch_bytes(const Plan& plan) const {
  if (p_.depthwise) return static_cast<size_t>(p_.in_channels) * sizeof(int32_t);
  const size_t direct = plan.kernels->bf16->conv_scratch(shape_);
  if (p_.winograd_scratch < 0) return direct;
  return std::max(direct, plan.kernels->bf16->winograd_sizes(shape_).thread_scratch * sizeof(float));
}

void Bf16ConvStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& in = context.lists[p_.in_list];
  const LiveList& out = context.lists[p_.out_list];
  const WinogradChoice winograd = p_.winograd_scratch >= 0 ? choose_winograd(plan, context, in, out) : WinogradChoice{};
  if (context.record) {
    context.record->live_in = p_.model_inputs ? p_.model_inputs : in.count;
    context.record->live_out = out.count;
    context.record->macs =
        p_.macs_per_pair * (p_.model_inputs ? int64_t{p_.model_inputs} * out.count
                                            : live_pairs(in, out, p_.in_channels, p_.out_channels, p_.groups));
    context.record->kernel = p_.depthwise    ? "bf16 depthwise"
                             : p_.groups > 1 ? "bf16 grouped"
                             : winograd.pays ? "bf16 winograd F(4x4)"
                                             : "bf16 direct";
  }
  const float* gate = p_.gate_is_mask && context.skip ? nullptr : plan.flat_or_null(context, p_.gate);
  const cpu::Bf16Weights weights{rows_, plan.flat_or_null(context, p_.bias), gate,
                                 plan.flat_or_null(context, p_.shift)};
  const cpu::Bf16ConvCall call{group_planes(plan, context, p_.in_map),  in.index,  in.count,
                               group_planes(plan, context, p_.out_map), out.index, out.count};
  if (p_.depthwise) {
    run_depthwise(plan, context, team, weights, call);
  } else if (winograd.pays) {
    run_winograd(plan, context, team, weights, call, out, winograd);
  } else {
    const auto part = [&](int rank, int size) {
      plan.kernels->bf16->conv(shape_, weights, call, first_entry_of(out, kBf16PerWord, p_.adds, rank, size),
                               first_entry_of(out, kBf16PerWord, p_.adds, rank + 1, size),
                               scratch_of(plan, context, rank));
    };
    const int64_t words = planes_for(in.count / p_.groups, kBf16PerWord);
    if (words * out.count * shape_.taps * shape_.out.blocks < kSerialCycles)
      part(0, 1);
    else
      team.run([&](int rank) { part(rank, team.size()); });
  }
  if (p_.pass_list >= 0) pass_through(plan, context);
}

// The choice rests on what is live, also when skipping is off, and not on threads: the same kernel, the same bits.
Bf16ConvStep::WinogradChoice Bf16ConvStep::choose_winograd(const Plan& plan, Context& context, const LiveList& in,
                                                           const LiveList& out) const {
  WinogradChoice choice;
  // Valid again only once this convolution has transformed its input.
  if (p_.kept_input.slot >= 0) choice.before = std::exchange(context.kept_inputs[p_.kept_input.slot], {});
  const bool kept = p_.kept_input.changed >= 0 && choice.before.turn == p_.kept_input.turn - 1;
  // Where there is nothing to go on with, later convolutions will go on with what this one transforms.
  const double changed = kept                      ? context.lists[p_.kept_input.changed].live
                         : p_.kept_input.slot >= 0 ? 0.5 * in.live
                                                   : in.live;
  choice.cycles = cpu::bf16_winograd_cycles(*plan.kernels, shape_, in.live, changed, out.live);
  choice.pays = choice.cycles < cpu::bf16_direct_cycles(shape_, in.live, out.live);
  return choice;
}

// Bands of rows, or inputs and then outputs, as ConvStep::run_winograd shares them.
void Bf16ConvStep::run_winograd(const Plan& plan, Context& context, ThreadTeam& team, const cpu::Bf16Weights& weights,
                                const cpu::Bf16ConvCall& call, const LiveList& out,
                                const WinogradChoice& choice) const {
  const cpu::Bf16Kernels& kernels = *plan.kernels->bf16;
  const cpu::WinogradShape shape = cpu::bf16_winograd_shape(shape_);
  const cpu::WinogradBands bands = cpu::winograd_bands(shape, plan.kernels->lanes);
  const int size = choice.cycles < kSerialCycles ? 1 : team.size();
  const bool banded = size > 1 && size <= bands.most();
  const KeptInputState now{p_.kept_input.turn, banded ? size : 1};
  const bool kept =
      p_.kept_input.changed >= 0 && choice.before.turn == now.turn - 1 && choice.before.bands == now.bands;
  const LiveList* changed = kept ? &context.lists[p_.kept_input.changed] : nullptr;
  if (p_.kept_input.slot >= 0) context.kept_inputs[p_.kept_input.slot] = now;

  float* v = context.arena + p_.winograd_scratch;
  const int32_t n_input = changed ? changed->count : call.n_in;
  const auto input = [&](cpu::TileRows rows, Share share, float* to) {
    kernels.winograd_input(shape_, rows, call, changed ? changed->index : nullptr, share.first, share.last, to);
  };
  const auto output = [&](cpu::TileRows rows, Share share, const float* from, int rank) {
    if (share.first < share.last)
      kernels.winograd_output(shape_, rows, winograd_weights_, weights, from, call, share.first, share.last,
                              scratch_of(plan, context, rank));
  };
  const auto parallel = [&](auto&& body) {
    if (size == 1)
      body(0);
    else
      team.run(body);
  };
  if (banded) {
    const int64_t own = cpu::winograd_band_scratch(*plan.kernels, shape, cpu::WinogradWeights::kOnTheFly, size);
    parallel([&](int rank) {
      const cpu::TileRows rows = bands.rows(rank, size);
      input(rows, {0, n_input}, v + rank * own);
      output(rows, {0, call.n_out}, v + rank * own, rank);
    });
    return;
  }
  const cpu::TileRows all = bands.rows(0, 1);
  parallel([&](int rank) { input(all, share_of(n_input, rank, size), v); });
  parallel([&](int rank) {
    output(all,
           {first_entry_of(out, kBf16PerWord, p_.adds, rank, size),
            first_entry_of(out, kBf16PerWord, p_.adds, rank + 1, size)},
           v, rank);
  });
}

void Bf16ConvStep::run_depthwise(const Plan& plan, Context& context, ThreadTeam& team, const cpu::Bf16Weights& weights,
                                 const cpu::Bf16ConvCall& call) const {
  auto* position = reinterpret_cast<int32_t*>(scratch_of(plan, context, 0));
  std::fill_n(position, p_.in_channels, -1);
  for (int32_t i = 0; i < call.n_in; ++i) position[call.in_channel[i]] = i;
  if (context.record) {
    context.record->macs = 0;
    for (int32_t i = 0; i < call.n_out; ++i)
      if (position[call.out_channel[i]] >= 0) context.record->macs += p_.macs_per_pair;
  }
  const auto part = [&](int rank, int size) {
    const Share share = share_of(planes_for(call.n_out, kBf16PerWord), rank, size);
    plan.kernels->bf16->depthwise(shape_, weights, call, position, share.first, share.last);
  };
  if (int64_t{call.n_out} * shape_.taps * shape_.out.blocks < kSerialCycles)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
}

// Channels that are not computed: shift and clamp of the residual alone.
void Bf16ConvStep::pass_through(const Plan& plan, Context& context) const {
  const LiveList& pass = context.lists[p_.pass_list];
  const float* shifts = plan.flat_or_null(context, p_.shift);
  for (int32_t i = 0; i < pass.count;) {
    const int32_t group = pass.index[i] / kBf16PerWord;
    uint32_t lanes = 0;
    float shift[kBf16PerWord] = {};
    for (; i < pass.count && pass.index[i] / kBf16PerWord == group; ++i) {
      const int32_t half = pass.index[i] % kBf16PerWord;
      lanes |= 1u << half;
      if (shifts) shift[half] = shifts[pass.index[i]];
    }
    plan.kernels->bf16->pass(shape_.out, lanes, shift, p_.outer, group_plane(plan, context, p_.out_map, group));
  }
}

void Bf16PackStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& shape = plan.shape_of(p_.out_map);
  const int64_t pixels = static_cast<int64_t>(shape.height) * shape.width;
  const int32_t pitch = p_.input >= 0 ? shape.width : plan.shape_of(p_.in_map).pitch;
  record_list(context, list);
  for_each_group_plane(list, kBf16PerWord, shape.blocks, team, [&](int32_t i, int) {
    const float* x[kBf16PerWord] = {};
    for (int32_t a = 0; a < kBf16PerWord && i * kBf16PerWord + a < list.count; ++a) {
      const int32_t channel = list.index[i * kBf16PerWord + a];
      x[a] = p_.input >= 0 ? context.inputs[p_.input] + channel * pixels
                           : plan.live_plane(context, p_.in_map, channel, p_.in_live);
    }
    plan.kernels->bf16->pack(shape, x, pitch, group_plane(plan, context, p_.out_map, i));
  });
}

void Bf16UnpackStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  const cpu::PlaneShape& in = plan.shape_of(in_map_);
  const cpu::PlaneShape& out = plan.shape_of(out_map_);
  record_list(context, list);
  for_each_group_plane(list, kBf16PerWord, out.blocks, team, [&](int32_t i, int) {
    for (int32_t a = 0; a < kBf16PerWord && i * kBf16PerWord + a < list.count; ++a)
      plan.kernels->bf16->unpack(in, out, group_plane(plan, context, in_map_, i), a,
                                 plan.plane(context, out_map_, list.index[i * kBf16PerWord + a]));
  });
}

void Bf16ReduceStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[p_.list];
  const cpu::PlaneShape& shape = plan.shape_of(p_.in_map);
  float* y = plan.flat(context, p_.out_flat);
  record_list(context, list);
  const auto channels_of_map = static_cast<size_t>(plan.flats[static_cast<size_t>(p_.out_flat)].size());
  if (p_.before >= 0)
    std::copy_n(plan.flat(context, p_.before), channels_of_map, y);
  else
    std::fill_n(y, channels_of_map, 0.0f);
  const bool magnitudes = p_.kind == cpu::Reduce::kSumAbs || p_.kind == cpu::Reduce::kMeanAbs;
  const bool sums = magnitudes || p_.kind == cpu::Reduce::kSum || p_.kind == cpu::Reduce::kMean;
  cpu::PlaneShape reduced = shape;  // what the float kernel gets: the plane, or the sums of its blocks
  if (sums) reduced.blocks = std::min(shape.blocks, cpu::kBf16SumBlocks);
  const int64_t plane_floats = int64_t{cpu::kBlock} * (sums ? cpu::kBf16SumBlocks : shape.blocks);
  // Of a stream in place, entries of the list are channels; of other maps they are positions.
  const auto position = [&](int32_t entry) { return p_.before >= 0 ? list.index[entry] : entry; };
  const auto widen = [&](int32_t word, float* to) {
    const uint32_t* x = group_plane(plan, context, p_.in_map, word);
    if (sums) return plan.kernels->bf16->sum(shape, magnitudes, x, to, to + plane_floats);
    for (int32_t half = 0; half < kBf16PerWord; ++half, to += plane_floats) {
      // The last block of the plane may end in positions that are no pixels.
      std::fill_n(to + plane_floats - cpu::kBlock, cpu::kBlock, 0.0f);
      plan.kernels->bf16->unpack(shape, shape, x, half, to);
    }
  };
  // Where part `part` of the list begins; no word is cut.
  const auto begin = [&](int32_t part, int32_t parts) {
    auto at = static_cast<int32_t>(int64_t{list.count} * part / parts);
    while (at > 0 && at < list.count && position(at) / kBf16PerWord == position(at - 1) / kBf16PerWord) --at;
    return at;
  };
  const int32_t at_once = sums ? kMaxWordsAtOnce : words_at_once(shape);
  const auto part = [&](int rank, int size) {
    float* wide = scratch_of(plan, context, rank);
    const float* channels[kMaxWordsAtOnce * kBf16PerWord];
    float results[kMaxWordsAtOnce * kBf16PerWord];
    const int32_t last = begin(rank + 1, size);
    for (int32_t first = begin(rank, size); first < last;) {
      int32_t words = 0, count = 0;
      for (int32_t word = -1; first + count < last; ++count) {
        const int32_t at = position(first + count);
        if (at / kBf16PerWord != word) {
          if (words == at_once) break;
          word = at / kBf16PerWord;
          widen(word, wide + int64_t{words++} * kBf16PerWord * plane_floats);
        }
        channels[count] = wide + ((words - 1) * kBf16PerWord + at % kBf16PerWord) * plane_floats;
      }
      plan.kernels->plane_reduce(p_.kind, reduced, channels, count, results);
      for (int32_t i = 0; i < count; ++i) y[list.index[first + i]] = results[i];
      first += count;
    }
  };
  if (int64_t{planes_for(list.count, kBf16PerWord)} * shape.blocks < kSerialPlaneBlocks)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
}

// Reducing many planes together is faster than one by one, as long as they stay in a fast cache.
int32_t Bf16ReduceStep::words_at_once(const cpu::PlaneShape& shape) {
  constexpr int32_t kFloats = 16384;
  return std::clamp(kFloats / (shape.blocks * cpu::kBlock * kBf16PerWord), 1, kMaxWordsAtOnce);
}

size_t Bf16ReduceStep::scratch_bytes(const cpu::PlaneShape& shape) {
  const int32_t blocks = std::max(words_at_once(shape) * shape.blocks, kMaxWordsAtOnce * cpu::kBf16SumBlocks);
  return sizeof(float) * static_cast<size_t>(blocks) * cpu::kBlock * kBf16PerWord;
}

Bf16LinearStep::Bf16LinearStep(Plan& plan, Params params) : p_(params) {
  const int64_t group_size = cpu::bf16_linear_group_size(p_.in_features);
  const auto bytes =
      static_cast<size_t>(planes_for(p_.out_features, cpu::kBf16LinearRows) * group_size) * sizeof(uint16_t);
  packed_ = static_cast<uint16_t*>(plan.packed.allocate_bytes(bytes));
  std::memset(packed_, 0, bytes);
  for (int32_t k = 0; k < p_.out_features; ++k) {
    uint16_t* row = packed_ + k / cpu::kBf16LinearRows * group_size + k % cpu::kBf16LinearRows * cpu::kBlock;
    for (int32_t c = 0; c < p_.in_features; ++c)
      row[c / cpu::kBlock * cpu::kBf16LinearRows * cpu::kBlock + c % cpu::kBlock] =
          p_.weights[static_cast<int64_t>(k) * p_.in_features + c];
  }
  p_.weights = nullptr;
}

void Bf16LinearStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const float* x = plan.flat(context, p_.in_flat);
  const float* bias = plan.flat_or_null(context, p_.bias);
  float* y = plan.flat(context, p_.out_flat);
  const int64_t macs = static_cast<int64_t>(p_.in_features) * p_.out_features;
  const auto part = [&](int rank, int size) {
    const Share share = share_of(planes_for(p_.out_features, cpu::kBf16LinearRows), rank, size);
    plan.kernels->bf16->linear(p_.out_features, p_.in_features, packed_, bias, x, p_.clamp, share.first, share.last, y);
  };
  if (macs < kSerialMacs)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
  if (context.record) {
    context.record->macs = macs;
    context.record->live_in = p_.in_features;
    context.record->live_out = p_.out_features;
    context.record->kernel = "linear, bf16 weights";
  }
}

void Bf16MaxPoolStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& list = context.lists[list_];
  record_list(context, list);
  for_each_group_plane(list, kBf16PerWord, shape_.in.blocks, team, [&](int32_t i, int rank) {
    plan.kernels->bf16->max_pool(shape_, group_plane(plan, context, in_map_, i),
                                 group_plane(plan, context, out_map_, i),
                                 reinterpret_cast<uint32_t*>(scratch_of(plan, context, rank)));
  });
}

}  // namespace dynprune
