// Steps on planar maps other than convolution, and the steps between planar and flat storage.
#pragma once

#include "core/plan.h"

namespace dynprune {

// Turns masks into the list of channels to execute.
class LiveListStep final : public Step {
 public:
  explicit LiveListStep(int32_t list) : list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t list_;
};

// y[c] = f(x[c]; a[c], b[c]) for the listed channels. `a` and `b` may be flat tensors [C] (an affine
// map, a gate) instead of numbers.
class PlaneUnaryStep final : public Step {
 public:
  struct Params {
    cpu::Unary kind;
    int32_t in_map, out_map, list;
    float a = 0, b = 0;
    int32_t a_flat = -1, b_flat = -1;
    int32_t in_live = -1;  // flat bool [C]: channels outside it read as zero; -1 = all stored
  };
  explicit PlaneUnaryStep(Params params) : p_(params) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Params p_;
};

// y[c] = f(x0[c], x1[c]). An operand is a map (one plane per channel, or one plane for all channels)
// or a flat tensor of [C] or one number. An operand map whose channel is not listed as live reads as 0.
class PlaneBinaryStep final : public Step {
 public:
  struct Operand {
    int32_t map = -1, flat = -1;
    bool one_plane = false, one_number = false;
    int32_t live_mask = -1;  // flat bool [C]; -1 = all channels of the map are stored
  };
  struct Params {
    cpu::Binary kind;
    cpu::Clamp clamp;
    Operand x0, x1;
    int32_t out_map, list;
  };
  PlaneBinaryStep(Params params) : p_(params) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Params p_;
};

class PoolStep final : public Step {
 public:
  enum class Kind { kMax, kAverage, kAdaptiveAverage, kAdaptiveMax };
  PoolStep(Kind kind, cpu::PoolShape shape, int32_t in_map, int32_t in_live, int32_t out_map, int32_t list)
      : kind_(kind), shape_(shape), in_map_(in_map), in_live_(in_live), out_map_(out_map), list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  Kind kind_;
  cpu::PoolShape shape_;
  int32_t in_map_, in_live_, out_map_, list_;
};

// y[c] = reduction of plane c for the listed channels, 0 for the others.
class SpatialReduceStep final : public Step {
 public:
  SpatialReduceStep(cpu::Reduce kind, int32_t in_map, int32_t out_flat, int32_t list)
      : kind_(kind), in_map_(in_map), out_flat_(out_flat), list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  cpu::Reduce kind_;
  int32_t in_map_, out_flat_, list_;
};

// Splits the listed channels into stride_h x stride_w phase planes. out_map has one entry per channel:
// the plane of phase 0; the others follow phase_stride floats apart.
class PhaseSplitStep final : public Step {
 public:
  PhaseSplitStep(int32_t stride_h, int32_t stride_w, int64_t phase_stride, int32_t in_map, int32_t out_map,
                 int32_t list)
      : stride_h_(stride_h),
        stride_w_(stride_w),
        phase_stride_(phase_stride),
        in_map_(in_map),
        out_map_(out_map),
        list_(list) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t stride_h_, stride_w_;
  int64_t phase_stride_;
  int32_t in_map_, out_map_, list_;
};

// Copies dense [C][H][W] floats into planes. Source: a flat tensor, or graph input `input`.
class LoadPlanesStep final : public Step {
 public:
  LoadPlanesStep(int32_t flat, int32_t input, int32_t out_map) : flat_(flat), input_(input), out_map_(out_map) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t flat_, input_, out_map_;
};

// Takes dense [C][H][W] floats of graph input `input` apart into phase planes.
class LoadPhasesStep final : public Step {
 public:
  LoadPhasesStep(int32_t input, int32_t height, int32_t width, int32_t stride_h, int32_t stride_w, int64_t phase_stride,
                 int32_t out_map)
      : input_(input),
        height_(height),
        width_(width),
        stride_h_(stride_h),
        stride_w_(stride_w),
        phase_stride_(phase_stride),
        out_map_(out_map) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t input_, height_, width_, stride_h_, stride_w_;
  int64_t phase_stride_;
  int32_t out_map_;
};

// Copies planes into dense [C][H][W] floats, zeros for channels that are not listed. Target: a flat
// tensor, or graph output `output`.
class StorePlanesStep final : public Step {
 public:
  StorePlanesStep(int32_t in_map, int32_t list, int32_t flat, int32_t output)
      : in_map_(in_map), list_(list), flat_(flat), output_(output) {}
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  int32_t in_map_, list_, flat_, output_;
};

}  // namespace dynprune
