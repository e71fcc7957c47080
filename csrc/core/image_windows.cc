#include "core/image_windows.h"

#include "core/group_maps.h"
#include "cpu/bf16_kernels.h"

namespace dynprune {

size_t ImageWindowsStep::scratch_bytes(const Plan& plan) const {
  return p_.bf16 ? plan.kernels->bf16->window_scratch(p_.shape) : plan.kernels->quantized->window_scratch(p_.shape);
}

void ImageWindowsStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const int64_t pixels = static_cast<int64_t>(p_.shape.height) * p_.shape.width;
  const auto part = [&](int rank, int size) {
    void* scratch = context.thread_scratch + rank * plan.thread_scratch_size;
    const Share share = share_of(p_.channels, rank, size);
    for (int32_t c = share.first; c < share.last; ++c) {
      const float* x = context.inputs[p_.input] + c * pixels;
      uint32_t* y = group_plane(plan, context, p_.out_map, c * p_.shape.windows);
      if (p_.bf16)
        plan.kernels->bf16->pack_windows(p_.shape, x, y, scratch);
      else
        plan.kernels->quantized->quantize_windows(p_.shape, x, p_.inverse_scale, p_.type, y, scratch);
    }
  };
  if (pixels * p_.channels < kSerialPlaneBlocks * cpu::kBlock)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
  if (context.record) context.record->live_in = context.record->live_out = p_.channels;
}

}  // namespace dynprune
