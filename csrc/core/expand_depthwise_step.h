// A 1x1 convolution and the depthwise convolution that alone reads its result, executed together.
//
// The result of the first, an expansion, is the largest map around: 4.8 MB in MobileNetV2, beyond the second-level
// cache, and with everything else of a run beyond the third. So it is never made: a few planes at a time are computed
// and convolved on, in memory that stays in the cache.
#pragma once

#include <vector>

#include "core/conv_step.h"

namespace dynprune {

// Stands where the expansion is in the program and does nothing: the step of its reader executes both.
class DeferredStep final : public Step {
 public:
  void run(const Plan&, Context&, ThreadTeam&) const override {}
};

class ExpandDepthwiseStep final : public Step {
 public:
  // `steps_back`: how many steps ago the expansion's DeferredStep was, whose profile it fills in.
  ExpandDepthwiseStep(const Plan& plan, ConvParams expand, ConvParams depthwise, int32_t steps_back);
  void run(const Plan& plan, Context& context, ThreadTeam& team) const override;

 private:
  struct Layer {
    ConvParams p;
    cpu::DirectShape direct;
  };
  struct Calls;  // of one image
  void run_channels(const Plan& plan, const Calls& calls, Share middle, Share planes, int64_t* expand_ns) const;

  Layer expand_, depthwise_;
  cpu::StridedShape strided_;  // of the depthwise convolution, for stride 2
  int32_t steps_back_;
};

}  // namespace dynprune
