// The part of PlanBuilder that serves group planes of every element type.
#include <algorithm>
#include <stdexcept>

#include "core/group_maps.h"
#include "core/plan_builder.h"

namespace dynprune {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("plan: " + what); }

}  // namespace

void PlanBuilder::check_group_map(int32_t map, int32_t n_channels, int32_t per_word) const {
  check_map(map);
  const std::vector<int64_t>& planes = plan_->maps[static_cast<size_t>(map)].plane;
  if (static_cast<int32_t>(planes.size()) != planes_for(n_channels, per_word))
    fail("a map of " + std::to_string(per_word) + " channels per word has one plane per word");
  for (size_t i = 2; i < planes.size(); ++i)
    if (planes[i] - planes[i - 1] != planes[1] - planes[0]) fail("the planes of such a map are evenly spaced");
}

void PlanBuilder::add_group_phase_split(const std::string& name, int32_t per_word, int32_t stride_h, int32_t stride_w,
                                        int64_t phase_stride, int32_t in_map, int32_t out_map, int32_t list) {
  check_map(out_map);
  if (per_word < 1 || stride_h < 1 || stride_w < 1) fail(name + ": a phase split needs positive strides");
  check_group_map(in_map, channels(out_map) * per_word, per_word);
  check_list(list, channels(out_map) * per_word);
  append(name, "phase_split",
         std::make_unique<GroupPhaseSplitStep>(per_word, stride_h, stride_w, phase_stride, in_map, out_map, list));
}

void PlanBuilder::add_image_windows(const std::string& name, ImageWindowsStep::Params p) {
  cpu::WindowShape& shape = p.shape;
  check_map(p.out_map);
  if (p.input < 0 || p.input >= static_cast<int32_t>(plan_->input_sizes.size()) || p.channels < 1 ||
      plan_->input_sizes[static_cast<size_t>(p.input)] != int64_t{p.channels} * shape.height * shape.width)
    fail(name + ": windows need an image of the graph's input");
  if (shape.stride_h < 1 || shape.stride_w < 1 || shape.pad_left < 0 || channels(p.out_map) % p.channels)
    fail(name + ": windows need positive strides and equally many words per channel");
  shape.windows = channels(p.out_map) / p.channels;
  check_group_map(p.out_map, channels(p.out_map), 1);
  const cpu::PlaneShape& out = plan_->shape_of(p.out_map);
  const std::vector<int64_t>& planes = plan_->maps[static_cast<size_t>(p.out_map)].plane;
  shape.out_width = out.width;
  shape.pitch = out.pitch;
  shape.window_stride = planes.size() > 1 ? planes[1] - planes[0] : 0;
  if (out.height != (shape.height + shape.stride_h - 1) / shape.stride_h) fail(name + ": wrong number of rows");
  auto step = std::make_unique<ImageWindowsStep>(p);
  need_thread_scratch(step->scratch_bytes(*plan_));
  append(name, p.bf16 ? "cast" : "quantize", std::move(step));
}

void PlanBuilder::add_group_copy(const std::string& name, int32_t in_map, int32_t out_map) {
  check_map(in_map);
  check_map(out_map);
  if (plan_->maps[static_cast<size_t>(in_map)].shape != plan_->maps[static_cast<size_t>(out_map)].shape ||
      channels(in_map) != channels(out_map))
    fail(name + ": a copy keeps the shape");
  append(name, "copy", std::make_unique<GroupCopyStep>(in_map, out_map));
}

void PlanBuilder::add_group_cat(const std::string& name, int32_t per_word, std::vector<GroupCatStep::Input> inputs,
                                int32_t out_map, int32_t list) {
  if (per_word < 1 || 32 % per_word) fail(name + ": words do not divide into elements");
  int32_t channels = 0;
  for (const GroupCatStep::Input& input : inputs) {
    check_group_map(input.map, input.channels, per_word);
    check_list(input.list, input.channels);
    channels += input.channels;
  }
  check_group_map(out_map, channels, per_word);
  check_list(list, channels);
  for (const GroupCatStep::Input& input : inputs)
    if (plan_->shape_of(input.map).blocks != plan_->shape_of(out_map).blocks ||
        plan_->shape_of(input.map).pitch != plan_->shape_of(out_map).pitch)
      fail(name + ": maps side by side have one geometry");
  auto step = std::make_unique<GroupCatStep>(per_word, std::move(inputs), out_map, list);
  need_thread_scratch(step->scratch_bytes());
  append(name, "cat", std::move(step));
}

}  // namespace dynprune
