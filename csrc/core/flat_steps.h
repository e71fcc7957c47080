// Steps on flat tensors: gate programs, classifiers, and every operator without a planar kernel.
#pragma once

#include <vector>

#include "core/plan.h"

namespace dynprune {

// y = clamp(W x + b).
class LinearStep final : public Step {
 public:
  struct Params {
    const float* weights;  // [out][in]
    int32_t bias, in_flat, out_flat;
    int32_t in_features, out_features;
    cpu::Clamp clamp;
  };
  LinearStep(Plan& plan, Params params);
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Params p_;
  float* packed_;
};

class FlatStep final : public Step {
 public:
  FlatStep(const Plan& plan, cpu::FlatFn kernel, std::vector<int32_t> in, std::vector<int32_t> out,
           std::vector<int64_t> ints, std::vector<float> floats, int64_t scratch_offset);
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  cpu::FlatFn kernel_;
  std::vector<int32_t> in_, out_;
  std::vector<cpu::Tensor> in_shapes_, out_shapes_;  // with null data
  std::vector<int64_t> ints_;
  std::vector<float> floats_;
  int64_t scratch_offset_;
};

// Graph input or output that is flat.
class CopyStep final : public Step {
 public:
  CopyStep(int32_t flat, int32_t input, int32_t output) : flat_(flat), input_(input), output_(output) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t flat_, input_, output_;
};

cpu::Tensor shape_only(const FlatRef& ref);

}  // namespace dynprune
