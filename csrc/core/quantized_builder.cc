// The part of PlanBuilder that checks and adds steps on quantised maps.
#include <limits>
#include <stdexcept>

#include "core/plan_builder.h"

namespace dynprune {
namespace {

constexpr int32_t kMaxInputChannels = 8192;  // of the kernels' tables for compacting rows

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("plan: " + what); }

}  // namespace

void PlanBuilder::check_quantized_map(int32_t map, int32_t n_channels) const {
  check_group_map(map, n_channels, cpu::kChannelsPerWord);
}

void PlanBuilder::check_quantized_list(int32_t list, int32_t map) const {
  check_list(list, channels(map) * cpu::kChannelsPerWord);
}

void PlanBuilder::add_quantized_conv(const std::string& name, QuantizedConvParams p) {
  check_quantized_map(p.in_map, p.in_channels);
  check_quantized_map(p.out_map, p.out_channels);
  if (p.in_channels > kMaxInputChannels) fail(name + ": too many input channels for the int8 kernels");
  if (p.tap_offset.empty() || p.tap_column.size() != p.tap_offset.size() || !p.weights) fail(name + ": no weights");
  if (plan_->shape_of(p.in_map).pitch != plan_->shape_of(p.out_map).pitch)
    fail(name + ": input and output pitch differ");
  const auto out = static_cast<size_t>(p.out_channels);
  if (p.scale.size() != out || p.bias.size() != out) fail(name + ": scale and bias need one value per output channel");
  for (int32_t flat : {p.gate, p.shift}) {
    check_flat(flat, true);
    if (flat >= 0 && plan_->flats[static_cast<size_t>(flat)].size() != p.out_channels)
      fail(name + ": gate and shift need one value per output channel");
  }
  if (p.residual_scale != 0.0f && p.inner_high < std::numeric_limits<float>::infinity())
    fail(name + ": an upper bound and a residual exclude one another");
  if (p.depthwise && (p.residual_scale != 0.0f || p.in_channels != p.out_channels))
    fail(name + ": a depthwise int8 convolution has equal channels and no residual");
  if (p.groups < 1 || p.in_channels % p.groups || p.out_channels % p.groups || (p.depthwise && p.groups != 1))
    fail(name + ": groups have to divide the channels");
  check_list(p.in_list, p.in_channels);
  check_list(p.out_list, p.out_channels);
  check_list(p.pass_list, p.out_channels, true);
  auto step = std::make_unique<QuantizedConvStep>(*plan_, std::move(p));
  need_thread_scratch(step->scratch_bytes(*plan_));
  append(name, "quantized_conv2d", std::move(step));
}

void PlanBuilder::add_quantize(const std::string& name, QuantizeStep::Params p) {
  check_map(p.out_map);
  if (p.input < 0) {
    check_map(p.in_map);
    check_mask(p.in_live, channels(p.in_map));
    check_quantized_map(p.out_map, channels(p.in_map));
    check_list(p.list, channels(p.in_map));
  } else {
    check_quantized_list(p.list, p.out_map);
  }
  append(name, "quantize", std::make_unique<QuantizeStep>(p));
}

void PlanBuilder::add_dequantize(const std::string& name, DequantizeStep::Params p) {
  check_map(p.out_map);
  check_quantized_map(p.in_map, channels(p.out_map));
  check_list(p.list, channels(p.out_map));
  const cpu::PlaneShape& in = plan_->shape_of(p.in_map);
  const cpu::PlaneShape& out = plan_->shape_of(p.out_map);
  if (in.height != out.height || in.width != out.width) fail(name + ": sizes differ");
  append(name, "dequantize", std::make_unique<DequantizeStep>(p));
}

void PlanBuilder::add_quantized_reduce(const std::string& name, QuantizedReduceStep::Params p) {
  check_flat(p.out_flat, false);
  const auto size = static_cast<int32_t>(plan_->flats[static_cast<size_t>(p.out_flat)].size());
  check_quantized_map(p.in_map, size);
  check_list(p.list, size);
  append(name, "spatial_reduce", std::make_unique<QuantizedReduceStep>(p));
}

void PlanBuilder::add_quantized_max_pool(const std::string& name, cpu::PoolShape shape, cpu::QuantizedType type,
                                         int32_t in_map, int32_t out_map, int32_t list) {
  check_map(out_map);
  check_quantized_map(in_map, channels(out_map) * cpu::kChannelsPerWord);
  check_quantized_list(list, out_map);
  shape.in = plan_->shape_of(in_map);
  shape.out = plan_->shape_of(out_map);
  need_thread_scratch(plan_->kernels->quantized->max_pool_scratch(shape) * sizeof(uint32_t));
  append(name, "max_pool2d", std::make_unique<QuantizedMaxPoolStep>(shape, type, in_map, out_map, list));
}

}  // namespace dynprune
