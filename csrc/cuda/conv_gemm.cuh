// Convolution as an implicit GEMM on tensor cores that executes live channels only.
//
// Per image: M = output pixels, N = computed outputs, K = (tap, chunk of 8 stored inputs), in that order. A block
// works on tiles of 64 x 64 and takes every gridDim.x-th tile of the batch, so that the grid is fixed while the number
// of tiles follows from the sets. Four warps share a tile, 32 x 32 each; K advances by 32 through kStages buffers.
//
// Preconditions: groups == 1; y and x of 16-bit elements T; kByOutput needs an input that stores all channels.
#pragma once
#include "cuda/device.h"
#include "cuda/epilogue.cuh"

namespace dynprune::cuda {

constexpr int kTile = 64;       // pixels and outputs of a tile
constexpr int kStepChunks = 4;  // chunks of K per step
constexpr int kStages = 4;      // steps in flight
constexpr int kGemmThreads = 128;
constexpr int kStageUnits = kTile * kStepChunks;  // 16-byte units of one operand in one stage

// Shared memory: the stages of A, those of B, the image's stored channels, the first tile of every image.
DYNPRUNE_HD constexpr size_t gemm_shared_bytes(int channels, int batch) {
  return static_cast<size_t>(2 * kStages * kStageUnits) * 16 + static_cast<size_t>(set_pitch(channels)) * 2 +
         static_cast<size_t>(batch + 1) * 4;
}

// Columns of the GEMM for one image: outputs, or aligned groups of 8 outputs times 8.
template <WeightLayout L>
__device__ __forceinline__ int gemm_columns(const ConvParams& p, int image) {
  if (!p.computed) return p.shape.outputs;
  const SetView set = set_view(p.computed, image, p.shape.outputs);
  return L == WeightLayout::kByInput ? set.chunk_count() * kChunk : set.count();
}

// first[n] for every image: a scan by the block's first warp.
template <WeightLayout L>
__device__ __forceinline__ void number_tiles(const ConvParams& p, int row_tiles, int* first) {
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x;
    int base = 0;
    for (int start = 0; start < p.batch; start += 32) {
      const int image = start + lane;
      int tiles = image < p.batch ? row_tiles * ceil_div(gemm_columns<L>(p, image), kTile) : 0;
      for (int step = 1; step < 32; step <<= 1) {
        const int before = __shfl_up_sync(kWarp, tiles, step);
        if (lane >= step) tiles += before;
      }
      if (image < p.batch) first[image + 1] = base + tiles;
      base += __shfl_sync(kWarp, tiles, 31);
    }
    if (lane == 0) first[0] = 0;
  }
}

template <typename T, WeightLayout L>
__global__ void __launch_bounds__(kGemmThreads, 4) conv_gemm_kernel(const __grid_constant__ ConvParams p) {
  constexpr bool kRowsOfInputs = L == WeightLayout::kByOutput;
  const ConvShape& s = p.shape;
  uint4* const a_stages = reinterpret_cast<uint4*>(shared_memory());
  uint4* const b_stages = a_stages + kStages * kStageUnits;
  uint16_t* const channel_list = reinterpret_cast<uint16_t*>(b_stages + kStages * kStageUnits);
  int* const first = reinterpret_cast<int*>(channel_list + set_pitch(s.channels));

  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int warp_row = (warp & 1) * 32, warp_column = (warp >> 1) * 32;
  const int pixels = s.out_pixels(), row_tiles = ceil_div(pixels, kTile);
  const int out_pitch = round_up(s.outputs, kChunk), in_pitch = p.x.pitch();
  const T* const weights = static_cast<const T*>(p.weights);

  number_tiles<L>(p, row_tiles, first);
  __syncthreads();
  const int total = first[p.batch];
  for (int tile = blockIdx.x; tile < total; tile += gridDim.x) {
    const TileOfImage at = locate_tile(first, p.batch, tile);
    const int image = at.image, column_tile = at.tile / row_tiles;
    const int first_pixel = (at.tile - column_tile * row_tiles) * kTile, first_column = column_tile * kTile;
    const int columns = gemm_columns<L>(p, image);
    const SetView computed = set_view(p.computed, image, s.outputs);  // not read where p.computed is null

    const SetView stored = set_view(p.x.stored, image, s.channels);
    const int count = p.x.stored ? stored.count() : s.channels;
    const int chunks = ceil_div(count, kChunk), k_chunks = s.taps() * chunks, steps = ceil_div(k_chunks, kStepChunks);
    if (!kRowsOfInputs) {
      __syncthreads();  // all threads are done with the list of the previous tile
      for (int i = thread; i < chunks * kChunk; i += kGemmThreads) {
        channel_list[i] = p.x.stored ? stored.index()[i] : static_cast<uint16_t>(i < s.channels ? i : s.channels);
      }
    }
    __syncthreads();  // and with the stages

    // A: this thread copies one chunk of two pixels per step.
    const int a_unit = thread & 3, a_row = thread >> 2;
    KWalker a_walker = k_walker(a_unit, chunks, s.kernel_h, s.kernel_w);
    int top[2], left[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pixel = first_pixel + a_row + i * 32, oy = pixel / s.out_w, ox = pixel - oy * s.out_w;
      top[i] = pixel < pixels ? oy * s.stride_h - s.pad_top : -(1 << 28);  // below every map: reads as padding
      left[i] = ox * s.stride_w - s.pad_left;
    }
    const T* const x = row_of<T>(p.x, image, 0);

    // B by input: one unit of 8 outputs for two of the step's 32 rows. B by output: one chunk for two outputs.
    KWalker b_walker[2];
    int b_unit = 0, b_source[2] = {-1, -1};  // first output of the unit; or the outputs whose rows are read
    if (L == WeightLayout::kByInput) {
      b_unit = thread & 7;
      const int column = first_column + b_unit * kChunk;
      if (column < columns) b_source[0] = p.computed ? computed.chunk()[column / kChunk] * kChunk : column;
#pragma unroll
      for (int i = 0; i < 2; ++i) b_walker[i] = k_walker((thread >> 6) + 2 * i, chunks, s.kernel_h, s.kernel_w);
    } else {
      // By output: columns thread / 4 and 32 more. Two-sided: columns lane and lane + 32, chunk = warp.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = first_column + (kRowsOfInputs ? thread >> 2 : lane) + i * 32;
        if (column < columns) b_source[i] = p.computed ? computed.index()[column] : column;
      }
      b_walker[0] = k_walker(kRowsOfInputs ? a_unit : warp, chunks, s.kernel_h, s.kernel_w);
    }

    uint16_t gathered[2][kChunk];  // two-sided: on the way from global to shared memory

    auto copy_a = [&](int stage) {
      const int bytes = a_walker.index < k_chunks ? chunk_bytes(a_walker.chunk, count) : 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int iy = top[i] + a_walker.tap_y * s.dilation_h, ix = left[i] + a_walker.tap_x * s.dilation_w;
        const bool inside = bytes > 0 && static_cast<unsigned>(iy) < static_cast<unsigned>(s.in_h) &&
                            static_cast<unsigned>(ix) < static_cast<unsigned>(s.in_w);
        const T* from = inside ? x + static_cast<size_t>(iy * s.in_w + ix) * in_pitch + a_walker.chunk * kChunk : x;
        copy16_async(a_stages + stage * kStageUnits + swizzle4(a_row + i * 32, a_unit), from, inside ? bytes : 0);
      }
      a_walker = advance(a_walker, kStepChunks, chunks, s.kernel_w);
    };
    auto copy_b = [&](int stage) {
      uint4* const to = b_stages + stage * kStageUnits;
      if (L == WeightLayout::kByInput) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const KWalker& w = b_walker[i];
          const int row = (thread >> 3) + i * 16;
          const bool wanted = w.index < k_chunks && b_source[0] >= 0;
          const T* from = weights;
          if (wanted) {
            const int channel = channel_list[w.chunk * kChunk + (row & 7)];
            from += static_cast<size_t>(w.tap(s.kernel_w) * (s.channels + 1) + channel) * out_pitch + b_source[0];
          }
          copy16_async(to + swizzle8(row, b_unit), from, wanted ? 16 : 0);
          b_walker[i] = advance(w, kStepChunks, chunks, s.kernel_w);
        }
      } else if (kRowsOfInputs) {
        const KWalker& w = b_walker[0];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool wanted = w.index < k_chunks && b_source[i] >= 0;
          const T* from = weights;
          if (wanted) from += weight_by_output(s, b_source[i], w.tap(s.kernel_w), w.chunk * kChunk);
          copy16_async(to + swizzle4((thread >> 2) + i * 32, a_unit), from, wanted ? 16 : 0);
        }
        b_walker[0] = advance(w, kStepChunks, chunks, s.kernel_w);
      }
    };
    auto gather_b = [&]() {
      const KWalker& w = b_walker[0];
      const bool wanted = w.index < k_chunks;
      const uint16_t* rows = reinterpret_cast<const uint16_t*>(weights) +
                             static_cast<size_t>(w.tap(s.kernel_w)) * (s.channels + 1) * out_pitch;
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        const uint16_t* row = rows + (wanted ? static_cast<size_t>(channel_list[w.chunk * kChunk + e]) * out_pitch : 0);
#pragma unroll
        for (int i = 0; i < 2; ++i) gathered[i][e] = wanted && b_source[i] >= 0 ? row[b_source[i]] : uint16_t{0};
      }
      b_walker[0] = advance(w, kStepChunks, chunks, s.kernel_w);
    };
    auto store_gathered = [&](int stage) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint16_t (&g)[kChunk] = gathered[i];
        b_stages[stage * kStageUnits + swizzle4(lane + i * 32, warp)] =
            uint4{bits(g[0], g[1]), bits(g[2], g[3]), bits(g[4], g[5]), bits(g[6], g[7])};
      }
    };

    float sums[2][4][4] = {};
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < steps) {
        copy_a(i);
        copy_b(i);
        if (L == WeightLayout::kTwoSided) {
          gather_b();
          store_gathered(i);
        }
      }
      commit_copies();  // also when empty: the count of groups says which step has arrived
    }
    for (int step = 0; step < steps; ++step) {
      wait_copies<kStages - 2>();
      __syncthreads();
      const int ahead = step + kStages - 1;
      if (ahead < steps) {
        copy_a(ahead % kStages);
        copy_b(ahead % kStages);
        if (L == WeightLayout::kTwoSided) gather_b();
      }
      commit_copies();
      const uint4* const a_stage = a_stages + step % kStages * kStageUnits;
      const uint4* const b_stage = b_stages + step % kStages * kStageUnits;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[2][4], b[4][2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          load_matrices(a[i], a_stage + swizzle4(warp_row + i * 16 + (lane & 15), half * 2 + (lane >> 4)));
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          uint32_t r[4];
          if (L == WeightLayout::kByInput) {
            load_matrices_transposed(
                r, b_stage + swizzle8(half * 16 + (lane & 15), warp_column / kChunk + j * 2 + (lane >> 4)));
          } else {
            load_matrices(r, b_stage + swizzle4(warp_column + j * 16 + (lane & 7) + ((lane >> 4) << 3),
                                                half * 2 + ((lane >> 3) & 1)));
          }
          b[2 * j][0] = r[0];
          b[2 * j][1] = r[1];
          b[2 * j + 1][0] = r[2];
          b[2 * j + 1][1] = r[3];
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply_accumulate<T>(sums[i][j], a[i], b[j][0], b[j][1]);
        }
      }
      // Nobody reads this stage before the barrier of the next step.
      if (L == WeightLayout::kTwoSided && ahead < steps) store_gathered(ahead % kStages);
    }
    wait_copies<0>();

#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = first_column + warp_column + j * 8 + (lane & 3) * 2;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        int output = column + e;
        if (output >= columns) continue;
        if (p.computed) {
          output = L == WeightLayout::kByInput ? computed.chunk()[output / kChunk] * kChunk + output % kChunk
                                               : computed.index()[output];
          if (L == WeightLayout::kByInput && (output >= s.outputs || computed.position()[output] == kAbsent)) continue;
        }
        const ChannelEpilogue channel = channel_epilogue(p.epilogue, p.y, image, output);
        if (channel.out == kAbsent) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int pixel = first_pixel + warp_row + i * 16 + h * 8 + (lane >> 2);
            if (pixel >= pixels) continue;
            const float v = gated(p.epilogue, channel, sums[i][j][h * 2 + e]);
            row_of<T>(p.y, image, pixel)[channel.out] =
                from_float<T>(finish<T>(p.epilogue, channel, p.y, image, pixel, v));
          }
        }
      }
    }
  }
}

}  // namespace dynprune::cuda
