#include "core/flat_steps.h"

#include <algorithm>
#include <stdexcept>

namespace dynprune {
namespace {

constexpr int kMaxOperands = 64;

}  // namespace

cpu::Tensor shape_only(const FlatRef& ref) {
  if (ref.shape.size() > cpu::kMaxRank) throw std::invalid_argument("a tensor has more than 8 dimensions");
  cpu::Tensor tensor{};
  tensor.rank = static_cast<int32_t>(ref.shape.size());
  std::copy(ref.shape.begin(), ref.shape.end(), tensor.shape);
  return tensor;
}

LinearStep::LinearStep(Plan& plan, Params params)
    : p_(params), packed_(plan.packed.allocate(plan.kernels->linear_size(p_.out_features, p_.in_features))) {
  plan.kernels->linear_pack(p_.out_features, p_.in_features, p_.weights, packed_);
}

void LinearStep::run(const Plan& plan, Context& context, ThreadTeam& team) const {
  const float* x = plan.flat(context, p_.in_flat);
  const float* bias = plan.flat_or_null(context, p_.bias);
  float* y = plan.flat(context, p_.out_flat);
  const int64_t macs = static_cast<int64_t>(p_.in_features) * p_.out_features;
  const int32_t panels = (p_.out_features + cpu::kLinearPanel - 1) / cpu::kLinearPanel;
  const auto part = [&](int rank, int size) {
    const Share share = share_of(panels, rank, size);
    plan.kernels->linear(p_.out_features, p_.in_features, packed_, bias, x, p_.clamp, share.first, share.last, y);
  };
  if (macs < 65536)
    part(0, 1);
  else
    team.run([&](int rank) { part(rank, team.size()); });
  if (context.record) {
    context.record->macs = macs;
    context.record->live_in = p_.in_features;
    context.record->live_out = p_.out_features;
    context.record->kernel = "linear";
  }
}

FlatStep::FlatStep(const Plan& plan, cpu::FlatFn kernel, std::vector<int32_t> in, std::vector<int32_t> out,
                   std::vector<int64_t> ints, std::vector<float> floats, int64_t scratch_offset)
    : kernel_(kernel),
      in_(std::move(in)),
      out_(std::move(out)),
      ints_(std::move(ints)),
      floats_(std::move(floats)),
      scratch_offset_(scratch_offset) {
  if (in_.size() + out_.size() > kMaxOperands) throw std::invalid_argument("an operator has more than 64 operands");
  for (int32_t i : in_) in_shapes_.push_back(shape_only(plan.flats.at(static_cast<size_t>(i))));
  for (int32_t i : out_) out_shapes_.push_back(shape_only(plan.flats.at(static_cast<size_t>(i))));
}

void FlatStep::run(const Plan& plan, Context& context, ThreadTeam&) const {
  cpu::Tensor tensors[kMaxOperands];
  size_t n = 0;
  for (size_t i = 0; i < in_.size(); ++i, ++n) {
    tensors[n] = in_shapes_[i];
    tensors[n].data = plan.flat(context, in_[i]);
  }
  for (size_t i = 0; i < out_.size(); ++i, ++n) {
    tensors[n] = out_shapes_[i];
    tensors[n].data = plan.flat(context, out_[i]);
  }
  cpu::FlatCall call{};
  call.in = tensors;
  call.n_in = static_cast<int32_t>(in_.size());
  call.out = tensors + in_.size();
  call.n_out = static_cast<int32_t>(out_.size());
  call.ints = ints_.data();
  call.n_ints = static_cast<int32_t>(ints_.size());
  call.floats = floats_.data();
  call.n_floats = static_cast<int32_t>(floats_.size());
  call.scratch = scratch_offset_ < 0 ? nullptr : context.arena + scratch_offset_;
  kernel_(call);
}

void CopyStep::run(const Plan& plan, Context& context, ThreadTeam&) const {
  float* flat = plan.flat(context, flat_);
  const int64_t size = plan.flats[static_cast<size_t>(flat_)].size();
  if (input_ >= 0)
    std::copy(context.inputs[input_], context.inputs[input_] + size, flat);
  else
    std::copy(flat, flat + size, context.outputs[output_]);
}

}  // namespace dynprune
