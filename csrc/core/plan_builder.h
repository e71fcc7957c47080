// The checked way to build a Plan. Every index and size that the lowering passes is verified here,
// so that the steps need not.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/bf16_steps.h"
#include "core/conv_step.h"
#include "core/expand_depthwise_step.h"
#include "core/flat_steps.h"
#include "core/image_windows.h"
#include "core/map_steps.h"
#include "core/plan.h"
#include "core/quantized_steps.h"

namespace dynprune {

class PlanBuilder {
 public:
  explicit PlanBuilder(const std::string& isa);

  // zero_plane: arena offset of pixel (0,0) of a plane that nobody writes, or -1.
  int32_t add_shape(int32_t height, int32_t width, int32_t pitch, int64_t zero_plane);
  int32_t add_map(int32_t shape, std::vector<int64_t> planes);
  int32_t add_flat(int64_t offset, std::vector<int64_t> shape);
  // `data` must outlive the plan.
  int32_t add_constant(const float* data, std::vector<int64_t> shape);
  int32_t add_constant_list(std::vector<int32_t> channels);
  // A list that a LiveListStep (appended here) computes from masks; -1 = no mask. live_first: with skipping off, the
  // live channels come first, then the others.
  int32_t add_live_list(int32_t capacity, int32_t include, int32_t exclude, bool live_first = false);

  void add_input(int64_t floats_per_image) { plan_->input_sizes.push_back(floats_per_image); }
  void add_output(int64_t floats_per_image) { plan_->output_sizes.push_back(floats_per_image); }

  void add_conv(const std::string& name, ConvParams params);
  void add_linear(const std::string& name, LinearStep::Params params);
  void add_plane_unary(const std::string& name, PlaneUnaryStep::Params params);
  void add_plane_binary(const std::string& name, PlaneBinaryStep::Params params);
  void add_pool(const std::string& name, PoolStep::Kind kind, cpu::PoolShape shape, int32_t in_map, int32_t in_live,
                int32_t out_map, int32_t list);
  void add_spatial_reduce(const std::string& name, cpu::Reduce kind, int32_t in_map, int32_t out_flat, int32_t list);
  void add_phase_split(const std::string& name, int32_t stride_h, int32_t stride_w, int64_t phase_stride,
                       int32_t in_map, int32_t out_map, int32_t list);
  void add_load_planes(const std::string& name, int32_t flat, int32_t input, int32_t out_map);
  void add_load_phases(const std::string& name, int32_t input, int32_t height, int32_t width, int32_t stride_h,
                       int32_t stride_w, int64_t phase_stride, int32_t out_map);
  void add_store_planes(const std::string& name, int32_t in_map, int32_t list, int32_t flat, int32_t output);
  void add_copy(const std::string& name, int32_t flat, int32_t input, int32_t output);
  void add_flat_op(const std::string& name, const std::string& op, std::vector<int32_t> in, std::vector<int32_t> out,
                   std::vector<int64_t> ints, std::vector<float> floats, int64_t scratch_offset);

  void add_quantized_conv(const std::string& name, QuantizedConvParams params);
  // The map's shape and planes complete the step's.
  void add_image_windows(const std::string& name, ImageWindowsStep::Params params);
  void add_quantize(const std::string& name, QuantizeStep::Params params);
  void add_dequantize(const std::string& name, DequantizeStep::Params params);
  void add_quantized_reduce(const std::string& name, QuantizedReduceStep::Params params);
  void add_quantized_max_pool(const std::string& name, cpu::PoolShape shape, cpu::QuantizedType type, int32_t in_map,
                              int32_t out_map, int32_t list);

  void add_bf16_conv(const std::string& name, Bf16ConvParams params);
  void add_bf16_pack(const std::string& name, Bf16PackStep::Params params);
  void add_bf16_unpack(const std::string& name, int32_t in_map, int32_t out_map, int32_t list);
  void add_bf16_reduce(const std::string& name, Bf16ReduceStep::Params params);
  void add_bf16_linear(const std::string& name, Bf16LinearStep::Params params);
  void add_bf16_max_pool(const std::string& name, cpu::PoolShape shape, int32_t in_map, int32_t out_map, int32_t list);

  // Maps of `per_word` channels per word, whatever their element type.
  void add_group_phase_split(const std::string& name, int32_t per_word, int32_t stride_h, int32_t stride_w,
                             int64_t phase_stride, int32_t in_map, int32_t out_map, int32_t list);
  void add_group_copy(const std::string& name, int32_t in_map, int32_t out_map);
  void add_group_cat(const std::string& name, int32_t per_word, std::vector<GroupCatStep::Input> inputs,
                     int32_t out_map, int32_t list);

  // Scratch of a convolution's transformed input, in floats; 0 when this ISA has no such kernel.
  int64_t winograd_input_scratch(int32_t in_channels, int32_t out_channels, int32_t m, int32_t shape,
                                 cpu::WinogradWeights form);
  // Is Winograd faster for a 3x3 convolution of bf16 maps with all channels live, and does this ISA have it?
  bool bf16_winograd_pays(int32_t in_channels, int32_t out_channels, int32_t height, int32_t width) const;
  bool has_winograd() const { return plan_->kernels->has_winograd; }
  bool has_channel_lanes() const { return plan_->kernels->has_channel_lanes; }
  bool has_stem() const { return plan_->kernels->has_stem; }

  // Checks that every reference lies inside an arena of `arena_size` floats, and hands the plan out.
  std::shared_ptr<Plan> finish(int64_t arena_size);

 private:
  template <class StepType>
  void append(const std::string& name, const std::string& op, std::unique_ptr<StepType> step) {
    step->name = name;
    step->op = op;
    plan_->steps.push_back(std::move(step));
  }
  void check_map(int32_t map) const;
  void check_mask(int32_t flat, int32_t channels) const;
  void check_flat(int32_t flat, bool optional) const;
  void need_thread_scratch(size_t bytes);
  // `map` has evenly spaced planes of per_word channels each.
  void check_group_map(int32_t map, int32_t channels, int32_t per_word) const;
  void check_quantized_map(int32_t map, int32_t channels) const;
  void check_quantized_list(int32_t list, int32_t map) const;
  void check_list(int32_t list, int32_t channels, bool optional = false) const;
  int32_t channels(int32_t map) const { return plan_->maps[static_cast<size_t>(map)].channels(); }

  void add_expand_depthwise(const std::string& name, ConvParams depthwise);

  std::shared_ptr<Plan> plan_;
  // Expansions whose reader is still to come.
  struct Deferred {
    size_t step;
    ConvParams params;
  };
  std::vector<Deferred> deferred_;
};

}  // namespace dynprune
