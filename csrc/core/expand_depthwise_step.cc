#include "core/expand_depthwise_step.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace dynprune {

namespace {

int64_t nanoseconds_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

struct ExpandDepthwiseStep::Calls {
  cpu::ConvCall expand;     // all inputs; outputs are set block by block
  cpu::ConvCall depthwise;  // all outputs
  LiveList middle;          // the channels between the two
  const Context& context;
  const float** depthwise_input;  // [outputs of the depthwise convolution]
};

ExpandDepthwiseStep::ExpandDepthwiseStep(const Plan& plan, ConvParams expand, ConvParams depthwise, int32_t steps_back)
    : expand_{std::move(expand), {}}, depthwise_{std::move(depthwise), {}}, steps_back_(steps_back) {
  const auto direct = [&](const ConvParams& p, int32_t in_channels) {
    const MapRef& out = plan.maps[static_cast<size_t>(p.out_map)];
    return cpu::DirectShape{in_channels, out.channels() / p.groups, static_cast<int32_t>(p.tap_offset.size()),
                            p.tap_offset.data(), plan.shape_of(out)};
  };
  expand_.direct = direct(expand_.p, plan.maps[static_cast<size_t>(expand_.p.in_map)].channels());
  depthwise_.direct = direct(depthwise_.p, 1);
  strided_ = {1,
              1,
              depthwise_.direct.taps,
              depthwise_.p.tap_offset.data(),
              plan.shape_of(depthwise_.p.in_map).pitch,
              depthwise_.p.stride_h,
              depthwise_.p.stride_w,
              depthwise_.direct.out};
}

void ExpandDepthwiseStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const LiveList& in = context.lists[expand_.p.in_list];
  const LiveList& middle = context.lists[expand_.p.out_list];
  const LiveList& out = context.lists[depthwise_.p.out_list];
  for (int32_t i = 0; i < in.count; ++i) context.read_planes[i] = plan.plane(context, expand_.p.in_map, in.index[i]);
  for (int32_t i = 0; i < out.count; ++i)
    context.write_planes[i] = plan.plane(context, depthwise_.p.out_map, out.index[i]);
  const Calls calls{
      {context.read_planes, in.index, in.count, nullptr, nullptr, 0, epilogue_of(plan, context, expand_.p, nullptr)},
      {nullptr, out.index, 0, context.write_planes, out.index, out.count,
       epilogue_of(plan, context, depthwise_.p, nullptr)},
      middle,
      context,
      context.residual_planes};
  // Each thread takes a share of the channels, in planes of its own.
  const int32_t planes = expand_.p.shared_planes;
  const int size = std::min({team.size(), planes, std::max(middle.count, 1)});
  int64_t expand_ns = 0;
  team.run([&](int rank) {
    if (rank < size)
      run_channels(plan, calls, share_of(middle.count, rank, size), share_of(planes, rank, size),
                   context.record && rank == 0 ? &expand_ns : nullptr);
  });
  if (!context.record) return;
  StepRecord &of_depthwise = *context.record, &of_expand = *(context.record - steps_back_);
  of_expand.live_in = in.count;
  of_expand.live_out = of_depthwise.live_in = middle.count;
  of_depthwise.live_out = out.count;
  of_expand.kernel = "direct, few channels";
  of_depthwise.kernel = "depthwise";
  of_expand.macs += expand_.p.macs_per_pair * in.count * middle.count;
  const auto unread = std::count(calls.depthwise_input, calls.depthwise_input + out.count, nullptr);
  of_depthwise.macs += depthwise_.p.macs_per_pair * (out.count - unread);
  of_expand.nanoseconds += expand_ns;
  of_depthwise.nanoseconds -= expand_ns;  // the executor adds the time of both
}

// Channels [middle.first, middle.last) of the live list between the convolutions, in `planes`, and the outputs of the
// depthwise convolution up to the first channel of the next share.
void ExpandDepthwiseStep::run_channels(const Plan& plan, const Calls& calls, Share middle, Share planes,
                                       int64_t* expand_ns) const {
  const cpu::KernelTable& kernels = *plan.kernels;
  const int32_t* channel = calls.middle.index;
  const int32_t outputs = calls.depthwise.n_out;
  const auto outputs_before = [&](int32_t position) {  // the channel at `position`
    if (position == calls.middle.count) return outputs;
    if (position == 0) return 0;
    const int32_t* all = calls.depthwise.out_channel;
    return static_cast<int32_t>(std::lower_bound(all, all + outputs, channel[position]) - all);
  };
  float* plane[kMostSharedPlanes];
  for (int32_t i = planes.first; i < planes.last; ++i)
    plane[i - planes.first] = plan.plane(calls.context, expand_.p.out_map, i);
  int32_t output = middle.first == 0 ? 0 : outputs_before(middle.first);
  int32_t at = middle.first;
  do {  // also for no channels at all
    const int32_t end = std::min(at + planes.last - planes.first, middle.last);
    cpu::ConvCall expand = calls.expand;
    expand.output = plane;
    expand.out_channel = channel + at;
    expand.n_out = end - at;
    const int64_t start = expand_ns ? nanoseconds_now() : 0;
    if (expand.n_out > 0) kernels.conv_direct(expand_.direct, expand_.p.weights, expand, 0, expand_.direct.out.blocks);
    if (expand_ns) *expand_ns += nanoseconds_now() - start;

    const int32_t last_output = outputs_before(end);
    cpu::ConvCall depthwise = calls.depthwise;
    depthwise.input = calls.depthwise_input + output;
    depthwise.output += output;
    depthwise.out_channel += output;
    depthwise.n_in = depthwise.n_out = last_output - output;
    for (int32_t next = at; output < last_output; ++output) {
      const int32_t wanted = calls.depthwise.out_channel[output];
      while (next < end && channel[next] < wanted) ++next;
      calls.depthwise_input[output] = next < end && channel[next] == wanted ? plane[next - at] : nullptr;
    }
    if (depthwise_.p.stride_w == 2)
      kernels.conv_depthwise_strided(strided_, depthwise_.p.weights, depthwise);
    else
      kernels.conv_depthwise(depthwise_.direct, depthwise_.p.weights, depthwise);
    at = end;
  } while (at < middle.last);
}

}  // namespace dynprune
