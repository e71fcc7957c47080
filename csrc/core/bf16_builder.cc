// The part of PlanBuilder that checks and adds steps on bf16 maps.
#include <algorithm>
#include <stdexcept>

#include "core/bf16_steps.h"
#include "core/plan_builder.h"
#include "cpu/bf16_cost.h"

namespace dynprune {
namespace {

constexpr int32_t kMaxInputChannels = 8192;  // of the kernels' tables for compacting rows

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("plan: " + what); }

// 3x3 taps, stride 1, padding 1.
bool has_winograd_taps(const Bf16ConvParams& p, const cpu::PlaneShape& in, const cpu::PlaneShape& out) {
  if (in.height != out.height || in.width != out.width || p.tap_offset.size() != 9) return false;
  for (int32_t t = 0; t < 9; ++t) {
    const int32_t row = t / 3 - 1, column = t % 3 - 1;
    const auto i = static_cast<size_t>(t);
    if (p.tap_offset[i] != row * out.pitch + column || p.tap_column[i] != column) return false;
  }
  return true;
}

}  // namespace

bool PlanBuilder::bf16_winograd_pays(int32_t in_channels, int32_t out_channels, int32_t height, int32_t width) const {
  if (!plan_->kernels->bf16->has_winograd) return false;
  const int32_t blocks = (height * width + cpu::kBlock - 1) / cpu::kBlock;
  cpu::Bf16ConvShape shape{};
  shape.in_channels = in_channels;
  shape.out_channels = out_channels;
  shape.groups = 1;
  shape.taps = 9;
  shape.out = {height, width, width, blocks, nullptr};
  return cpu::bf16_winograd_pays(*plan_->kernels, shape);
}

void PlanBuilder::add_bf16_conv(const std::string& name, Bf16ConvParams p) {
  check_group_map(p.in_map, p.in_channels, cpu::kBf16PerWord);
  check_group_map(p.out_map, p.out_channels, cpu::kBf16PerWord);
  if (p.in_channels > kMaxInputChannels) fail(name + ": too many input channels for the bf16 kernels");
  if (p.tap_offset.empty() || p.tap_column.size() != p.tap_offset.size() || !p.weights) fail(name + ": no weights");
  if (plan_->shape_of(p.in_map).pitch != plan_->shape_of(p.out_map).pitch)
    fail(name + ": input and output pitch differ");
  for (int32_t flat : {p.bias, p.gate, p.shift}) {
    check_flat(flat, true);
    if (flat >= 0 && plan_->flats[static_cast<size_t>(flat)].size() != p.out_channels)
      fail(name + ": bias, gate and shift need one value per output channel");
  }
  if (p.depthwise && (p.adds || p.in_channels != p.out_channels))
    fail(name + ": a depthwise bf16 convolution has equal channels and no residual");
  if (p.groups < 1 || p.in_channels % p.groups || p.out_channels % p.groups || (p.depthwise && p.groups != 1))
    fail(name + ": groups have to divide the channels");
  if (p.winograd_scratch >= 0 && (!plan_->kernels->bf16->has_winograd || p.depthwise || p.groups != 1 ||
                                  !has_winograd_taps(p, plan_->shape_of(p.in_map), plan_->shape_of(p.out_map))))
    fail(name + ": not a Winograd convolution");
  check_list(p.kept_input.changed, p.in_channels, true);
  plan_->kept_inputs = std::max(plan_->kept_inputs, p.kept_input.slot + 1);
  check_list(p.in_list, p.in_channels);
  check_list(p.out_list, p.out_channels);
  check_list(p.pass_list, p.out_channels, true);
  auto step = std::make_unique<Bf16ConvStep>(*plan_, std::move(p));
  need_thread_scratch(step->scratch_bytes(*plan_));
  append(name, "conv2d", std::move(step));
}

void PlanBuilder::add_bf16_pack(const std::string& name, Bf16PackStep::Params p) {
  check_map(p.out_map);
  if (p.input < 0) {
    check_map(p.in_map);
    check_mask(p.in_live, channels(p.in_map));
    check_group_map(p.out_map, channels(p.in_map), cpu::kBf16PerWord);
    check_list(p.list, channels(p.in_map));
  } else {
    check_list(p.list, channels(p.out_map) * cpu::kBf16PerWord);
  }
  append(name, "cast", std::make_unique<Bf16PackStep>(p));
}

void PlanBuilder::add_bf16_unpack(const std::string& name, int32_t in_map, int32_t out_map, int32_t list) {
  check_map(out_map);
  check_group_map(in_map, channels(out_map), cpu::kBf16PerWord);
  check_list(list, channels(out_map));
  const cpu::PlaneShape& in = plan_->shape_of(in_map);
  const cpu::PlaneShape& out = plan_->shape_of(out_map);
  if (in.height != out.height || in.width != out.width) fail(name + ": sizes differ");
  append(name, "cast", std::make_unique<Bf16UnpackStep>(in_map, out_map, list));
}

void PlanBuilder::add_bf16_reduce(const std::string& name, Bf16ReduceStep::Params p) {
  check_flat(p.out_flat, false);
  const auto size = static_cast<int32_t>(plan_->flats[static_cast<size_t>(p.out_flat)].size());
  check_group_map(p.in_map, size, cpu::kBf16PerWord);
  check_list(p.list, size);
  check_mask(p.before, size);
  need_thread_scratch(Bf16ReduceStep::scratch_bytes(plan_->shape_of(p.in_map)));
  append(name, "spatial_reduce", std::make_unique<Bf16ReduceStep>(p));
}

void PlanBuilder::add_bf16_linear(const std::string& name, Bf16LinearStep::Params p) {
  check_flat(p.in_flat, false);
  check_flat(p.out_flat, false);
  check_flat(p.bias, true);
  if (plan_->flats[static_cast<size_t>(p.in_flat)].size() != p.in_features ||
      plan_->flats[static_cast<size_t>(p.out_flat)].size() != p.out_features)
    fail(name + ": linear sizes do not match");
  append(name, "linear", std::make_unique<Bf16LinearStep>(*plan_, p));
}

void PlanBuilder::add_bf16_max_pool(const std::string& name, cpu::PoolShape shape, int32_t in_map, int32_t out_map,
                                    int32_t list) {
  check_map(out_map);
  check_group_map(in_map, channels(out_map) * cpu::kBf16PerWord, cpu::kBf16PerWord);
  check_list(list, channels(out_map) * cpu::kBf16PerWord);
  shape.in = plan_->shape_of(in_map);
  shape.out = plan_->shape_of(out_map);
  need_thread_scratch(plan_->kernels->bf16->max_pool_scratch(shape) * sizeof(uint32_t));
  append(name, "max_pool2d", std::make_unique<Bf16MaxPoolStep>(shape, in_map, out_map, list));
}

}  // namespace dynprune
