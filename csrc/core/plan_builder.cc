#include "core/plan_builder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/isa.h"
#include "cpu/conv_cost.h"

namespace dynprune {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("plan: " + what); }

}  // namespace

PlanBuilder::PlanBuilder(const std::string& isa) : plan_(std::make_shared<Plan>()) {
  plan_->kernels = &kernel_table(isa);
}

int32_t PlanBuilder::add_shape(int32_t height, int32_t width, int32_t pitch, int64_t zero_plane) {
  if (height < 1 || width < 1 || pitch < width) fail("a plane shape needs height, width >= 1 and pitch >= width");
  auto shape = std::make_unique<OwnedPlaneShape>();
  const int64_t span = static_cast<int64_t>(height - 1) * pitch + width;
  const int64_t blocks = (span + cpu::kBlock - 1) / cpu::kBlock;
  shape->store_mask.assign(static_cast<size_t>(blocks), 0);
  for (int32_t y = 0; y < height; ++y)
    for (int32_t x = 0; x < width; ++x) {
      const int64_t p = static_cast<int64_t>(y) * pitch + x;
      shape->store_mask[static_cast<size_t>(p / cpu::kBlock)] |= static_cast<uint16_t>(1u << (p % cpu::kBlock));
    }
  shape->view = {height, width, pitch, static_cast<int32_t>(blocks), shape->store_mask.data()};
  plan_->shapes.push_back(std::move(shape));
  plan_->zero_plane.push_back(zero_plane);
  return static_cast<int32_t>(plan_->shapes.size()) - 1;
}

int32_t PlanBuilder::add_map(int32_t shape, std::vector<int64_t> planes) {
  if (shape < 0 || static_cast<size_t>(shape) >= plan_->shapes.size()) fail("unknown plane shape");
  if (planes.empty()) fail("a map needs at least one channel");
  plan_->max_channels = std::max(plan_->max_channels, static_cast<int32_t>(planes.size()));
  plan_->maps.push_back({shape, std::move(planes)});
  return static_cast<int32_t>(plan_->maps.size()) - 1;
}

int32_t PlanBuilder::add_flat(int64_t offset, std::vector<int64_t> shape) {
  if (offset < 0) fail("a flat tensor needs an arena offset");
  plan_->flats.push_back({offset, nullptr, std::move(shape)});
  return static_cast<int32_t>(plan_->flats.size()) - 1;
}

int32_t PlanBuilder::add_constant(const float* data, std::vector<int64_t> shape) {
  plan_->flats.push_back({-1, data, std::move(shape)});
  return static_cast<int32_t>(plan_->flats.size()) - 1;
}

int32_t PlanBuilder::add_constant_list(std::vector<int32_t> channels) {
  if (!std::is_sorted(channels.begin(), channels.end())) fail("a live list must ascend");
  LiveListDesc desc;
  desc.capacity = channels.empty() ? 0 : channels.back() + 1;
  desc.constant = std::move(channels);
  desc.is_constant = true;
  plan_->lists.push_back(std::move(desc));
  return static_cast<int32_t>(plan_->lists.size()) - 1;
}

int32_t PlanBuilder::add_live_list(int32_t capacity, int32_t include, int32_t exclude, bool live_first) {
  check_mask(include, capacity);
  check_mask(exclude, capacity);
  if (include < 0 && exclude < 0) fail("a live list without a mask is a constant list");
  LiveListDesc desc;
  desc.capacity = capacity;
  desc.include = include;
  desc.exclude = exclude;
  desc.live_first = live_first;
  desc.slot = plan_->list_pool_size;
  plan_->list_pool_size += capacity + 1;  // the branch-free fill writes one entry past the last
  plan_->lists.push_back(std::move(desc));
  const auto list = static_cast<int32_t>(plan_->lists.size()) - 1;
  append("", "live_list", std::make_unique<LiveListStep>(list));
  return list;
}

void PlanBuilder::check_map(int32_t map) const {
  if (map < 0 || static_cast<size_t>(map) >= plan_->maps.size()) fail("unknown map");
}

void PlanBuilder::check_flat(int32_t flat, bool optional) const {
  if (flat < 0 && optional) return;
  if (flat < 0 || static_cast<size_t>(flat) >= plan_->flats.size()) fail("unknown flat tensor");
}

void PlanBuilder::check_mask(int32_t flat, int32_t channels) const {
  check_flat(flat, true);
  if (flat >= 0 && plan_->flats[static_cast<size_t>(flat)].size() != channels)
    fail("a mask's size differs from the number of channels");
}

void PlanBuilder::check_list(int32_t list, int32_t channels, bool optional) const {
  if (list < 0 && optional) return;
  if (list < 0 || static_cast<size_t>(list) >= plan_->lists.size()) fail("unknown live list");
  if (plan_->lists[static_cast<size_t>(list)].capacity > channels)
    fail("a live list names channels that the map lacks");
}

void PlanBuilder::need_thread_scratch(size_t bytes) {
  plan_->thread_scratch_size = std::max(plan_->thread_scratch_size, static_cast<int64_t>((bytes + 63) / 64 * 16));
}

void PlanBuilder::add_conv(const std::string& name, ConvParams p) {
  check_map(p.in_map);
  check_map(p.out_map);
  const int32_t in = channels(p.in_map), out = channels(p.out_map);
  if (p.groups < 1 || in % p.groups || out % p.groups) fail(name + ": channels are not divisible by groups");
  if (p.tap_offset.empty() || p.tap_offset.size() != static_cast<size_t>(p.kernel_h) * static_cast<size_t>(p.kernel_w))
    fail(name + ": wrong number of taps");
  const bool strided = p.stride_h != 1 || p.stride_w != 1;
  if (!strided && plan_->shape_of(p.in_map).pitch != plan_->shape_of(p.out_map).pitch)
    fail(name + ": input and output pitch differ");
  const bool depthwise = p.groups > 1 && p.groups == in;
  if (strided &&
      (p.stride_h < 1 || p.stride_w < 1 || p.stride_w > 2 || (depthwise ? p.stride_w != 2 : !p.channel_lanes)))
    fail(name + ": no kernel for this stride");
  if (p.channel_lanes && (!has_channel_lanes() || p.groups != 1)) fail(name + ": not for channels in the lanes");
  if (!p.weights) fail(name + ": no weights");
  for (int32_t flat : {p.bias, p.gate, p.shift}) {
    check_flat(flat, true);
    if (flat >= 0 && plan_->flats[static_cast<size_t>(flat)].size() != out)
      fail(name + ": bias, gate and shift need one value per output channel");
  }
  if (p.residual_map >= 0) {
    check_map(p.residual_map);
    check_mask(p.residual_live, out);
    if (channels(p.residual_map) != out ||
        plan_->maps[static_cast<size_t>(p.residual_map)].shape != plan_->maps[static_cast<size_t>(p.out_map)].shape)
      fail(name + ": the residual's shape differs from the output's");
  }
  check_list(p.in_list, in);
  check_list(p.out_list, out);
  check_list(p.pass_list, out, true);
  check_list(p.stored_list, out, p.pools.empty());
  for (const PoolOutput& pool : p.pools) {
    check_flat(pool.flat, false);
    if (plan_->flats[static_cast<size_t>(pool.flat)].size() != out)
      fail(name + ": a pooled output needs one value per channel");
    if (pool.before < 0) continue;
    check_flat(pool.before, false);
    if (p.pass_list >= 0 || plan_->flats[static_cast<size_t>(pool.before)].size() != out)
      fail(name + ": only planes that stay as they are keep their pooled values");
  }
  if (p.winograd_m) {
    if (!has_winograd() || p.groups != 1 || p.kernel_h != 3 || p.kernel_w != 3 || p.winograd_scratch < 0)
      fail(name + ": not a Winograd convolution");
    const cpu::WinogradShape shape{in, out, p.winograd_m, plan_->shape_of(p.out_map)};
    if (p.winograd_form == cpu::WinogradWeights::kChannelLanes &&
        !(has_channel_lanes() && cpu::winograd_fits_channel_lanes(shape)))
      fail(name + ": not a Winograd convolution for channels in the lanes");
    need_thread_scratch(sizeof(float) * plan_->kernels->winograd_sizes(shape, p.winograd_form).thread_scratch);
    check_list(p.kept_input.changed, in, true);
    if (p.kept_input.slot >= 0 && p.winograd_form == cpu::WinogradWeights::kChannelLanes)
      fail(name + ": a transformed input is kept with tiles in the lanes only");
    plan_->kept_inputs = std::max(plan_->kept_inputs, p.kept_input.slot + 1);
  }
  const cpu::DirectShape direct{in / p.groups, out / p.groups, static_cast<int32_t>(p.tap_offset.size()),
                                p.tap_offset.data(), plan_->shape_of(p.out_map)};
  p.small_map = !strided && !depthwise && cpu::fits_small_map(direct);
  if (p.small_map) need_thread_scratch(sizeof(float) * plan_->kernels->small_map_scratch(direct));
  if (p.channel_lanes) {
    const cpu::StridedShape shape{in,
                                  out,
                                  static_cast<int32_t>(p.tap_offset.size()),
                                  p.tap_offset.data(),
                                  plan_->shape_of(p.in_map).pitch,
                                  p.stride_h,
                                  p.stride_w,
                                  plan_->shape_of(p.out_map)};
    p.channel_lanes = strided || cpu::channel_lanes_pay(*plan_->kernels, shape);
    if (p.channel_lanes) need_thread_scratch(sizeof(float) * plan_->kernels->channel_lanes_sizes(shape).thread_scratch);
  }
  if (p.stem) {
    if (!has_stem() || p.groups != 1 || in > cpu::kMaxStemInputs || p.kernel_h != 7 || p.kernel_w != 7 ||
        p.stride_h != 2 || p.stride_w != 2)
      fail(name + ": not a 7x7 stem");
    const cpu::StemShape shape{in, out, plan_->shape_of(p.in_map), plan_->shape_of(p.out_map)};
    need_thread_scratch(sizeof(float) * plan_->kernels->stem_sizes(shape).thread_scratch);
  }
  append(name, "conv2d", std::make_unique<ConvStep>(*plan_, std::move(p)));
}

void PlanBuilder::add_linear(const std::string& name, LinearStep::Params p) {
  check_flat(p.in_flat, false);
  check_flat(p.out_flat, false);
  check_flat(p.bias, true);
  if (plan_->flats[static_cast<size_t>(p.in_flat)].size() != p.in_features ||
      plan_->flats[static_cast<size_t>(p.out_flat)].size() != p.out_features)
    fail(name + ": linear sizes do not match");
  append(name, "linear", std::make_unique<LinearStep>(*plan_, p));
}

void PlanBuilder::add_plane_unary(const std::string& name, PlaneUnaryStep::Params p) {
  check_map(p.in_map);
  check_map(p.out_map);
  check_mask(p.in_live, channels(p.in_map));
  check_list(p.list, channels(p.out_map));
  for (int32_t flat : {p.a_flat, p.b_flat}) {
    check_flat(flat, true);
    if (flat >= 0 && plan_->flats[static_cast<size_t>(flat)].size() != channels(p.out_map))
      fail(name + ": one parameter per channel expected");
  }
  append(name, "plane_unary", std::make_unique<PlaneUnaryStep>(p));
}

void PlanBuilder::add_plane_binary(const std::string& name, PlaneBinaryStep::Params p) {
  check_map(p.out_map);
  check_list(p.list, channels(p.out_map));
  for (const PlaneBinaryStep::Operand* x : {&p.x0, &p.x1}) {
    if (x->map >= 0) {
      check_map(x->map);
      check_mask(x->live_mask, channels(x->map));
      if (channels(x->map) != (x->one_plane ? 1 : channels(p.out_map))) fail(name + ": operand channels do not match");
    } else {
      check_flat(x->flat, false);
      if (plan_->flats[static_cast<size_t>(x->flat)].size() != (x->one_number ? 1 : channels(p.out_map)))
        fail(name + ": operand size does not match");
    }
  }
  append(name, "plane_binary", std::make_unique<PlaneBinaryStep>(p));
}

void PlanBuilder::add_pool(const std::string& name, PoolStep::Kind kind, cpu::PoolShape shape, int32_t in_map,
                           int32_t in_live, int32_t out_map, int32_t list) {
  check_map(in_map);
  check_map(out_map);
  check_mask(in_live, channels(in_map));
  if (channels(in_map) != channels(out_map)) fail(name + ": pooling keeps the number of channels");
  check_list(list, channels(in_map));
  shape.in = plan_->shape_of(in_map);
  shape.out = plan_->shape_of(out_map);
  append(name, "pool", std::make_unique<PoolStep>(kind, shape, in_map, in_live, out_map, list));
}

void PlanBuilder::add_spatial_reduce(const std::string& name, cpu::Reduce kind, int32_t in_map, int32_t out_flat,
                                     int32_t list) {
  check_map(in_map);
  check_flat(out_flat, false);
  if (plan_->flats[static_cast<size_t>(out_flat)].size() != channels(in_map))
    fail(name + ": one value per channel expected");
  check_list(list, channels(in_map));
  append(name, "spatial_reduce", std::make_unique<SpatialReduceStep>(kind, in_map, out_flat, list));
}

void PlanBuilder::add_phase_split(const std::string& name, int32_t stride_h, int32_t stride_w, int64_t phase_stride,
                                  int32_t in_map, int32_t out_map, int32_t list) {
  check_map(in_map);
  check_map(out_map);
  if (channels(in_map) != channels(out_map)) fail(name + ": a phase split keeps the number of channels");
  if (stride_h < 1 || stride_w < 1) fail(name + ": a phase split needs positive strides");
  check_list(list, channels(in_map));
  append(name, "phase_split",
         std::make_unique<PhaseSplitStep>(stride_h, stride_w, phase_stride, in_map, out_map, list));
}

void PlanBuilder::add_load_planes(const std::string& name, int32_t flat, int32_t input, int32_t out_map) {
  check_map(out_map);
  if (input < 0) check_flat(flat, false);
  append(name, "load_planes", std::make_unique<LoadPlanesStep>(flat, input, out_map));
}

void PlanBuilder::add_store_planes(const std::string& name, int32_t in_map, int32_t list, int32_t flat,
                                   int32_t output) {
  check_map(in_map);
  check_list(list, channels(in_map));
  if (output < 0) check_flat(flat, false);
  append(name, "store_planes", std::make_unique<StorePlanesStep>(in_map, list, flat, output));
}

void PlanBuilder::add_copy(const std::string& name, int32_t flat, int32_t input, int32_t output) {
  check_flat(flat, false);
  append(name, "copy", std::make_unique<CopyStep>(flat, input, output));
}

void PlanBuilder::add_flat_op(const std::string& name, const std::string& op, std::vector<int32_t> in,
                              std::vector<int32_t> out, std::vector<int64_t> ints, std::vector<float> floats,
                              int64_t scratch_offset) {
  for (int32_t flat : in) check_flat(flat, false);
  for (int32_t flat : out) check_flat(flat, false);
  for (int32_t i = 0; i < plan_->kernels->n_flat_ops; ++i) {
    if (op != plan_->kernels->flat_ops[i].name) continue;
    append(name, op,
           std::make_unique<FlatStep>(*plan_, plan_->kernels->flat_ops[i].run, std::move(in), std::move(out),
                                      std::move(ints), std::move(floats), scratch_offset));
    return;
  }
  fail("no flat kernel for operator " + op);
}

int64_t PlanBuilder::winograd_input_scratch(int32_t in_channels, int32_t out_channels, int32_t m, int32_t shape,
                                            cpu::WinogradWeights form) {
  if (!has_winograd()) return 0;
  const cpu::WinogradShape winograd{in_channels, out_channels, m, plan_->shapes.at(static_cast<size_t>(shape))->view};
  const int32_t most = cpu::winograd_bands(winograd, plan_->kernels->lanes).most();
  int64_t floats = cpu::winograd_band_scratch(*plan_->kernels, winograd, form, 1);
  for (int32_t bands = 2; bands <= most; ++bands)
    floats = std::max(floats, bands * cpu::winograd_band_scratch(*plan_->kernels, winograd, form, bands));
  return floats;
}

std::shared_ptr<Plan> PlanBuilder::finish(int64_t arena_size) {
  for (const FlatRef& flat : plan_->flats)
    if (!flat.constant && flat.offset + flat.size() > arena_size) fail("a flat tensor lies outside the arena");
  for (const MapRef& map : plan_->maps) {
    const cpu::PlaneShape& shape = plan_->shape_of(map);
    for (int64_t plane : map.plane)
      if (plane < 0 || plane + static_cast<int64_t>(shape.blocks) * cpu::kBlock > arena_size)
        fail("a plane lies outside the arena");
  }
  if (plan_->input_sizes.size() > 64 || plan_->output_sizes.size() > 64) fail("more than 64 inputs or outputs");
  plan_->arena_size = arena_size;
  return std::move(plan_);
}

}  // namespace dynprune
