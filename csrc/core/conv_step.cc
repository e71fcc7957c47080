#include "core/conv_step.h"

#include <algorithm>
#include <utility>

#include "core/plane_reduction.h"
#include "cpu/conv_cost.h"

namespace dynprune {
namespace {

// Below this many estimated cycles a layer is faster on one thread than the fork and join cost.
constexpr double kSerialCycles = 12000;

// The part of an ascending list that lies in [first, last).
LiveList sublist(const LiveList& list, int32_t first, int32_t last) {
  const int32_t* end = list.index + list.count;
  const int32_t* a = std::lower_bound(list.index, end, first);
  const int32_t* b = std::lower_bound(a, end, last);
  const auto count = static_cast<int32_t>(b - a);
  // The live share of a group is taken from that of the whole list; it only steers the choice of kernel.
  const int32_t live = list.count ? static_cast<int32_t>(static_cast<int64_t>(list.live) * count / list.count) : 0;
  return {a, count, live};
}

constexpr const char* kDirect = "direct";
constexpr const char* kChannelLanes = "channel lanes";
constexpr const char* kSmallMap = "small map";
constexpr const char* kStem = "winograd F(4x4, 4x4)";
constexpr const char* kWinograd4 = "winograd F(4x4)";
constexpr const char* kWinograd2 = "winograd F(2x2)";

// The call for live outputs [first, last) alone.
cpu::ConvCall outputs_of(const cpu::ConvCall& call, int32_t first, int32_t last) {
  cpu::ConvCall part = call;
  part.output += first;
  part.out_channel += first;
  part.n_out = last - first;
  if (part.epilogue.residual) part.epilogue.residual += first;
  return part;
}

}  // namespace

ConvStep::ConvStep(Plan& plan, ConvParams params) : p_(std::move(params)) {
  const MapRef& in = plan.maps[static_cast<size_t>(p_.in_map)];
  const MapRef& out = plan.maps[static_cast<size_t>(p_.out_map)];
  in_channels_ = in.channels() / p_.groups;
  out_channels_ = out.channels() / p_.groups;
  depthwise_ = in_channels_ == 1 && p_.groups > 1;
  choice_ = plan.choices++;
  direct_ = {in_channels_, out_channels_, static_cast<int32_t>(p_.tap_offset.size()), p_.tap_offset.data(),
             plan.shape_of(out)};
  strided_ = {in_channels_, out_channels_, direct_.taps,      p_.tap_offset.data(), plan.shape_of(in).pitch,
              p_.stride_h,  p_.stride_w,   plan.shape_of(out)};
  if (p_.channel_lanes) {
    lanes_weights_ = plan.packed.allocate(plan.kernels->channel_lanes_sizes(strided_).weights);
    plan.kernels->channel_lanes_pack(strided_, p_.weights, lanes_weights_);
  }
  if (p_.stem) {
    stem_ = {in_channels_, out_channels_, plan.shape_of(in), plan.shape_of(out)};
    stem_weights_ = plan.packed.allocate(plan.kernels->stem_sizes(stem_).weights);
    plan.kernels->stem_pack(stem_, p_.weights, stem_weights_);
  }
  if (p_.winograd_m) {
    winograd_ = {in_channels_, out_channels_, p_.winograd_m, plan.shape_of(out)};
    const cpu::WinogradSizes sizes = plan.kernels->winograd_sizes(winograd_, p_.winograd_form);
    winograd_weights_ = plan.packed.allocate(sizes.weights);
    plan.kernels->winograd_pack(winograd_, p_.winograd_form, p_.weights, winograd_weights_);
  }
}

cpu::Epilogue ConvStep::epilogue(const Plan& plan, const Context& context, const LiveList& out) const {
  const float* const* residual = nullptr;
  if (p_.residual_map >= 0) {
    for (int32_t i = 0; i < out.count; ++i)
      context.residual_planes[i] = plan.live_plane(context, p_.residual_map, out.index[i], p_.residual_live);
    residual = context.residual_planes;
  }
  return epilogue_of(plan, context, p_, residual);
}

void ConvStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& in = context.lists[p_.in_list];
  const LiveList& out = context.lists[p_.out_list];
  if (context.record) {
    context.record->live_in = in.count;
    context.record->live_out = out.count;
  }
  if (depthwise_) {
    run_depthwise(plan, context, team, in, out);
  } else {
    for (int32_t g = 0; g < p_.groups; ++g) {
      run_group(plan, context, team, g, sublist(in, g * in_channels_, (g + 1) * in_channels_),
                sublist(out, g * out_channels_, (g + 1) * out_channels_));
    }
  }
  if (p_.pass_list >= 0) pass_through(plan, context, team);
  if (!p_.pools.empty()) reduce_pools(plan, context, team);
}

// The choice rests on what is live, also when skipping is off: the same kernel, the same bits.
const AlgorithmChoice& ConvStep::choose(const Plan& plan, Context& context, int32_t live_in, int32_t live_out) const {
  AlgorithmChoice& choice = context.choices[choice_];
  if (choice.live_in == live_in && choice.live_out == live_out) return choice;
  choice = {live_in, live_out, kDirect, cpu::direct_cycles(*plan.kernels, direct_, live_in, live_out)};
  const auto consider = [&](const char* kernel, double cycles, bool alone = false) {
    if (cycles >= choice.cycles && !alone) return;
    choice.kernel = kernel;
    choice.cycles = cycles;
  };
  if (p_.small_map) consider(kSmallMap, cpu::small_map_cycles(*plan.kernels, direct_, live_in, live_out));
  if (p_.channel_lanes)
    consider(kChannelLanes, cpu::channel_lanes_cycles(strided_, live_in, live_out), p_.stride_h * p_.stride_w > 1);
  if (p_.stem) consider(kStem, cpu::stem_cycles(stem_, live_in, live_out));
  if (p_.winograd_m)
    consider(p_.winograd_m == 4 ? kWinograd4 : kWinograd2,
             cpu::winograd_cycles(*plan.kernels, winograd_, p_.winograd_form, live_in, live_out));
  return choice;
}

void ConvStep::run_group(const Plan& plan, Context& context, ThreadTeam& team, int32_t group, const LiveList& in,
                         const LiveList& out) const {
  // Valid again only once this convolution has transformed its input: it may return early or run another kernel.
  const KeptInputState before =
      p_.kept_input.slot >= 0 ? std::exchange(context.kept_inputs[p_.kept_input.slot], {}) : KeptInputState{};
  if (out.count == 0) return;
  const int32_t in_base = group * in_channels_, out_base = group * out_channels_;
  for (int32_t i = 0; i < in.count; ++i) context.read_planes[i] = plan.plane(context, p_.in_map, in.index[i]);
  for (int32_t i = 0; i < out.count; ++i) context.write_planes[i] = plan.plane(context, p_.out_map, out.index[i]);
  cpu::ConvCall call{context.read_planes,         in.index, in.count, context.write_planes, out.index, out.count,
                     epilogue(plan, context, out)};
  const float* weights = p_.weights;
  if (group > 0) {  // the kernels know one group: its channels start at 0
    int32_t* in_channel = context.channels;
    int32_t* out_channel = in_channel + in.count;
    for (int32_t i = 0; i < in.count; ++i) in_channel[i] = in.index[i] - in_base;
    for (int32_t i = 0; i < out.count; ++i) out_channel[i] = out.index[i] - out_base;
    call.in_channel = in_channel;
    call.out_channel = out_channel;
    if (call.epilogue.bias) call.epilogue.bias += out_base;
    if (call.epilogue.gate) call.epilogue.gate += out_base;
    if (call.epilogue.shift) call.epilogue.shift += out_base;
    weights += static_cast<int64_t>(out_base) * in_channels_ * direct_.taps;
  }

  const AlgorithmChoice& algorithm = choose(plan, context, in.live, out.live);
  if (context.record) {
    context.record->macs += p_.macs_per_pair * in.count * out.count;
    context.record->kernel = algorithm.kernel;
  }
  const int size = algorithm.cycles < kSerialCycles ? 1 : team.size();
  const auto parallel = [&](auto&& body) {
    if (size == 1)
      body(0);
    else
      team.run(body);
  };

  if (algorithm.kernel == kWinograd4 || algorithm.kernel == kWinograd2) {
    run_winograd(plan, context, call, before, size, parallel);
    return;
  }

  // Threads share the pixels of a layer rather than its outputs where they then read less: all weights, instead of the
  // half of the input that the other core has written.
  const bool by_pixels = int64_t{plan.shape_of(p_.in_map).blocks} * cpu::kBlock > int64_t{call.n_out} * direct_.taps;

  if (algorithm.kernel == kSmallMap) {
    parallel([&](int rank) {
      const Share share = share_of(call.n_out, rank, size);
      const cpu::ConvCall part = outputs_of(call, share.first, share.last);
      if (part.n_out > 0)
        plan.kernels->conv_small_map(direct_, weights, part, context.thread_scratch + rank * plan.thread_scratch_size);
    });
    return;
  }

  if (algorithm.kernel == kStem) {
    const int32_t rows = (direct_.out.height + 3) / 4;
    parallel([&](int rank) {
      const Share row = share_of(rows, rank, size);
      plan.kernels->conv_stem(stem_, stem_weights_, call, row.first, row.last,
                              context.thread_scratch + rank * plan.thread_scratch_size);
    });
    return;
  }

  if (algorithm.kernel == kChannelLanes) {
    // Outputs are split by whole blocks of weights; rows where there are too few blocks.
    const int32_t blocks = (call.n_out + cpu::kBlock - 1) / cpu::kBlock;
    const int32_t rows = direct_.out.height;
    const bool split_rows = rows >= 2 * size && (blocks < 2 * size || by_pixels);
    parallel([&](int rank) {
      const Share block = split_rows ? Share{0, blocks} : share_of(blocks, rank, size);
      const Share row = split_rows ? share_of(rows, rank, size) : Share{0, rows};
      const cpu::ConvCall part =
          outputs_of(call, block.first * cpu::kBlock, std::min(block.last * cpu::kBlock, call.n_out));
      if (part.n_out > 0 && row.first < row.last)
        plan.kernels->conv_channel_lanes(strided_, lanes_weights_, part, row.first, row.last,
                                         context.thread_scratch + rank * plan.thread_scratch_size);
    });
    return;
  }

  // Pixels are also split where there are too few live outputs to fill the tiles of every thread.
  const int32_t blocks = direct_.out.blocks;
  const bool split_pixels = blocks >= size * plan.kernels->direct_tile_blocks &&
                            (out.count < size * plan.kernels->direct_tile_channels || by_pixels);
  parallel([&](int rank) {
    const Share pixels = split_pixels ? share_of(blocks, rank, size) : Share{0, blocks};
    const Share share = split_pixels ? Share{0, call.n_out} : share_of(call.n_out, rank, size);
    const cpu::ConvCall part = outputs_of(call, share.first, share.last);
    if (part.n_out > 0 && pixels.first < pixels.last)
      plan.kernels->conv_direct(direct_, weights, part, pixels.first, pixels.last);
  });
}

// A thread takes a band of rows where there are enough of them: what another core has written costs about ten times
// as much to read as what this one has, so that bands, of which only the edges are shared, scale where channels do not
// (measured with two threads: a ResNet-18 1.88 instead of 1.6 times as fast as with one, a CIFAR ResNet-56 1.45 instead
// of 1.25).
template <class Parallel>
void ConvStep::run_winograd(const Plan& plan, Context& context, const cpu::ConvCall& call, KeptInputState before,
                            int size, const Parallel& parallel) const {
  float* v = context.arena + p_.winograd_scratch;
  const cpu::WinogradBands bands = cpu::winograd_bands(winograd_, plan.kernels->lanes);
  const bool banded = size > 1 && size <= bands.most();
  const KeptInputState now{p_.kept_input.turn, banded ? size : 1};
  const LiveList* changed = p_.kept_input.changed >= 0 && before.turn == now.turn - 1 && before.bands == now.bands
                                ? &context.lists[p_.kept_input.changed]
                                : nullptr;
  if (p_.kept_input.slot >= 0) context.kept_inputs[p_.kept_input.slot] = now;
  const int32_t n_input = changed ? changed->count : call.n_in;
  const auto input = [&](cpu::TileRows rows, Share share, float* to) {
    plan.kernels->winograd_input(winograd_, rows, p_.winograd_form, call, changed ? changed->index : nullptr,
                                 share.first, share.last, to);
  };
  const auto output = [&](cpu::TileRows rows, Share share, const float* from, int rank) {
    if (share.first < share.last)
      plan.kernels->winograd_output(winograd_, rows, p_.winograd_form, winograd_weights_, from, call, share.first,
                                    share.last, context.thread_scratch + rank * plan.thread_scratch_size);
  };
  if (banded) {
    const int64_t own = cpu::winograd_band_scratch(*plan.kernels, winograd_, p_.winograd_form, size);
    parallel([&](int rank) {
      const cpu::TileRows rows = bands.rows(rank, size);
      input(rows, {0, n_input}, v + rank * own);
      output(rows, {0, call.n_out}, v + rank * own, rank);
    });
    return;
  }
  const cpu::TileRows all = bands.rows(0, 1);
  parallel([&](int rank) { input(all, share_of(n_input, rank, size), v); });
  parallel([&](int rank) { output(all, share_of(call.n_out, rank, size), v, rank); });
}

void ConvStep::run_depthwise(const Plan& plan, Context& context, ThreadTeam& team, const LiveList& in,
                             const LiveList& out) const {
  // Both lists ascend, so one pass finds which outputs have a live input.
  int32_t next = 0, pairs = 0;
  for (int32_t i = 0; i < out.count; ++i) {
    const int32_t channel = out.index[i] / out_channels_;
    while (next < in.count && in.index[next] < channel) ++next;
    const bool live = next < in.count && in.index[next] == channel;
    pairs += live;
    context.read_planes[i] = live ? plan.plane(context, p_.in_map, channel) : nullptr;
    context.write_planes[i] = plan.plane(context, p_.out_map, out.index[i]);
  }
  const cpu::ConvCall call{context.read_planes,         in.index, out.count, context.write_planes, out.index, out.count,
                           epilogue(plan, context, out)};
  if (context.record) {
    context.record->macs += p_.macs_per_pair * pairs;
    context.record->kernel = "depthwise";
  }
  const double cycles =
      static_cast<double>(out.count) * direct_.out.blocks * (direct_.taps + 2) * cpu::kBlock / plan.kernels->lanes;
  const auto part = [&](int rank, int size) {
    const Share share = share_of(call.n_out, rank, size);
    cpu::ConvCall slice = outputs_of(call, share.first, share.last);
    slice.input += share.first;
    slice.n_in = slice.n_out;
    if (slice.n_out == 0) return;
    if (p_.stride_w == 2) {
      plan.kernels->conv_depthwise_strided(strided_, p_.weights, slice);
    } else {
      plan.kernels->conv_depthwise(direct_, p_.weights, slice);
    }
  };
  if (cycles < kSerialCycles)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
}

// Stored channels that the convolution does not compute: clamp(shift + residual).
void ConvStep::pass_through(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& pass = context.lists[p_.pass_list];
  if (pass.count == 0) return;
  const cpu::PlaneShape& shape = direct_.out;
  const float* shift = plan.flat_or_null(context, p_.shift);
  const auto part = [&](int rank, int size) {
    const Share share = share_of(pass.count, rank, size);
    for (int32_t i = share.first; i < share.last; ++i) {
      const int32_t channel = pass.index[i];
      float* y = plan.plane(context, p_.out_map, channel);
      const float constant = shift ? shift[channel] : 0.0f;
      const float* r =
          p_.residual_map >= 0 ? plan.live_plane(context, p_.residual_map, channel, p_.residual_live) : nullptr;
      if (r)
        plan.kernels->plane_binary(cpu::Binary::kAdd, p_.outer, shape, r, nullptr, constant, y);
      else
        plan.kernels->plane_fill(shape,
                                 constant < p_.outer.lo   ? p_.outer.lo
                                 : constant > p_.outer.hi ? p_.outer.hi
                                                          : constant,
                                 y);
    }
  };
  if (static_cast<double>(pass.count) * shape.blocks * 3 < kSerialCycles)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
}

void ConvStep::reduce_pools(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& stored = context.lists[p_.stored_list];
  const int32_t channels = out_channels_ * p_.groups;
  for (const PoolOutput& pool : p_.pools) {
    float* y = plan.flat(context, pool.flat);
    if (pool.before >= 0)
      std::copy_n(plan.flat(context, pool.before), channels, y);
    else if (stored.count < channels)
      std::fill(y, y + channels, 0.0f);
  }
  const auto part = [&](int rank, int size) {
    for (const PoolOutput& pool : p_.pools) {
      const LiveList& list = pool.before >= 0 ? context.lists[p_.out_list] : stored;
      reduce_channels(plan, context, pool.kind, p_.out_map, list, share_of(list.count, rank, size),
                      plan.flat(context, pool.flat));
    }
  };
  if (static_cast<double>(stored.count) * direct_.out.blocks * 2 < kSerialCycles)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
}

}  // namespace dynprune
