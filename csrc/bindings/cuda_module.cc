// The Python face of the CUDA kernels. Device memory, streams and lifetimes belong to the caller: every pointer is
// an integer, 0 = absent. A map is (data, sets or 0, channels, h, w). Built a second time, on the emulator, for tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "cuda/kernels.h"

#ifndef DYNPRUNE_CUDA_MODULE
#define DYNPRUNE_CUDA_MODULE _cu
#endif

namespace py = pybind11;

namespace dynprune::cuda {
namespace {

using Map = std::tuple<uintptr_t, uintptr_t, int, int, int>;
// bias, gate, shift, its stride, residual map (data 0 = none), inner low and high, outer low and high
using EpilogueArgs = std::tuple<uintptr_t, uintptr_t, uintptr_t, int, Map, float, float, float, float>;

template <typename T = void>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

MapRef map_ref(const Map& m) {
  const auto& [data, stored, channels, h, w] = m;
  MapRef map;
  map.data = pointer(data);
  map.stored = pointer(stored);
  map.channels = channels;
  map.h = h;
  map.w = w;
  return map;
}

Epilogue epilogue(const EpilogueArgs& args) {
  const auto& [bias, gate, shift, shift_stride, residual, inner_low, inner_high, outer_low, outer_high] = args;
  return Epilogue{pointer<const float>(bias),
                  pointer<const float>(gate),
                  pointer<const float>(shift),
                  shift_stride,
                  map_ref(residual),
                  inner_low,
                  inner_high,
                  outer_low,
                  outer_high};
}

void check(const char* kernel, const std::string& why) {
  if (!why.empty()) throw std::runtime_error(std::string(kernel) + ": " + why);
}

ConvParams conv_params(const Map& x, const Map& y, uintptr_t computed, uintptr_t weights, const EpilogueArgs& args,
                       const std::array<int, 8>& geometry, int layout, int groups, int batch) {
  const auto [kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w] = geometry;
  ConvParams p{};
  p.x = map_ref(x);
  p.y = map_ref(y);
  p.computed = pointer(computed);
  p.weights = pointer(weights);
  p.epilogue = epilogue(args);
  p.shape = ConvShape{p.x.h,    p.x.w,    p.y.h,    p.y.w,   p.x.channels, p.y.channels, kernel_h,
                      kernel_w, stride_h, stride_w, pad_top, pad_left,     dilation_h,   dilation_w};
  p.layout = static_cast<WeightLayout>(layout);
  p.groups = groups;
  p.batch = batch;
  p.segments = 1;
  return p;
}

GroupResults group_results(uintptr_t data, const std::vector<int>& kinds) {
  if (kinds.size() > kMaxFusedReductions) throw std::runtime_error("conv_gemm: too many reductions");
  GroupResults results;
  results.data = pointer<float>(data);
  results.count = static_cast<int>(kinds.size());
  for (size_t i = 0; i < kinds.size(); ++i) results.kinds[i] = static_cast<SpatialKind>(kinds[i]);
  return results;
}

}  // namespace

PYBIND11_MODULE(DYNPRUNE_CUDA_MODULE, m) {
  m.doc() = "CUDA kernels of dynprune-rt; importable without a driver or a GPU";
  m.attr("VERSION") = kKernelsVersion;
  m.attr("MAX_SORT_LENGTH") = kMaxSortLength;
  m.attr("MAX_CHANNELS") = kMaxChannels;
  m.attr("MAX_FUSED_REDUCTIONS") = kMaxFusedReductions;
  m.attr("GROUP_PIXELS") = kGroupPixels;

  m.def("probe", [] {
    const Probe p = probe();
    return std::make_tuple(p.devices, p.reason, p.runtime_version, p.driver_version, p.emulated);
  });
  m.def("device_facts", [](int device) {
    DeviceFacts facts;
    check("device_facts", device_facts(device, facts));
    return std::make_tuple(facts.name, facts.major, facts.minor, facts.multiprocessors);
  });
  m.def("set_record_bytes", &set_record_bytes);

  const py::call_guard<py::gil_scoped_release> released;
  m.def(
      "live_lists",
      [](uintptr_t mask, uintptr_t sets, int batch, int channels, uintptr_t stream) {
        check("live_lists",
              live_lists({pointer<const uint8_t>(mask), pointer(sets), batch, channels}, pointer(stream)));
      },
      released);
  const auto def_gemm = [&](const char* name, std::string (*call)(const ConvParams&, Element, int, void*)) {
    m.def(
        name,
        [name, call](const Map& x, const Map& y, uintptr_t computed, uintptr_t weights, const EpilogueArgs& args,
                     const std::array<int, 8>& geometry, int layout, int batch, int segments, uintptr_t partials,
                     uintptr_t results, const std::vector<int>& kinds, int element, int blocks, uintptr_t stream) {
          ConvParams p = conv_params(x, y, computed, weights, args, geometry, layout, 1, batch);
          p.segments = segments;
          p.partials = pointer<float>(partials);
          p.group_results = group_results(results, kinds);
          check(name, call(p, static_cast<Element>(element), blocks, pointer(stream)));
        },
        released);
  };
  def_gemm("conv_gemm", &conv_gemm);
  def_gemm("conv_gemm_finish", &conv_gemm_finish);
  m.def(
      "conv_direct",
      [](const Map& x, const Map& y, uintptr_t computed, uintptr_t weights, const EpilogueArgs& args,
         const std::array<int, 8>& geometry, int groups, int batch, int element, uintptr_t stream) {
        const ConvParams p = conv_params(x, y, computed, weights, args, geometry, 0, groups, batch);
        check("conv_direct", conv_direct(p, static_cast<Element>(element), pointer(stream)));
      },
      released);
  m.def(
      "pass_through",
      [](const Map& y, uintptr_t computed, const EpilogueArgs& args, int batch, int element, uintptr_t stream) {
        const PassThroughParams p{map_ref(y), pointer(computed), epilogue(args), batch};
        check("pass_through", pass_through(p, static_cast<Element>(element), pointer(stream)));
      },
      released);
  m.def(
      "pool2d",
      [](const Map& x, const Map& y, int kind, const std::array<int, 10>& window, bool count_include_pad, int divisor,
         bool adaptive, int batch, int element, uintptr_t stream) {
        const auto [kernel_h, kernel_w, stride_h, stride_w, top, left, bottom, right, dilation_h, dilation_w] = window;
        const PoolParams p{map_ref(x),
                           map_ref(y),
                           static_cast<PoolKind>(kind),
                           kernel_h,
                           kernel_w,
                           stride_h,
                           stride_w,
                           top,
                           left,
                           bottom,
                           right,
                           dilation_h,
                           dilation_w,
                           count_include_pad,
                           divisor,
                           adaptive,
                           batch};
        check("pool2d", pool2d(p, static_cast<Element>(element), pointer(stream)));
      },
      released);
  m.def(
      "spatial_reduce",
      [](const Map& x, uintptr_t y, int kind, uintptr_t results, uintptr_t computed, int batch, int element,
         uintptr_t stream) {
        const SpatialReduceParams p{map_ref(x),
                                    pointer<float>(y),
                                    static_cast<SpatialKind>(kind),
                                    pointer<const float>(results),
                                    pointer(computed),
                                    batch};
        check("spatial_reduce", spatial_reduce(p, static_cast<Element>(element), pointer(stream)));
      },
      released);
  m.def(
      "pack_map",
      [](const Map& map, uintptr_t planes, int batch, int element, uintptr_t stream) {
        const RepackParams p{map_ref(map), pointer<float>(planes), batch};
        check("pack_map", pack_map(p, static_cast<Element>(element), pointer(stream)));
      },
      released);
  m.def(
      "unpack_map",
      [](const Map& map, uintptr_t planes, int batch, int element, uintptr_t stream) {
        const RepackParams p{map_ref(map), pointer<float>(planes), batch};
        check("unpack_map", unpack_map(p, static_cast<Element>(element), pointer(stream)));
      },
      released);
  m.def(
      "linear",
      [](uintptr_t x, uintptr_t weights, uintptr_t bias, uintptr_t y, float low, float high, int rows, int features,
         int outputs, uintptr_t stream) {
        const LinearParams p{pointer<const float>(x),
                             pointer<const float>(weights),
                             pointer<const float>(bias),
                             pointer<float>(y),
                             low,
                             high,
                             rows,
                             features,
                             outputs};
        check("linear", linear(p, pointer(stream)));
      },
      released);
  m.def(
      "reduce",
      [](uintptr_t x, uintptr_t y, int kind, int outer, int length, int inner, uintptr_t stream) {
        const ReduceParams p{
            pointer<const float>(x), pointer<float>(y), static_cast<ReduceKind>(kind), outer, length, inner};
        check("reduce", reduce(p, pointer(stream)));
      },
      released);
  m.def(
      "sort",
      [](uintptr_t x, uintptr_t values, uintptr_t index, int outer, int length, int inner, int keep, bool descending,
         uintptr_t stream) {
        const SortParams p{pointer<const float>(x),
                           pointer<float>(values),
                           pointer<int64_t>(index),
                           outer,
                           length,
                           inner,
                           keep,
                           descending};
        check("sort", sort(p, pointer(stream)));
      },
      released);
}

}  // namespace dynprune::cuda
