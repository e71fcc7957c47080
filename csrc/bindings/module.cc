// The Python face of the CPU runtime, and the only place where Python is known.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <tuple>

#include "core/executor.h"
#include "core/isa.h"
#include "core/plan_builder.h"

namespace py = pybind11;

namespace dynprune {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using ByteArray = py::array_t<int8_t, py::array::c_style>;
using HalfArray = py::array_t<uint16_t, py::array::c_style>;  // the bits of bf16

std::vector<int64_t> shape_of(const FloatArray& array) { return {array.shape(), array.shape() + array.ndim()}; }

std::vector<float> floats_of(const FloatArray& array) { return {array.data(), array.data() + array.size()}; }

cpu::Clamp clamp_of(const std::pair<float, float>& bounds) { return {bounds.first, bounds.second}; }

// A plan builder that keeps the numpy arrays alive which the plan points into.
struct PyPlan {
  std::shared_ptr<Plan> plan;
  std::vector<py::array> constants;
};

class PyPlanBuilder : public PlanBuilder {
 public:
  using PlanBuilder::PlanBuilder;
  const uint16_t* hold(const HalfArray& array) {
    constants_.push_back(array);
    return array.data();
  }
  const float* hold(const FloatArray& array) {
    constants_.push_back(array);
    return array.data();
  }
  std::shared_ptr<PyPlan> finish_plan(int64_t arena_size) {
    auto result = std::make_shared<PyPlan>();
    result->plan = finish(arena_size);
    result->constants = std::move(constants_);
    return result;
  }

 private:
  std::vector<py::array> constants_;
};

class PyExecutor {
 public:
  PyExecutor(std::shared_ptr<PyPlan> plan, int threads) : plan_(std::move(plan)), executor_(plan_->plan, threads) {}

  // inputs, outputs: contiguous f32 arrays [batch, ...]. Returns records per image and step; empty unless `profile`.
  py::list run(const std::vector<FloatArray>& inputs, std::vector<FloatArray>& outputs, int64_t batch, bool skip,
               bool poison, bool profile) {
    const Plan& plan = *plan_->plan;
    if (inputs.size() != plan.input_sizes.size() || outputs.size() != plan.output_sizes.size())
      throw std::invalid_argument("wrong number of inputs or outputs");
    std::vector<const float*> in;
    std::vector<float*> out;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].size() != batch * plan.input_sizes[i]) throw std::invalid_argument("an input has the wrong size");
      in.push_back(inputs[i].data());
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].size() != batch * plan.output_sizes[i])
        throw std::invalid_argument("an output has the wrong size");
      out.push_back(outputs[i].mutable_data());
    }
    std::vector<StepRecord> records;
    if (profile) records.resize(static_cast<size_t>(batch) * plan.steps.size());
    RunRequest request{in.data(), out.data(), batch, skip, poison, profile ? records.data() : nullptr};
    {
      py::gil_scoped_release release;
      executor_.run(request);
    }
    py::list images;
    if (!profile) return images;
    for (int64_t b = 0; b < batch; ++b) {
      py::list rows;
      for (size_t s = 0; s < plan.steps.size(); ++s) {
        const StepRecord& r = records[static_cast<size_t>(b) * plan.steps.size() + s];
        rows.append(py::make_tuple(r.nanoseconds, r.macs, r.live_in, r.live_out, r.kernel));
      }
      images.append(rows);
    }
    return images;
  }

  std::vector<std::pair<std::string, std::string>> steps() const {
    std::vector<std::pair<std::string, std::string>> names;
    for (const auto& step : plan_->plan->steps) names.emplace_back(step->name, step->op);
    return names;
  }
  int threads() const { return executor_.threads(); }
  std::string isa() const { return plan_->plan->kernels->isa; }
  int64_t memory_bytes() const { return executor_.memory_bytes(); }

 private:
  std::shared_ptr<PyPlan> plan_;
  Executor executor_;
};

// One flat operator on numpy arrays, for tests.
std::vector<FloatArray> run_flat_op(const std::string& op, const std::vector<FloatArray>& inputs,
                                    const std::vector<std::vector<int64_t>>& out_shapes,
                                    const std::vector<int64_t>& ints, const std::vector<float>& floats, int64_t scratch,
                                    const std::string& isa) {
  const cpu::KernelTable& table = kernel_table(isa);
  const auto tensor = [](const float* data, const std::vector<int64_t>& shape) {
    cpu::Tensor t = shape_only({0, nullptr, shape});
    t.data = const_cast<float*>(data);
    return t;
  };
  std::vector<cpu::Tensor> in, out;
  std::vector<FloatArray> results;
  for (const FloatArray& array : inputs) in.push_back(tensor(array.data(), shape_of(array)));
  for (const auto& shape : out_shapes) {
    results.emplace_back(shape);
    out.push_back(tensor(results.back().data(), shape));
  }
  std::vector<float> scratch_floats(static_cast<size_t>(scratch) + 16);
  for (int32_t i = 0; i < table.n_flat_ops; ++i) {
    if (op != table.flat_ops[i].name) continue;
    table.flat_ops[i].run({in.data(), static_cast<int32_t>(in.size()), out.data(), static_cast<int32_t>(out.size()),
                           ints.data(), static_cast<int32_t>(ints.size()), floats.data(),
                           static_cast<int32_t>(floats.size()), scratch_floats.data()});
    return results;
  }
  throw std::invalid_argument("no flat kernel for operator " + op);
}

template <class Enum>
void bind_enum(py::module_& m, const char* name, std::initializer_list<std::pair<const char*, Enum>> members) {
  py::enum_<Enum> e(m, name);
  for (const auto& member : members) e.value(member.first, member.second);
}

void bind_enums(py::module_& m) {
  using cpu::Binary;
  using cpu::Reduce;
  using cpu::Unary;
  bind_enum<Unary>(m, "Unary",
                   {{"relu", Unary::kRelu},
                    {"clamp", Unary::kClamp},
                    {"leaky_relu", Unary::kLeakyRelu},
                    {"sigmoid", Unary::kSigmoid},
                    {"tanh", Unary::kTanh},
                    {"silu", Unary::kSilu},
                    {"hardswish", Unary::kHardswish},
                    {"hardsigmoid", Unary::kHardsigmoid},
                    {"mish", Unary::kMish},
                    {"softplus", Unary::kSoftplus},
                    {"elu", Unary::kElu},
                    {"gelu", Unary::kGelu},
                    {"gelu_tanh", Unary::kGeluTanh},
                    {"neg", Unary::kNeg},
                    {"abs", Unary::kAbs},
                    {"sqrt", Unary::kSqrt},
                    {"rsqrt", Unary::kRsqrt},
                    {"exp", Unary::kExp},
                    {"log", Unary::kLog},
                    {"reciprocal", Unary::kReciprocal},
                    {"round", Unary::kRound},
                    {"floor", Unary::kFloor},
                    {"ceil", Unary::kCeil},
                    {"trunc", Unary::kTrunc},
                    {"sign", Unary::kSign},
                    {"logical_not", Unary::kNot},
                    {"isnan", Unary::kIsNan},
                    {"erf", Unary::kErf},
                    {"square", Unary::kSquare},
                    {"sin", Unary::kSin},
                    {"cos", Unary::kCos},
                    {"pow_scalar", Unary::kPowScalar},
                    {"affine", Unary::kAffine},
                    {"cast_i64", Unary::kCastInt},
                    {"cast_bool", Unary::kCastBool}});
  bind_enum<Binary>(m, "Binary",
                    {{"add", Binary::kAdd},
                     {"sub", Binary::kSub},
                     {"mul", Binary::kMul},
                     {"div", Binary::kDiv},
                     {"maximum", Binary::kMaximum},
                     {"minimum", Binary::kMinimum},
                     {"pow", Binary::kPow},
                     {"remainder", Binary::kRemainder},
                     {"floor_divide", Binary::kFloorDivide},
                     {"eq", Binary::kEq},
                     {"ne", Binary::kNe},
                     {"lt", Binary::kLt},
                     {"le", Binary::kLe},
                     {"gt", Binary::kGt},
                     {"ge", Binary::kGe},
                     {"logical_and", Binary::kAnd},
                     {"logical_or", Binary::kOr},
                     {"logical_xor", Binary::kXor}});
  bind_enum<Reduce>(m, "Reduce",
                    {{"mean", Reduce::kMean},
                     {"sum", Reduce::kSum},
                     {"mean_abs", Reduce::kMeanAbs},
                     {"sum_abs", Reduce::kSumAbs},
                     {"sum_squares", Reduce::kSumSquares},
                     {"l2", Reduce::kL2},
                     {"max", Reduce::kMax},
                     {"min", Reduce::kMin},
                     {"max_abs", Reduce::kMaxAbs}});
  py::enum_<PoolStep::Kind>(m, "Pool")
      .value("max", PoolStep::Kind::kMax)
      .value("average", PoolStep::Kind::kAverage)
      .value("adaptive_average", PoolStep::Kind::kAdaptiveAverage)
      .value("adaptive_max", PoolStep::Kind::kAdaptiveMax);
  py::enum_<cpu::QuantizedType>(m, "QuantizedType")
      .value("u8", cpu::QuantizedType::kU8)
      .value("s8", cpu::QuantizedType::kS8);
  py::enum_<cpu::QuantizedReduce>(m, "QuantizedReduce")
      .value("sum", cpu::QuantizedReduce::kSum)
      .value("sum_abs", cpu::QuantizedReduce::kSumAbs)
      .value("sum_squares", cpu::QuantizedReduce::kSumSquares)
      .value("max", cpu::QuantizedReduce::kMax);
  py::enum_<cpu::WinogradWeights>(m, "WinogradWeights")
      .value("transformed", cpu::WinogradWeights::kTransformed)
      .value("on_the_fly", cpu::WinogradWeights::kOnTheFly)
      .value("channel_lanes", cpu::WinogradWeights::kChannelLanes);
}

void bind_quantized_steps(py::class_<PyPlanBuilder>& builder);
void bind_bf16_steps(py::class_<PyPlanBuilder>& builder);

void bind_builder(py::module_& m) {
  py::class_<PyPlan, std::shared_ptr<PyPlan>>(m, "Plan");
  py::class_<PyPlanBuilder> builder(m, "PlanBuilder");
  builder.def(py::init<const std::string&>(), py::arg("isa") = "")
      .def("add_shape", &PyPlanBuilder::add_shape, py::arg("height"), py::arg("width"), py::arg("pitch"),
           py::arg("zero_plane"))
      .def("add_map", &PyPlanBuilder::add_map, py::arg("shape"), py::arg("planes"))
      .def("add_flat", &PyPlanBuilder::add_flat, py::arg("offset"), py::arg("shape"))
      .def(
          "add_constant",
          [](PyPlanBuilder& b, const FloatArray& array, std::vector<int64_t> shape) {
            return b.add_constant(b.hold(array), std::move(shape));
          },
          py::arg("array"), py::arg("shape"))
      .def("add_constant_list", &PyPlanBuilder::add_constant_list, py::arg("channels"))
      .def("add_live_list", &PyPlanBuilder::add_live_list, py::arg("capacity"), py::arg("include"), py::arg("exclude"),
           py::arg("live_first") = false)
      .def("add_input", &PyPlanBuilder::add_input, py::arg("floats_per_image"))
      .def("add_output", &PyPlanBuilder::add_output, py::arg("floats_per_image"))
      .def_property_readonly("has_channel_lanes", &PyPlanBuilder::has_channel_lanes)
      .def_property_readonly("has_stem", &PyPlanBuilder::has_stem)
      .def_property_readonly("has_winograd", &PyPlanBuilder::has_winograd)
      .def("winograd_input_scratch", &PyPlanBuilder::winograd_input_scratch, py::arg("in_channels"),
           py::arg("out_channels"), py::arg("m"), py::arg("shape"), py::arg("form"))
      .def("bf16_winograd_pays", &PyPlanBuilder::bf16_winograd_pays, py::arg("in_channels"), py::arg("out_channels"),
           py::arg("height"), py::arg("width"))
      .def("finish", &PyPlanBuilder::finish_plan, py::arg("arena_size"));
  builder.def(
      "add_conv",
      [](PyPlanBuilder& b, const std::string& name, int32_t in_map, int32_t out_map, const FloatArray& weights,
         int32_t groups, std::pair<int32_t, int32_t> stride, bool channel_lanes, bool stem,
         std::vector<int32_t> tap_offset, int32_t bias, int32_t gate, bool gate_is_mask, int32_t shift,
         int32_t residual_map, int32_t residual_live, std::pair<float, float> inner, std::pair<float, float> outer,
         int32_t in_list, int32_t out_list, int32_t pass_list, int32_t stored_list,
         const std::vector<std::tuple<cpu::Reduce, int32_t, int32_t>>& pools, int32_t winograd_m,
         cpu::WinogradWeights winograd_form, int64_t winograd_scratch, std::tuple<int32_t, int32_t, int32_t> kept_input,
         int32_t shared_planes, int64_t macs_per_pair) {
        if (weights.ndim() != 4) throw std::invalid_argument("plan: weights [K,C,R,S] expected");
        ConvParams p;
        p.in_map = in_map;
        p.out_map = out_map;
        p.groups = groups;
        std::tie(p.stride_h, p.stride_w) = stride;
        p.channel_lanes = channel_lanes;
        p.stem = stem;
        p.kernel_h = static_cast<int32_t>(weights.shape(2));
        p.kernel_w = static_cast<int32_t>(weights.shape(3));
        p.tap_offset = std::move(tap_offset);
        p.weights = b.hold(weights);
        p.bias = bias;
        p.gate = gate;
        p.gate_is_mask = gate_is_mask;
        p.shift = shift;
        p.residual_map = residual_map;
        p.residual_live = residual_live;
        p.inner = clamp_of(inner);
        p.outer = clamp_of(outer);
        p.in_list = in_list;
        p.out_list = out_list;
        p.pass_list = pass_list;
        p.stored_list = stored_list;
        for (const auto& [kind, flat, before] : pools) p.pools.push_back({kind, flat, before});
        p.winograd_m = winograd_m;
        p.winograd_form = winograd_form;
        p.winograd_scratch = winograd_scratch;
        std::tie(p.kept_input.slot, p.kept_input.turn, p.kept_input.changed) = kept_input;
        p.shared_planes = shared_planes;
        p.macs_per_pair = macs_per_pair;
        b.add_conv(name, std::move(p));
      },
      py::arg("name"), py::kw_only(), py::arg("in_map"), py::arg("out_map"), py::arg("weights"), py::arg("groups"),
      py::arg("stride"), py::arg("channel_lanes"), py::arg("stem"), py::arg("tap_offset"), py::arg("bias"),
      py::arg("gate"), py::arg("gate_is_mask"), py::arg("shift"), py::arg("residual_map"), py::arg("residual_live"),
      py::arg("inner"), py::arg("outer"), py::arg("in_list"), py::arg("out_list"), py::arg("pass_list"),
      py::arg("stored_list"), py::arg("pools"), py::arg("winograd_m"), py::arg("winograd_form"),
      py::arg("winograd_scratch"), py::arg("kept_input"), py::arg("shared_planes"), py::arg("macs_per_pair"));
  builder.def(
      "add_linear",
      [](PyPlanBuilder& b, const std::string& name, int32_t in_flat, int32_t out_flat, const FloatArray& weights,
         int32_t bias, std::pair<float, float> clamp) {
        if (weights.ndim() != 2) throw std::invalid_argument("plan: weights [K,C] expected");
        b.add_linear(name, {b.hold(weights), bias, in_flat, out_flat, static_cast<int32_t>(weights.shape(1)),
                            static_cast<int32_t>(weights.shape(0)), clamp_of(clamp)});
      },
      py::arg("name"), py::kw_only(), py::arg("in_flat"), py::arg("out_flat"), py::arg("weights"), py::arg("bias"),
      py::arg("clamp"));
  builder.def(
      "add_plane_unary",
      [](PyPlanBuilder& b, const std::string& name, cpu::Unary kind, int32_t in_map, int32_t out_map, int32_t list,
         float a, float bb, int32_t a_flat, int32_t b_flat,
         int32_t in_live) { b.add_plane_unary(name, {kind, in_map, out_map, list, a, bb, a_flat, b_flat, in_live}); },
      py::arg("name"), py::kw_only(), py::arg("kind"), py::arg("in_map"), py::arg("out_map"), py::arg("list"),
      py::arg("a") = 0.0f, py::arg("b") = 0.0f, py::arg("a_flat") = -1, py::arg("b_flat") = -1,
      py::arg("in_live") = -1);
  py::class_<PlaneBinaryStep::Operand>(m, "Operand")
      .def(py::init([](int32_t map, int32_t flat, bool one_plane, bool one_number, int32_t live_mask) {
             return PlaneBinaryStep::Operand{map, flat, one_plane, one_number, live_mask};
           }),
           py::kw_only(), py::arg("map") = -1, py::arg("flat") = -1, py::arg("one_plane") = false,
           py::arg("one_number") = false, py::arg("live_mask") = -1);
  builder.def(
      "add_plane_binary",
      [](PyPlanBuilder& b, const std::string& name, cpu::Binary kind, PlaneBinaryStep::Operand x0,
         PlaneBinaryStep::Operand x1, int32_t out_map, int32_t list,
         std::pair<float, float> clamp) { b.add_plane_binary(name, {kind, clamp_of(clamp), x0, x1, out_map, list}); },
      py::arg("name"), py::kw_only(), py::arg("kind"), py::arg("x0"), py::arg("x1"), py::arg("out_map"),
      py::arg("list"), py::arg("clamp"));
  builder.def(
      "add_pool",
      [](PyPlanBuilder& b, const std::string& name, PoolStep::Kind kind, int32_t in_map, int32_t in_live,
         int32_t out_map, int32_t list, std::pair<int, int> kernel, std::pair<int, int> stride,
         std::array<int, 4> padding, std::pair<int, int> dilation, bool count_include_pad, int divisor) {
        cpu::PoolShape s{};
        s.kernel_h = kernel.first;
        s.kernel_w = kernel.second;
        s.stride_h = stride.first;
        s.stride_w = stride.second;
        s.pad_top = padding[0];
        s.pad_left = padding[1];
        s.pad_bottom = padding[2];
        s.pad_right = padding[3];
        s.dilation_h = dilation.first;
        s.dilation_w = dilation.second;
        s.count_include_pad = count_include_pad;
        s.divisor = divisor;
        b.add_pool(name, kind, s, in_map, in_live, out_map, list);
      },
      py::arg("name"), py::kw_only(), py::arg("kind"), py::arg("in_map"), py::arg("in_live"), py::arg("out_map"),
      py::arg("list"), py::arg("kernel") = std::make_pair(1, 1), py::arg("stride") = std::make_pair(1, 1),
      py::arg("padding") = std::array<int, 4>{0, 0, 0, 0}, py::arg("dilation") = std::make_pair(1, 1),
      py::arg("count_include_pad") = true, py::arg("divisor") = 0);
  builder
      .def("add_spatial_reduce", &PyPlanBuilder::add_spatial_reduce, py::arg("name"), py::kw_only(), py::arg("kind"),
           py::arg("in_map"), py::arg("out_flat"), py::arg("list"))
      .def("add_phase_split", &PyPlanBuilder::add_phase_split, py::arg("name"), py::kw_only(), py::arg("stride_h"),
           py::arg("stride_w"), py::arg("phase_stride"), py::arg("in_map"), py::arg("out_map"), py::arg("list"))
      .def("add_load_planes", &PyPlanBuilder::add_load_planes, py::arg("name"), py::kw_only(), py::arg("flat"),
           py::arg("input"), py::arg("out_map"))
      .def("add_load_phases", &PyPlanBuilder::add_load_phases, py::arg("name"), py::kw_only(), py::arg("input"),
           py::arg("height"), py::arg("width"), py::arg("stride_h"), py::arg("stride_w"), py::arg("phase_stride"),
           py::arg("out_map"))
      .def("add_store_planes", &PyPlanBuilder::add_store_planes, py::arg("name"), py::kw_only(), py::arg("in_map"),
           py::arg("list"), py::arg("flat"), py::arg("output"))
      .def("add_copy", &PyPlanBuilder::add_copy, py::arg("name"), py::kw_only(), py::arg("flat"), py::arg("input"),
           py::arg("output"))
      .def("add_flat_op", &PyPlanBuilder::add_flat_op, py::arg("name"), py::kw_only(), py::arg("op"), py::arg("inputs"),
           py::arg("outputs"), py::arg("ints"), py::arg("floats"), py::arg("scratch_offset"));
  bind_quantized_steps(builder);
  bind_bf16_steps(builder);
}

void bind_quantized_steps(py::class_<PyPlanBuilder>& builder) {
  using cpu::QuantizedType;
  builder.def(
      "add_quantized_conv",
      [](PyPlanBuilder& b, const std::string& name, int32_t in_map, int32_t out_map, int32_t in_channels,
         const ByteArray& weights, int32_t model_inputs, bool depthwise, int32_t groups,
         std::vector<int32_t> tap_offset, std::vector<int32_t> tap_column, const FloatArray& scale,
         const FloatArray& bias, int32_t gate, int32_t shift, QuantizedType in_type, QuantizedType out_type,
         QuantizedType residual_type, float residual_scale, float inner_low, float inner_high, int32_t in_list,
         int32_t out_list, int32_t pass_list, int64_t macs_per_pair) {
        if (groups < 1 || weights.ndim() != 4 || weights.shape(1) != (depthwise ? 1 : in_channels / groups) ||
            weights.shape(2) * weights.shape(3) != static_cast<py::ssize_t>(tap_offset.size()))
          throw std::invalid_argument("plan: weights [K,C,R,S] expected");
        QuantizedConvParams p;
        p.in_map = in_map;
        p.out_map = out_map;
        p.in_channels = in_channels;
        p.out_channels = static_cast<int32_t>(weights.shape(0));
        p.model_inputs = model_inputs;
        p.depthwise = depthwise;
        p.groups = groups;
        p.tap_offset = std::move(tap_offset);
        p.tap_column = std::move(tap_column);
        p.weights = weights.data();
        p.scale = floats_of(scale);
        p.bias = floats_of(bias);
        p.shift = shift;
        p.gate = gate;
        p.in_type = in_type;
        p.out_type = out_type;
        p.residual_type = residual_type;
        p.residual_scale = residual_scale;
        p.inner_low = inner_low;
        p.inner_high = inner_high;
        p.in_list = in_list;
        p.out_list = out_list;
        p.pass_list = pass_list;
        p.macs_per_pair = macs_per_pair;
        b.add_quantized_conv(name, std::move(p));
      },
      py::arg("name"), py::kw_only(), py::arg("in_map"), py::arg("out_map"), py::arg("in_channels"), py::arg("weights"),
      py::arg("model_inputs"), py::arg("depthwise"), py::arg("groups"), py::arg("tap_offset"), py::arg("tap_column"),
      py::arg("scale"), py::arg("bias"), py::arg("gate"), py::arg("shift"), py::arg("in_type"), py::arg("out_type"),
      py::arg("residual_type"), py::arg("residual_scale"), py::arg("inner_low"), py::arg("inner_high"),
      py::arg("in_list"), py::arg("out_list"), py::arg("pass_list"), py::arg("macs_per_pair"));
  builder
      .def(
          "add_image_windows",
          [](PyPlanBuilder& b, const std::string& name, int32_t input, int32_t channels,
             std::pair<int32_t, int32_t> size, int32_t pad_left, std::pair<int32_t, int32_t> stride,
             int64_t phase_stride, int32_t out_map, float inverse_scale, std::optional<QuantizedType> type) {
            cpu::WindowShape shape{};
            shape.height = size.first;
            shape.width = size.second;
            shape.pad_left = pad_left;
            shape.stride_h = stride.first;
            shape.stride_w = stride.second;
            shape.phase_stride = phase_stride;
            b.add_image_windows(name, {input, channels, shape, out_map, !type.has_value(), inverse_scale,
                                       type.value_or(QuantizedType::kU8)});
          },
          "type None: bf16", py::arg("name"), py::kw_only(), py::arg("input"), py::arg("channels"), py::arg("size"),
          py::arg("pad_left"), py::arg("stride"), py::arg("phase_stride"), py::arg("out_map"), py::arg("inverse_scale"),
          py::arg("type"))
      .def(
          "add_quantize",
          [](PyPlanBuilder& b, const std::string& name, int32_t in_map, int32_t input, int32_t out_map, int32_t list,
             float inverse_scale, QuantizedType type,
             int32_t in_live) { b.add_quantize(name, {in_map, input, out_map, list, inverse_scale, type, in_live}); },
          py::arg("name"), py::kw_only(), py::arg("in_map"), py::arg("input"), py::arg("out_map"), py::arg("list"),
          py::arg("inverse_scale"), py::arg("type"), py::arg("in_live") = -1)
      .def(
          "add_dequantize",
          [](PyPlanBuilder& b, const std::string& name, int32_t in_map, int32_t out_map, int32_t list, float scale,
             QuantizedType type) { b.add_dequantize(name, {in_map, out_map, list, scale, type}); },
          py::arg("name"), py::kw_only(), py::arg("in_map"), py::arg("out_map"), py::arg("list"), py::arg("scale"),
          py::arg("type"))
      .def(
          "add_quantized_reduce",
          [](PyPlanBuilder& b, const std::string& name, cpu::QuantizedReduce kind, bool root, int32_t in_map,
             int32_t out_flat, int32_t list, float scale,
             QuantizedType type) { b.add_quantized_reduce(name, {kind, root, in_map, out_flat, list, scale, type}); },
          py::arg("name"), py::kw_only(), py::arg("kind"), py::arg("root"), py::arg("in_map"), py::arg("out_flat"),
          py::arg("list"), py::arg("scale"), py::arg("type"))
      .def(
          "add_quantized_max_pool",
          [](PyPlanBuilder& b, const std::string& name, QuantizedType type, int32_t in_map, int32_t out_map,
             int32_t list, std::pair<int, int> kernel, std::pair<int, int> stride, std::array<int, 4> padding,
             std::pair<int, int> dilation) {
            cpu::PoolShape s{};
            s.kernel_h = kernel.first;
            s.kernel_w = kernel.second;
            s.stride_h = stride.first;
            s.stride_w = stride.second;
            s.pad_top = padding[0];
            s.pad_left = padding[1];
            s.pad_bottom = padding[2];
            s.pad_right = padding[3];
            s.dilation_h = dilation.first;
            s.dilation_w = dilation.second;
            b.add_quantized_max_pool(name, s, type, in_map, out_map, list);
          },
          py::arg("name"), py::kw_only(), py::arg("type"), py::arg("in_map"), py::arg("out_map"), py::arg("list"),
          py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"));
  builder
      .def("add_group_phase_split", &PyPlanBuilder::add_group_phase_split, py::arg("name"), py::kw_only(),
           py::arg("per_word"), py::arg("stride_h"), py::arg("stride_w"), py::arg("phase_stride"), py::arg("in_map"),
           py::arg("out_map"), py::arg("list"))
      .def("add_group_copy", &PyPlanBuilder::add_group_copy, py::arg("name"), py::kw_only(), py::arg("in_map"),
           py::arg("out_map"))
      .def(
          "add_group_cat",
          [](PyPlanBuilder& b, const std::string& name, int32_t per_word,
             const std::vector<std::array<int32_t, 3>>& inputs, int32_t out_map, int32_t list) {
            std::vector<GroupCatStep::Input> parts;
            for (const auto& [map, stored, channels] : inputs) parts.push_back({map, stored, channels});
            b.add_group_cat(name, per_word, std::move(parts), out_map, list);
          },
          py::arg("name"), py::kw_only(), py::arg("per_word"), py::arg("inputs"), py::arg("out_map"), py::arg("list"));
}

// kernel, stride, padding (top, left, bottom, right), dilation
cpu::PoolShape windows_of(std::pair<int, int> kernel, std::pair<int, int> stride, const std::array<int, 4>& padding,
                          std::pair<int, int> dilation) {
  cpu::PoolShape s{};
  s.kernel_h = kernel.first;
  s.kernel_w = kernel.second;
  s.stride_h = stride.first;
  s.stride_w = stride.second;
  s.pad_top = padding[0];
  s.pad_left = padding[1];
  s.pad_bottom = padding[2];
  s.pad_right = padding[3];
  s.dilation_h = dilation.first;
  s.dilation_w = dilation.second;
  return s;
}

void bind_bf16_steps(py::class_<PyPlanBuilder>& builder) {
  builder.def(
      "add_bf16_conv",
      [](PyPlanBuilder& b, const std::string& name, int32_t in_map, int32_t out_map, int32_t in_channels,
         const HalfArray& weights, int32_t model_inputs, bool depthwise, int32_t groups, bool adds,
         std::vector<int32_t> tap_offset, std::vector<int32_t> tap_column, int32_t bias, int32_t gate,
         bool gate_is_mask, int32_t shift, std::pair<float, float> inner, std::pair<float, float> outer,
         int32_t in_list, int32_t out_list, int32_t pass_list, int64_t winograd_scratch,
         std::tuple<int32_t, int32_t, int32_t> kept_input, int64_t macs_per_pair) {
        if (groups < 1 || weights.ndim() != 4 || weights.shape(1) != (depthwise ? 1 : in_channels / groups) ||
            weights.shape(2) * weights.shape(3) != static_cast<py::ssize_t>(tap_offset.size()))
          throw std::invalid_argument("plan: weights [K,C,R,S] expected");
        Bf16ConvParams p;
        p.in_map = in_map;
        p.out_map = out_map;
        p.in_channels = in_channels;
        p.out_channels = static_cast<int32_t>(weights.shape(0));
        p.model_inputs = model_inputs;
        p.depthwise = depthwise;
        p.groups = groups;
        p.adds = adds;
        p.tap_offset = std::move(tap_offset);
        p.tap_column = std::move(tap_column);
        p.weights = weights.data();
        p.bias = bias;
        p.gate = gate;
        p.gate_is_mask = gate_is_mask;
        p.shift = shift;
        p.inner = clamp_of(inner);
        p.outer = clamp_of(outer);
        p.in_list = in_list;
        p.out_list = out_list;
        p.pass_list = pass_list;
        p.winograd_scratch = winograd_scratch;
        p.kept_input = {std::get<0>(kept_input), std::get<1>(kept_input), std::get<2>(kept_input)};
        p.macs_per_pair = macs_per_pair;
        b.add_bf16_conv(name, std::move(p));
      },
      py::arg("name"), py::kw_only(), py::arg("in_map"), py::arg("out_map"), py::arg("in_channels"), py::arg("weights"),
      py::arg("model_inputs"), py::arg("depthwise"), py::arg("groups"), py::arg("adds"), py::arg("tap_offset"),
      py::arg("tap_column"), py::arg("bias"), py::arg("gate"), py::arg("gate_is_mask"), py::arg("shift"),
      py::arg("inner"), py::arg("outer"), py::arg("in_list"), py::arg("out_list"), py::arg("pass_list"),
      py::arg("winograd_scratch"), py::arg("kept_input"), py::arg("macs_per_pair"));
  builder
      .def(
          "add_bf16_pack",
          [](PyPlanBuilder& b, const std::string& name, int32_t in_map, int32_t input, int32_t out_map, int32_t list,
             int32_t in_live) { b.add_bf16_pack(name, {in_map, input, out_map, list, in_live}); },
          py::arg("name"), py::kw_only(), py::arg("in_map"), py::arg("input"), py::arg("out_map"), py::arg("list"),
          py::arg("in_live") = -1)
      .def("add_bf16_unpack", &PyPlanBuilder::add_bf16_unpack, py::arg("name"), py::kw_only(), py::arg("in_map"),
           py::arg("out_map"), py::arg("list"))
      .def(
          "add_bf16_reduce",
          [](PyPlanBuilder& b, const std::string& name, cpu::Reduce kind, int32_t in_map, int32_t out_flat,
             int32_t list, int32_t before) { b.add_bf16_reduce(name, {kind, in_map, out_flat, list, before}); },
          py::arg("name"), py::kw_only(), py::arg("kind"), py::arg("in_map"), py::arg("out_flat"), py::arg("list"),
          py::arg("before") = -1)
      .def(
          "add_bf16_linear",
          [](PyPlanBuilder& b, const std::string& name, int32_t in_flat, int32_t out_flat, const HalfArray& weights,
             int32_t bias, std::pair<float, float> clamp) {
            if (weights.ndim() != 2) throw std::invalid_argument("plan: weights [K,C] expected");
            b.add_bf16_linear(name, {b.hold(weights), bias, in_flat, out_flat, static_cast<int32_t>(weights.shape(1)),
                                     static_cast<int32_t>(weights.shape(0)), clamp_of(clamp)});
          },
          py::arg("name"), py::kw_only(), py::arg("in_flat"), py::arg("out_flat"), py::arg("weights"), py::arg("bias"),
          py::arg("clamp"))
      .def(
          "add_bf16_max_pool",
          [](PyPlanBuilder& b, const std::string& name, int32_t in_map, int32_t out_map, int32_t list,
             std::pair<int, int> kernel, std::pair<int, int> stride, std::array<int, 4> padding,
             std::pair<int, int> dilation) {
            b.add_bf16_max_pool(name, windows_of(kernel, stride, padding, dilation), in_map, out_map, list);
          },
          py::arg("name"), py::kw_only(), py::arg("in_map"), py::arg("out_map"), py::arg("list"), py::arg("kernel"),
          py::arg("stride"), py::arg("padding"), py::arg("dilation"));
}

}  // namespace
}  // namespace dynprune

PYBIND11_MODULE(_C, m) {
  using namespace dynprune;
  m.doc() = "CPU runtime of dynprune-rt.";
  m.def("available_isas", &available_isas);
  m.def("default_isa", [](const std::string& isa) { return std::string(kernel_table(isa).isa); }, py::arg("isa") = "");
  m.def(
      "int8_kernels", [](const std::string& isa) { return std::string(kernel_table(isa).quantized->isa); },
      py::arg("isa") = "");
  m.def(
      "bf16_kernels", [](const std::string& isa) { return std::string(kernel_table(isa).bf16->isa); },
      py::arg("isa") = "");
  m.def("run_flat_op", &run_flat_op, py::arg("op"), py::arg("inputs"), py::arg("out_shapes"), py::arg("ints"),
        py::arg("floats"), py::arg("scratch"), py::arg("isa") = "");
  m.def(
      "flat_ops",
      [](const std::string& isa) {
        const cpu::KernelTable& table = kernel_table(isa);
        std::vector<std::string> names;
        for (int32_t i = 0; i < table.n_flat_ops; ++i) names.emplace_back(table.flat_ops[i].name);
        return names;
      },
      py::arg("isa") = "");
  bind_enums(m);
  bind_builder(m);
  py::class_<PyExecutor>(m, "Executor")
      .def(py::init<std::shared_ptr<PyPlan>, int>(), py::arg("plan"), py::arg("threads"))
      .def("run", &PyExecutor::run, py::arg("inputs"), py::arg("outputs"), py::arg("batch"), py::arg("skip") = true,
           py::arg("poison") = false, py::arg("profile") = false)
      .def_property_readonly("steps", &PyExecutor::steps)
      .def_property_readonly("threads", &PyExecutor::threads)
      .def_property_readonly("isa", &PyExecutor::isa)
      .def_property_readonly("memory_bytes", &PyExecutor::memory_bytes);
}
