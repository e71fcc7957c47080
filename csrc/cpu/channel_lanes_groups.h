// The weights of a group of output channels, stored or moved together, for the channel-lane convolution.
#pragma once

#include "channel_lanes_tiling.h"
#include "conv_epilogue.h"
#include "winograd_lanes.h"

namespace dynprune::cpu {
namespace {

DYNPRUNE_INLINE void fetch(const float* p) { __builtin_prefetch(p, 0, 2); }

// How many live inputs ahead of use their weights are fetched: about the latency of memory.
DYNPRUNE_INLINE int32_t fetch_distance(int32_t taps) { return ceil_div(16, taps); }

// The outputs of up to kMaxLaneBlocks blocks of lanes, and where their weights are.
struct ChannelGroup {
  int blocks;
  bool moved;                           // the weights of live inputs and outputs alone, in scratch
  const float* weight[kMaxLaneBlocks];  // row (input * taps + tap) is `step` floats further
  int64_t step;
  int stored_blocks;
  const float* stored[kMaxLaneBlocks];  // the first stored blocks that it takes weights from
  // Per lane; neutral values where the epilogue lacks the term or the lane has no output.
  alignas(64) float bias[kMaxLaneBlocks * kChannelBlock];
  alignas(64) float gate[kMaxLaneBlocks * kChannelBlock];
  alignas(64) float shift[kMaxLaneBlocks * kChannelBlock];
  float* output[kMaxLaneBlocks * kChannelBlock];  // null = none
  const float* residual[kMaxLaneBlocks * kChannelBlock];
};

// Floats of a block's stored weights, rows (input, tap) of 16.
int64_t block_floats(const StridedShape& shape) {
  return static_cast<int64_t>(shape.in_channels) * shape.taps * kChannelBlock;
}

int32_t block_of(const ConvCall& call, int32_t position) { return call.out_channel[position] / kChannelBlock; }

// No outputs in any lane.
void clear_lanes(ChannelGroup& group) {
  for (int i = 0; i < kMaxLaneBlocks * kChannelBlock; ++i) {
    group.output[i] = nullptr;
    group.bias[i] = group.shift[i] = 0.0f;
    group.gate[i] = 1.0f;
  }
}

// Output `at` of the call's list is in `lane`.
void set_lane(const ConvCall& call, int lane, int32_t at, ChannelGroup& group) {
  const ChannelEpilogue terms = channel_epilogue(call.epilogue, call.out_channel[at], at);
  group.bias[lane] = terms.bias;
  group.gate[lane] = terms.gate;
  group.shift[lane] = terms.shift;
  group.residual[lane] = terms.residual;
  group.output[lane] = call.output[at];
}

// Stored blocks of the live outputs from `first` on; returns how many.
int stored_blocks(const StridedShape& shape, const float* packed, const ConvCall& call, int32_t first,
                  const float** blocks) {
  int count = 0;
  for (int32_t i = first; i < call.n_out; ++i) {
    const float* block = packed + block_of(call, i) * block_floats(shape);
    if (count > 0 && blocks[count - 1] == block) continue;
    if (count == kMaxLaneBlocks) break;
    blocks[count++] = block;
  }
  return count;
}

// Lanes of `most` stored blocks as they are, from live output `first` on; returns the next output.
int32_t stored_group(const StridedShape& shape, const float* packed, const ConvCall& call, int32_t first, int most,
                     ChannelGroup& group) {
  group.step = kChannelBlock;
  group.moved = false;
  group.stored_blocks = stored_blocks(shape, packed, call, first, group.stored);
  group.blocks = 0;
  clear_lanes(group);
  int32_t end = first;
  while (end < call.n_out && group.blocks < most) {
    const int32_t block = block_of(call, end);
    group.weight[group.blocks] = packed + block * block_floats(shape);
    for (; end < call.n_out && block_of(call, end) == block; ++end) {
      set_lane(call, group.blocks * kChannelBlock + call.out_channel[end] % kChannelBlock, end, group);
    }
    ++group.blocks;
  }
  return end;
}

// Lanes of `most` blocks without gaps; move_weights has to fill the scratch. Returns the next output.
int32_t moved_group(const StridedShape& shape, const float* packed, const ConvCall& call, int32_t first, int most,
                    const float* scratch, ChannelGroup& group) {
  const int32_t end = call.n_out - first < most * kChannelBlock ? call.n_out : first + most * kChannelBlock;
  group.blocks = ceil_div(end - first, kChannelBlock);
  group.step = static_cast<int64_t>(group.blocks) * kChannelBlock;
  group.moved = true;
  group.stored_blocks = stored_blocks(shape, packed, call, first, group.stored);
  clear_lanes(group);
  for (int32_t i = first; i < end; ++i) set_lane(call, i - first, i, group);
  for (int b = 0; b < group.blocks; ++b) group.weight[b] = scratch + b * kChannelBlock;
  return end;
}

// Moves the weights of live outputs [first, last) and live inputs [i0, i1) together.
void move_weights(const StridedShape& shape, const float* packed, const ConvCall& call, int32_t first, int32_t last,
                  int32_t i0, int32_t i1, float* scratch) {
  // Live lanes out of one or two stored blocks: where half of the outputs are live, two fill one.
  struct Source {
    LaneChoice choice;
    const float *block, *second;
    int32_t count;
  } source[kMovedBlocks * kChannelBlock];
  const auto stored = [&](int32_t block) { return packed + block * block_floats(shape); };
  int sources = 0;
  for (int32_t k = first; k < last; ++sources) {
    const int32_t block = block_of(call, k);
    int32_t second = block, lanes[kLanes] = {}, count = 0;
    for (; k < last && count < kLanes; ++k) {
      const int32_t own = block_of(call, k);
      if (own != second && second != block) break;
      second = own;
      lanes[count++] = call.out_channel[k] % kLanes + (own == block ? 0 : kLanes);
    }
    source[sources] = {LaneChoice(lanes), stored(block), stored(second), count};
  }
  const int64_t step = static_cast<int64_t>(ceil_div(last - first, kChannelBlock)) * kChannelBlock;
  const int32_t distance = fetch_distance(shape.taps);
  for (int32_t i = i0; i < i1; ++i) {
    const int32_t later = call.in_channel[i + distance < call.n_in ? i + distance : call.n_in - 1];
    const int64_t gap = static_cast<int64_t>(later - call.in_channel[i]) * shape.taps * kChannelBlock;
    const int64_t at = static_cast<int64_t>(call.in_channel[i]) * shape.taps * kChannelBlock;
    for (int32_t t = 0; t < shape.taps; ++t, scratch += step) {
      // Whole vectors: what is written beyond the live lanes is overwritten by the next vector or row.
      float* to = scratch;
      for (int s = 0; s < sources; to += source[s++].count) {
        const float* a = source[s].block + at + t * kChannelBlock;
        const float* b = source[s].second + at + t * kChannelBlock;
        fetch(a + gap);
        fetch(b + gap);
        store(to, choose_lanes(load(a), load(b), source[s].choice));
      }
    }
  }
}

int32_t blocks_with_live(const ConvCall& call) {
  int32_t blocks = 0;
  for (int32_t i = 0; i < call.n_out; ++i) blocks += i == 0 || block_of(call, i) != block_of(call, i - 1);
  return blocks;
}

}  // namespace
}  // namespace dynprune::cpu
