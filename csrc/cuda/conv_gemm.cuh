// Convolution as an implicit GEMM on tensor cores that executes live channels only.
//
// K = (tap, chunk of 16 bytes of stored inputs), in that order; it advances by kStepChunks chunks through kStages
// buffers and is cut into segments (kernels.h). A block takes every gridDim.x-th tile (or segment of a tile) of the
// batch, so that the grid is fixed while the number of tiles follows from the sets.
//
// Preconditions: groups == 1; y and x of elements T; kByOutput and kDense need an input that stores all channels,
// kDense a computed of null; segments >= 1.
#pragma once
#include "cuda/gemm_tiles.cuh"

namespace dynprune::cuda {

constexpr int kStepChunks = 4;                    // chunks of K per step
constexpr int kStages = 4;                        // steps in flight
constexpr int kStageUnits = kTile * kStepChunks;  // 16-byte units of one operand in one stage

static_assert(kKeptBytes <= 2 * kStages * kStageUnits * 16, "a kept tile lies over the stages");

// Shared memory: the stages of A, those of B, the image's stored channels, the first tile of every image; where a block
// computes several segments also the sums of those before.
DYNPRUNE_HD constexpr size_t gemm_totals_offset(int channels, int batch) {
  return static_cast<size_t>(2 * kStages * kStageUnits) * 16 + static_cast<size_t>(set_pitch(channels)) * 2 +
         static_cast<size_t>(round_up(batch + 1, 4)) * 4;
}
DYNPRUNE_HD constexpr size_t gemm_shared_bytes(int channels, int batch, bool totals) {
  return gemm_totals_offset(channels, batch) + (totals ? kTile * kTile * sizeof(float) : 0);
}

// Blocks that share a multiprocessor. The compiler for sm_120 needs a few registers more than 128 where rows of outputs
// are gathered, and would spill.
template <typename T, WeightLayout L>
constexpr int gemm_blocks_per_multiprocessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  if (L == WeightLayout::kByInput) return 3;
#endif
  return sizeof(T) == 2 ? 4 : 3;
}

template <typename T, WeightLayout L>
__global__ void __launch_bounds__(kGemmThreads, gemm_blocks_per_multiprocessor<T, L>())
    conv_gemm_kernel(const __grid_constant__ ConvParams p) {
  constexpr bool kDense = L == WeightLayout::kDense, kRowsOfInputs = L == WeightLayout::kByOutput;
  constexpr bool kRowsOfOutputs = kDense || L == WeightLayout::kByInput;
  constexpr int kUnit = 16 / sizeof(T);     // elements of a chunk
  constexpr int kRowUnits = kTile / kUnit;  // chunks of a row of outputs
  constexpr int kRowStep = kGemmThreads / kRowUnits;
  const ConvShape& s = p.shape;
  uint4* const a_stages = reinterpret_cast<uint4*>(shared_memory());
  uint4* const b_stages = a_stages + kStages * kStageUnits;
  uint16_t* const channel_list = reinterpret_cast<uint16_t*>(b_stages + kStages * kStageUnits);
  int* const first = reinterpret_cast<int*>(channel_list + set_pitch(s.channels));
  float* const totals =
      reinterpret_cast<float*>(shared_memory() + gemm_totals_offset(s.channels, p.batch)) + threadIdx.x;

  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int warp_row = (warp & 1) * 32, warp_column = (warp >> 1) * 32;
  const int rows = gemm_rows<L>(p), pixels = s.out_pixels();
  const int out_pitch = round_up(s.outputs, kChunk), in_pitch = p.x.pitch();
  const T* const weights = static_cast<const T*>(p.weights);

  const int total = number_tiles<L>(p, first), parts = p.partials ? p.segments : 1;
  for (int work = blockIdx.x; work < total * parts; work += gridDim.x) {
    const int tile = work / parts;
    const TileAt at = tile_at<L>(p, first, tile);
    const int image = at.image, columns = gemm_columns<L>(p, image);
    const SetView computed = set_view(p.computed, image, s.outputs);  // not read where p.computed is null

    const SetView stored = set_view(p.x.stored, image, s.channels);
    const int count = !kDense && p.x.stored ? stored.count() : s.channels;
    const int chunks = ceil_div(count, kUnit), k_chunks = s.taps() * chunks, steps = ceil_div(k_chunks, kStepChunks);
    int segment = p.partials ? work - tile * parts : 0;
    const int last_segment = p.partials ? segment : p.segments - 1;
    const int k_begin = segment_begin(segment, p.segments, steps) * kStepChunks;
    if (!kDense && !kRowsOfInputs) {
      __syncthreads();  // all threads are done with the list of the previous tile
      for (int i = thread; i < chunks * kUnit; i += kGemmThreads) {
        channel_list[i] = p.x.stored ? stored.index()[i] : static_cast<uint16_t>(i < s.channels ? i : s.channels);
      }
    }

    // A: this thread copies one chunk of two pixels per step.
    const int a_unit = thread & 3, a_row = thread >> 2;
    KWalker a_walker = k_walker(k_begin + a_unit, chunks, s.kernel_h, s.kernel_w);
    int top[2], left[2];
    const T* x[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = at.first_pixel + a_row + i * 32, of_image = kDense ? row / pixels : image;
      const int pixel = kDense ? row - of_image * pixels : row, oy = pixel / s.out_w, ox = pixel - oy * s.out_w;
      top[i] = row < rows ? oy * s.stride_h - s.pad_top : -(1 << 28);  // below every map: reads as padding
      left[i] = ox * s.stride_w - s.pad_left;
      x[i] = row_of<T>(p.x, row < rows ? of_image : 0, 0);
    }

    // B by input: one unit of outputs for two of the step's rows. B by output: one chunk for two outputs.
    KWalker b_walker[2];
    int b_unit = 0, b_source[2] = {-1, -1};  // first output of the unit; or the outputs whose rows are read
    if (kRowsOfOutputs) {
      b_unit = thread % kRowUnits;
      const int column = at.first_column + b_unit * kUnit;
      if (column < columns) {
        const bool gathered = !kDense && p.computed;
        b_source[0] = gathered ? computed.chunk()[column / kChunk] * kChunk + column % kChunk : column;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        b_walker[i] = k_walker(k_begin + (thread >> 6) + 2 * i, chunks, s.kernel_h, s.kernel_w);
      }
    } else {
      // By output: columns thread / 4 and 32 more. Two-sided: columns lane and lane + 32, chunk = warp.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = at.first_column + (kRowsOfInputs ? thread >> 2 : lane) + i * 32;
        if (column < columns) b_source[i] = p.computed ? computed.index()[column] : column;
      }
      b_walker[0] = k_walker(k_begin + (kRowsOfInputs ? a_unit : warp), chunks, s.kernel_h, s.kernel_w);
    }

    T gathered[2][kUnit];  // two-sided: on the way from global to shared memory

    auto copy_a = [&](int stage) {
      const int bytes = a_walker.index < k_chunks ? chunk_bytes(a_walker.chunk, count, sizeof(T)) : 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int iy = top[i] + a_walker.tap_y * s.dilation_h, ix = left[i] + a_walker.tap_x * s.dilation_w;
        const bool inside = bytes > 0 && static_cast<unsigned>(iy) < static_cast<unsigned>(s.in_h) &&
                            static_cast<unsigned>(ix) < static_cast<unsigned>(s.in_w);
        const size_t offset = static_cast<size_t>(iy * s.in_w + ix) * in_pitch + a_walker.chunk * kUnit;
        const T* from = inside ? x[i] + offset : x[i];
        copy16_async(a_stages + stage * kStageUnits + swizzle4(a_row + i * 32, a_unit), from, inside ? bytes : 0);
      }
      a_walker = advance(a_walker, kStepChunks, chunks, s.kernel_w);
    };
    auto copy_b = [&](int stage) {
      uint4* const to = b_stages + stage * kStageUnits;
      if (kRowsOfOutputs) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const KWalker& w = b_walker[i];
          const int row = thread / kRowUnits + i * kRowStep;
          const bool wanted = w.index < k_chunks && b_source[0] >= 0;
          const T* from = weights;
          if (wanted) {
            const int place = w.chunk * kUnit + row % kUnit;
            const int channel = kDense ? (place < s.channels ? place : s.channels) : channel_list[place];
            from += static_cast<size_t>(w.tap(s.kernel_w) * (s.channels + 1) + channel) * out_pitch + b_source[0];
          }
          copy16_async(to + (sizeof(T) == 2 ? swizzle8(row, b_unit) : swizzle16(row, b_unit)), from, wanted ? 16 : 0);
          b_walker[i] = advance(w, kStepChunks, chunks, s.kernel_w);
        }
      } else if (kRowsOfInputs) {
        const KWalker& w = b_walker[0];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool wanted = w.index < k_chunks && b_source[i] >= 0;
          const T* from = weights;
          if (wanted) from += weight_by_output(s, b_source[i], w.tap(s.kernel_w), w.chunk * kUnit);
          copy16_async(to + swizzle4((thread >> 2) + i * 32, a_unit), from, wanted ? 16 : 0);
        }
        b_walker[0] = advance(w, kStepChunks, chunks, s.kernel_w);
      }
    };
    auto gather_b = [&]() {
      const KWalker& w = b_walker[0];
      const bool wanted = w.index < k_chunks;
      const T* from = weights + static_cast<size_t>(w.tap(s.kernel_w)) * (s.channels + 1) * out_pitch;
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        const T* row = from + (wanted ? static_cast<size_t>(channel_list[w.chunk * kUnit + e]) * out_pitch : 0);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          gathered[i][e] = wanted && b_source[i] >= 0 ? row[b_source[i]] : from_float<T>(0.0f);
      }
      b_walker[0] = advance(w, kStepChunks, chunks, s.kernel_w);
    };
    auto store_gathered = [&](int stage) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        b_stages[stage * kStageUnits + swizzle4(lane + i * 32, warp)] = packed(gathered[i]);
      }
    };

    for (;; ++segment) {
      const int begin = segment_begin(segment, p.segments, steps);
      const int segment_steps = segment_begin(segment + 1, p.segments, steps) - begin;
      __syncthreads();  // all threads are done with the stages, and the list of channels is complete
      Sums sums = {};
#pragma unroll
      for (int i = 0; i < kStages - 1; ++i) {
        if (i < segment_steps) {
          copy_a(i);
          copy_b(i);
          if (L == WeightLayout::kTwoSided) {
            gather_b();
            store_gathered(i);
          }
        }
        commit_copies();  // also when empty: the count of groups says which step has arrived
      }
      for (int step = 0; step < segment_steps; ++step) {
        wait_copies<kStages - 2>();
        __syncthreads();
        const int ahead = step + kStages - 1;
        if (ahead < segment_steps) {
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
#pragma unroll
            for (int e = 0; e < 4; ++e) a[i][e] = operand<T>(a[i][e]);
          }
          if (kRowsOfOutputs && sizeof(T) == 4) {
            // Rows of outputs stand across the fragments' columns, and matrix loads transpose 16-bit elements only.
            const uint32_t* const words = reinterpret_cast<const uint32_t*>(b_stage);
            const int row = half * 8 + (lane & 3);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int column = warp_column + j * 8 + (lane >> 2);
              b[j][0] = words[swizzle16(row, column >> 2) * 4 + (column & 3)];
              b[j][1] = words[swizzle16(row + 4, column >> 2) * 4 + (column & 3)];
            }
          } else {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              uint32_t r[4];
              if (kRowsOfOutputs) {
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
          }
#pragma unroll
          for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) multiply_accumulate<T>(sums[i][j], a[i], b[j][0], b[j][1]);
          }
        }
        // Nobody reads this stage before the barrier of the next step.
        if (L == WeightLayout::kTwoSided && ahead < segment_steps) store_gathered(ahead % kStages);
      }
      wait_copies<0>();

      if (p.partials) {
        float* const partial = partial_sums(p, tile, segment);
#pragma unroll
        for (int i = 0; i < kThreadSums; ++i) partial[i * kGemmThreads] = sums[i >> 4][i >> 2 & 3][i & 3];
        break;
      }
      if (segment > 0) {
#pragma unroll
        for (int i = 0; i < kThreadSums; ++i) {
          float& sum = sums[i >> 4][i >> 2 & 3][i & 3];
          sum = totals[i * kGemmThreads] + sum;
        }
      }
      if (segment == last_segment) {
        finish_tile<T, L>(p, at, sums, shared_memory());  // over the stages
        break;
      }
#pragma unroll
      for (int i = 0; i < kThreadSums; ++i) totals[i * kGemmThreads] = sums[i >> 4][i >> 2 & 3][i & 3];
    }
  }
}

}  // namespace dynprune::cuda
