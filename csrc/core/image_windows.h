// A graph input as windows of its rows (cpu/group_planes.h: WindowShape), for a first convolution in int8 or bf16.
#pragma once

#include "core/plan.h"
#include "cpu/group_planes.h"
#include "cpu/quantized_kernels.h"

namespace dynprune {

class ImageWindowsStep final : public Step {
 public:
  struct Params {
    int32_t input, channels;
    cpu::WindowShape shape;
    int32_t out_map;            // [channels * shape.windows] planes of row phase 0
    bool bf16;                  // else int8
    float inverse_scale;        // of int8
    cpu::QuantizedType type{};  // of int8
  };
  explicit ImageWindowsStep(Params params) : p_(params) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;
  size_t scratch_bytes(const Plan& plan) const;

 private:
  Params p_;
};

}  // namespace dynprune
