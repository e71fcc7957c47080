// Steps on quantised maps (cpu/quantized_kernels.h). How many of the planes of such a map are in use depends on its
// live list.
#pragma once

#include <string>
#include <vector>

#include "core/group_maps.h"
#include "cpu/quantized_kernels.h"

namespace dynprune {

struct QuantizedConvParams {
  int32_t in_map = -1, out_map = -1;  // with a residual, out_map holds it before the step
  int32_t in_channels = 0, out_channels = 0;
  int32_t model_inputs = 0;  // channels of the model's input where in_channels are elements of windows; else 0
  bool depthwise = false;
  int32_t groups = 1;                           // of a convolution that is not depthwise
  std::vector<int32_t> tap_offset, tap_column;  // words; columns that the tap is to the right of the output
  const int8_t* weights = nullptr;              // [K][C/groups][taps], read by the constructor only
  std::vector<float> scale, bias;               // [K]
  int32_t gate = -1, shift = -1;                // flat tensors [K]
  cpu::QuantizedType in_type{}, out_type{}, residual_type{};
  float residual_scale = 0.0f;  // 0 = no residual
  float inner_low = 0.0f, inner_high = 0.0f;
  int32_t in_list = -1;    // channels of the input that are stored
  int32_t out_list = -1;   // channels to compute; without a residual also those that are stored
  int32_t pass_list = -1;  // channels of which only the residual is converted; -1 = none
  int64_t macs_per_pair = 0;
};

class QuantizedConvStep final : public Step {
 public:
  QuantizedConvStep(Plan& plan, QuantizedConvParams params);
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;
  size_t scratch_bytes(const Plan& plan) const;

 private:
  bool fits_winograd(const Plan& plan) const;
  bool winograd_pays(int32_t n_in, int32_t n_out) const;
  void run_winograd(const Plan& plan, Context& context, ThreadTeam& team, const cpu::QuantizedWeights& weights,
                    const cpu::QuantizedConvCall& call, const LiveList& out) const;
  void pass_through(const Plan& plan, Context& context) const;

  QuantizedConvParams p_;
  TapMasks tap_masks_;
  cpu::QuantizedConvShape shape_{};
  int8_t* rows_;  // in the plan's packed memory
  std::vector<int32_t> row_sum_;
  bool winograd_;  // may run as Winograd, and is faster so with all channels
};

// round(x / scale) of a float map, or of graph input `input` [C][H][W], for the listed channels.
class QuantizeStep final : public Step {
 public:
  struct Params {
    int32_t in_map, input, out_map, list;
    float inverse_scale;
    cpu::QuantizedType type;
    int32_t in_live = -1;  // flat bool [C]: channels outside it read as zero; -1 = all stored
  };
  explicit QuantizeStep(Params params) : p_(params) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Params p_;
};

// The listed channels of a quantised map as float planes.
class DequantizeStep final : public Step {
 public:
  struct Params {
    int32_t in_map, out_map, list;
    float scale;
    cpu::QuantizedType type;
  };
  explicit DequantizeStep(Params params) : p_(params) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Params p_;
};

// y[c] = scale * the exact reduction of channel c, or its square root, for the listed channels, 0 for the others.
class QuantizedReduceStep final : public Step {
 public:
  struct Params {
    cpu::QuantizedReduce kind;
    bool root;
    int32_t in_map, out_flat, list;
    float scale;
    cpu::QuantizedType type;
  };
  explicit QuantizedReduceStep(Params params) : p_(params) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Params p_;
};

class QuantizedMaxPoolStep final : public Step {
 public:
  QuantizedMaxPoolStep(cpu::PoolShape shape, cpu::QuantizedType type, int32_t in_map, int32_t out_map, int32_t list)
      : shape_(shape), type_(type), in_map_(in_map), out_map_(out_map), list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  cpu::PoolShape shape_;
  cpu::QuantizedType type_;
  int32_t in_map_, out_map_, list_;
};

}  // namespace dynprune
