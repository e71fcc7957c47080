// A plan: everything about a network that is fixed before the first image, in execution order.
//
// Built by the CPU lowering (dynprune_rt/backends/cpu/lowering.py) through PlanBuilder, read-only
// afterwards, shared by all threads. What changes per image lives in Context.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/packed_memory.h"
#include "core/thread_team.h"
#include "cpu/kernels.h"

namespace dynprune {

// A flat tensor of one image: in the arena, or a constant that the plan's owner keeps alive.
struct FlatRef {
  int64_t offset = -1;              // floats from the arena's start; -1 for a constant
  const float* constant = nullptr;  // null for an arena tensor
  std::vector<int64_t> shape;

  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

// A planar map: one arena offset per channel, of the plane's pixel (0,0).
struct MapRef {
  int32_t shape = -1;          // index into Plan::shapes
  std::vector<int64_t> plane;  // channels that are always zero point at the shape's zero plane
  int32_t channels() const { return static_cast<int32_t>(plane.size()); }
};

// Owns the store mask that the kernels' PlaneShape points to.
struct OwnedPlaneShape {
  cpu::PlaneShape view{};
  std::vector<uint16_t> store_mask;
};

// The channels that a step executes for one image, ascending (but see LiveListDesc::live_first).
struct LiveList {
  const int32_t* index;
  int32_t count;  // entries to execute
  int32_t live;   // entries that are live; smaller than count when skipping is off
};

// How a live list comes about: constant, or from masks (bool vectors stored as 0/1 floats) as
// include and not exclude. Mask -1 = absent.
struct LiveListDesc {
  int32_t capacity = 0;
  int32_t slot = 0;  // first entry of this list in Context's pool; constant lists use `constant`
  std::vector<int32_t> constant;
  bool is_constant = false;
  int32_t include = -1, exclude = -1;
  // With skipping off: the live channels first, then the others, so that packed maps keep their order.
  bool live_first = false;
};

// What one step did for one image; filled only while profiling.
struct StepRecord {
  int64_t nanoseconds = 0;
  int64_t macs = 0;
  int32_t live_in = 0, live_out = 0;
  const char* kernel = "";
};

// The transformed input of Winograd convolutions that read one map after the other, each map being the one before but
// for some channels: each convolution transforms those alone. All inputs are stored and live.
struct KeptInput {
  int32_t slot = -1;     // of Context::kept_inputs; -1 = none, the scratch is anyone's
  int32_t turn = 0;      // 0, 1, ... in order of execution
  int32_t changed = -1;  // list of the channels that differ from the map of the turn before; -1 for turn 0
};

// What a transformed input that Winograd convolutions share holds.
struct KeptInputState {
  int32_t turn = -1;  // the reader that transformed last; -1 = nothing to go on with
  int32_t bands = 0;  // that the map was cut into
};

// How a convolution was computed last, so that equal live counts need no second estimate.
struct AlgorithmChoice {
  int32_t live_in = -1, live_out = -1;
  const char* kernel = "";
  double cycles = 0;  // estimated
};

// One image in flight.
struct Context {
  float* arena = nullptr;  // pads are zero and stay zero
  LiveList* lists = nullptr;
  int32_t* list_pool = nullptr;
  const float** read_planes = nullptr;  // pointer tables for one kernel call
  const float** residual_planes = nullptr;
  float** write_planes = nullptr;
  KeptInputState* kept_inputs = nullptr;
  AlgorithmChoice* choices = nullptr;
  int32_t* channels = nullptr;           // renumbered channels of one group
  float* thread_scratch = nullptr;       // thread_scratch_size floats per rank
  const float* const* inputs = nullptr;  // this image of each graph input
  float* const* outputs = nullptr;
  bool skip = true;
  StepRecord* record = nullptr;  // of the running step; null unless profiling
};

struct Plan;

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const Plan& plan, Context& context, ThreadTeam& team) const = 0;
  std::string name;  // the layer in the user's model
  std::string op;
};

struct Plan {
  const cpu::KernelTable* kernels = nullptr;
  std::vector<std::unique_ptr<OwnedPlaneShape>> shapes;
  std::vector<int64_t> zero_plane;  // per shape
  std::vector<MapRef> maps;
  std::vector<FlatRef> flats;
  std::vector<LiveListDesc> lists;
  std::vector<std::unique_ptr<Step>> steps;
  PackedMemory packed;                             // weights as the kernels want them
  std::vector<int64_t> input_sizes, output_sizes;  // floats per image
  int64_t arena_size = 0;                          // floats
  int64_t thread_scratch_size = 0;                 // floats per thread
  int32_t max_channels = 1;
  int32_t list_pool_size = 0;
  int32_t kept_inputs = 0;
  int32_t choices = 0;  // convolutions that choose among algorithms

  const cpu::PlaneShape& shape_of(const MapRef& map) const { return shapes[static_cast<size_t>(map.shape)]->view; }
  const cpu::PlaneShape& shape_of(int32_t map) const { return shape_of(maps[static_cast<size_t>(map)]); }
  float* plane(const Context& context, int32_t map, int32_t channel) const {
    return context.arena + maps[static_cast<size_t>(map)].plane[static_cast<size_t>(channel)];
  }
  // The plane of an operand's channel, or a plane of zeros where `live_mask` (a flat bool [C], -1 = none)
  // says that the channel is not stored. With skipping off every channel that a computed mask governs
  // is stored; a constant mask always holds.
  const float* live_plane(const Context& context, int32_t map, int32_t channel, int32_t live_mask) const {
    if (live_mask >= 0) {
      const FlatRef& mask = flats[static_cast<size_t>(live_mask)];
      if ((context.skip || mask.constant) && flat(context, live_mask)[channel] == 0.0f)
        return context.arena + zero_plane[static_cast<size_t>(maps[static_cast<size_t>(map)].shape)];
    }
    return plane(context, map, channel);
  }
  float* flat(const Context& context, int32_t flat) const {
    const FlatRef& ref = flats[static_cast<size_t>(flat)];
    return ref.constant ? const_cast<float*>(ref.constant) : context.arena + ref.offset;
  }
  float* flat_or_null(const Context& context, int32_t index) const {
    return index < 0 ? nullptr : flat(context, index);
  }
};

}  // namespace dynprune
