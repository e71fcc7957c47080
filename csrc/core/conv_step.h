// Convolution: lists, choice of algorithm, split over threads, pass-through channels, fused pools.
#pragma once

#include <string>
#include <vector>

#include "core/plan.h"

namespace dynprune {

struct PoolOutput {
  cpu::Reduce kind;
  int32_t flat;         // [out_channels]
  int32_t before = -1;  // the same of the residual, whose planes outside out_list are the output's; -1 = unknown
};

// Most planes that an expansion shares with the depthwise convolution behind it (expand_depthwise_step.h).
constexpr int32_t kMostSharedPlanes = 64;

struct ConvParams {
  int32_t in_map = -1, out_map = -1, residual_map = -1;
  int32_t residual_live = -1;  // flat bool [K]: residual channels outside it read as zero; -1 = all stored
  int32_t groups = 1;
  int32_t kernel_h = 1, kernel_w = 1;
  // 1 where the input map has the output's pitch: the map itself, or its phase planes. Otherwise the map as it is, for
  // the kernels that step over pixels.
  int32_t stride_h = 1, stride_w = 1;
  std::vector<int32_t> tap_offset;
  const float* weights = nullptr;            // [K][C/groups][taps], kept alive by the plan's owner
  int32_t bias = -1, gate = -1, shift = -1;  // flat tensors [K]
  bool gate_is_mask = false;  // every channel of out_list has gate 1: multiplied by only where skipping is off
  cpu::Clamp inner, outer;
  int32_t in_list = -1;      // channels of the input that are stored
  int32_t out_list = -1;     // channels to compute
  int32_t pass_list = -1;    // stored channels that are not computed; -1 = none
  int32_t stored_list = -1;  // computed and passed: what the pools reduce over
  std::vector<PoolOutput> pools;
  bool small_map = false;  // the input has the output's pitch and fits_small_map(); found by PlanBuilder
  bool stem = false;       // pack the weights for the kernel of 7x7 layers of few inputs
  int32_t winograd_m = 0;  // 0 = not eligible
  cpu::WinogradWeights winograd_form = cpu::WinogradWeights::kTransformed;
  int64_t winograd_scratch = -1;  // arena offset of the transformed input
  KeptInput kept_input;
  bool channel_lanes = false;  // pack the weights for that kernel; it is the only one of a strided input
  // An expansion that is executed along with the depthwise convolution that reads it: its output map is made of so many
  // planes, channel c in plane c modulo their number. 0 = any other layer.
  int32_t shared_planes = 0;
  int64_t macs_per_pair = 0;  // multiply-adds per (live input, live output) pair
};

// What follows the sums of a convolution; `residual` as in cpu::Epilogue.
inline cpu::Epilogue epilogue_of(const Plan& plan, const Context& context, const ConvParams& p,
                                 const float* const* residual) {
  return {plan.flat_or_null(context, p.bias),
          p.gate_is_mask && context.skip ? nullptr : plan.flat_or_null(context, p.gate),
          plan.flat_or_null(context, p.shift),
          residual,
          p.inner,
          p.outer};
}

class ConvStep final : public Step {
 public:
  ConvStep(Plan& plan, ConvParams params);
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  void run_depthwise(const Plan& plan, Context& context, ThreadTeam& team, const LiveList& in,
                     const LiveList& out) const;
  void run_group(const Plan& plan, Context& context, ThreadTeam& team, int32_t group, const LiveList& in,
                 const LiveList& out) const;
  const AlgorithmChoice& choose(const Plan& plan, Context& context, int32_t live_in, int32_t live_out) const;
  template <class Parallel>
  void run_winograd(const Plan& plan, Context& context, const cpu::ConvCall& call, KeptInputState before, int size,
                    const Parallel& parallel) const;
  void pass_through(const Plan& plan, Context& context, ThreadTeam& team) const;
  void reduce_pools(const Plan& plan, Context& context, ThreadTeam& team) const;
  cpu::Epilogue epilogue(const Plan& plan, const Context& context, const LiveList& out) const;

  ConvParams p_;
  int32_t in_channels_, out_channels_;  // of one group
  bool depthwise_;
  int32_t choice_;  // its place in Context::choices
  cpu::DirectShape direct_{};
  cpu::StridedShape strided_{};
  cpu::StemShape stem_{};
  cpu::WinogradShape winograd_{};
  float* lanes_weights_ = nullptr;
  float* stem_weights_ = nullptr;
  float* winograd_weights_ = nullptr;
};

}  // namespace dynprune
