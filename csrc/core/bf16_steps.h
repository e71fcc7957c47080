// Steps on bf16 maps (cpu/bf16_kernels.h).
#pragma once

#include <vector>

#include "core/group_maps.h"
#include "cpu/bf16_kernels.h"

namespace dynprune {

struct Bf16ConvParams {
  int32_t in_map = -1, out_map = -1;  // with a residual, out_map holds it before the step
  int32_t in_channels = 0, out_channels = 0;
  int32_t model_inputs = 0;  // channels of the model's input where in_channels are elements of windows; else 0
  bool depthwise = false, adds = false;
  int32_t groups = 1;                           // of a convolution that is not depthwise
  std::vector<int32_t> tap_offset, tap_column;  // words; columns that the tap is to the right of the output
  const uint16_t* weights = nullptr;            // [K][C/groups][taps], read by the constructor only
  int32_t bias = -1, gate = -1, shift = -1;     // flat tensors [K]
  bool gate_is_mask = false;  // every channel of out_list has gate 1: multiplied by only where skipping is off
  cpu::Clamp inner, outer;
  int32_t in_list = -1;           // channels of the input that are stored
  int32_t out_list = -1;          // channels to compute; without a residual also those that are stored
  int32_t pass_list = -1;         // channels of which only the residual is shifted and clamped; -1 = none
  int64_t winograd_scratch = -1;  // arena offset of the transformed input; -1 = not to run by Winograd
  KeptInput kept_input;
  int64_t macs_per_pair = 0;
};

class Bf16ConvStep final : public Step {
 public:
  Bf16ConvStep(Plan& plan, Bf16ConvParams params);
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;
  // Of one thread.
  size_t scratch_bytes(const Plan& plan) const;

 private:
  void run_depthwise(const Plan& plan, Context& context, ThreadTeam& team, const cpu::Bf16Weights& weights,
                     const cpu::Bf16ConvCall& call) const;
  // Whether one image runs by Winograd.
  struct WinogradChoice {
    bool pays = false;
    double cycles = 0.0;
    KeptInputState before;  // of the kept input
  };
  WinogradChoice choose_winograd(const Plan& plan, Context& context, const LiveList& in, const LiveList& out) const;
  void run_winograd(const Plan& plan, Context& context, ThreadTeam& team, const cpu::Bf16Weights& weights,
                    const cpu::Bf16ConvCall& call, const LiveList& out, const WinogradChoice& choice) const;
  void pass_through(const Plan& plan, Context& context) const;

  Bf16ConvParams p_;
  TapMasks tap_masks_;
  cpu::Bf16ConvShape shape_{};
  uint16_t* rows_;                        // in the plan's packed memory
  uint16_t* winograd_weights_ = nullptr;  // there, too
};

// A float map, or graph input `input` [C][H][W], rounded to bf16, for the listed channels.
class Bf16PackStep final : public Step {
 public:
  struct Params {
    int32_t in_map, input, out_map, list;
    int32_t in_live = -1;  // flat bool [C]: channels outside it read as zero; -1 = all stored
  };
  explicit Bf16PackStep(Params params) : p_(params) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Params p_;
};

// The listed channels of a bf16 map as float planes.
class Bf16UnpackStep final : public Step {
 public:
  Bf16UnpackStep(int32_t in_map, int32_t out_map, int32_t list) : in_map_(in_map), out_map_(out_map), list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t in_map_, out_map_, list_;
};

// The float reduction of every listed channel; the others are those of `before`, or 0.
class Bf16ReduceStep final : public Step {
 public:
  struct Params {
    cpu::Reduce kind;
    int32_t in_map, out_flat, list;
    int32_t before = -1;  // flat: the same of a map that has the planes of all other channels; -1 = they are not live
  };
  explicit Bf16ReduceStep(Params params) : p_(params) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

  static size_t scratch_bytes(const cpu::PlaneShape& shape);  // of one thread

 private:
  static constexpr int32_t kMaxWordsAtOnce = 8;
  static int32_t words_at_once(const cpu::PlaneShape& shape);

  Params p_;
};

// As LinearStep, with bf16 weights.
class Bf16LinearStep final : public Step {
 public:
  struct Params {
    const uint16_t* weights;  // [out][in], read by the constructor only
    int32_t bias, in_flat, out_flat;
    int32_t in_features, out_features;
    cpu::Clamp clamp;
  };
  Bf16LinearStep(Plan& plan, Params params);
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Params p_;
  uint16_t* packed_;
};

class Bf16MaxPoolStep final : public Step {
 public:
  Bf16MaxPoolStep(cpu::PoolShape shape, int32_t in_map, int32_t out_map, int32_t list)
      : shape_(shape), in_map_(in_map), out_map_(out_map), list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  cpu::PoolShape shape_;
  int32_t in_map_, out_map_, list_;
};

}  // namespace dynprune
