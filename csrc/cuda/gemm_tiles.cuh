// The tiles of the tensor-core convolution: their size, how they are numbered, and what happens to a finished one.
//
// Per image: M = output pixels, N = computed outputs. Tiles are numbered image by image; in the dense layout M runs on
// from image to image, so that small maps fill their tiles.
#pragma once
#include "cuda/device.h"
#include "cuda/epilogue.cuh"
#include "cuda/spatial_reduction.cuh"

namespace dynprune::cuda {

constexpr int kTile = 64;  // pixels and outputs of a tile
constexpr int kGemmThreads = 128;
constexpr int kThreadSums = kTile * kTile / kGemmThreads;
// A tile's values as they were stored, kept in shared memory to be reduced: rows of so many floats, such that a warp
// that writes its fragments meets every bank twice at most, and one that reads columns once.
constexpr int kKeptPitch = kTile + 8;
constexpr size_t kKeptBytes = kTile * kKeptPitch * sizeof(float);

// Four warps share a tile, 32 x 32 each; a thread holds sums[i][j][h * 2 + e] of row 16 i + 8 h + lane / 4 and column
// 8 j + 2 (lane % 4) + e of its warp's part.
using Sums = float[2][4][4];

struct TileAt {
  int image, first_pixel, first_column;  // dense: image 0, pixels of the batch
};

// Rows of the GEMM that one numbering of pixels covers.
template <WeightLayout L>
__device__ __forceinline__ int gemm_rows(const ConvParams& p) {
  return p.shape.out_pixels() * (L == WeightLayout::kDense ? p.batch : 1);
}

// Columns of the GEMM for one image: outputs, or aligned groups of 8 outputs times 8.
template <WeightLayout L>
__device__ __forceinline__ int gemm_columns(const ConvParams& p, int image) {
  if (L == WeightLayout::kDense || !p.computed) return p.shape.outputs;
  const SetView set = set_view(p.computed, image, p.shape.outputs);
  return L == WeightLayout::kByInput ? set.chunk_count() * kChunk : set.count();
}

// Returns the number of tiles, and writes first[n] for every image n (not in the dense layout). All threads call it.
template <WeightLayout L>
__device__ __forceinline__ int number_tiles(const ConvParams& p, int* first) {
  const int row_tiles = ceil_div(gemm_rows<L>(p), kTile);
  if (L == WeightLayout::kDense) return row_tiles * ceil_div(p.shape.outputs, kTile);
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
  __syncthreads();
  return first[p.batch];
}

template <WeightLayout L>
__device__ __forceinline__ TileAt tile_at(const ConvParams& p, const int* first, int tile) {
  const int row_tiles = ceil_div(gemm_rows<L>(p), kTile);
  const TileOfImage at = L == WeightLayout::kDense ? TileOfImage{0, tile} : locate_tile(first, p.batch, tile);
  const int column_tile = at.tile / row_tiles;
  return TileAt{at.image, (at.tile - column_tile * row_tiles) * kTile, column_tile * kTile};
}

// The output of a column of one image's GEMM, or -1 if it is not to be computed.
template <WeightLayout L>
__device__ __forceinline__ int output_of(const ConvParams& p, int image, int columns, int column) {
  if (column >= columns) return -1;
  if (L == WeightLayout::kDense || !p.computed) return column;
  const SetView computed = set_view(p.computed, image, p.shape.outputs);
  if (L != WeightLayout::kByInput) return computed.index()[column];
  const int output = computed.chunk()[column / kChunk] * kChunk + column % kChunk;
  return output >= p.shape.outputs || computed.position()[output] == kAbsent ? -1 : output;
}

// Writes a tile's results. Two neighbouring channels go out as one store where they are neighbours in memory.
// `kept`, if not null, receives them as they were rounded.
template <typename T, WeightLayout L>
__device__ __forceinline__ void store_tile(const ConvParams& p, const TileAt& at, const Sums& sums, float* kept) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int warp_row = (warp & 1) * 32, warp_column = (warp >> 1) * 32;
  const int rows = gemm_rows<L>(p), columns = gemm_columns<L>(p, at.image), pixels = p.shape.out_pixels();
  const Epilogue& epilogue = p.epilogue;
  // Dense tiles may hold pixels of several images; most of their epilogues are the same for all.
  const bool one_for_all = L != WeightLayout::kDense ||
                           (!epilogue.gate && epilogue.shift_stride == 0 && !p.y.stored && !epilogue.residual.stored);
  int image[4], pixel[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = at.first_pixel + warp_row + r * 8 + (lane >> 2);
    image[r] = L == WeightLayout::kDense ? row / pixels : at.image;
    pixel[r] = row >= rows ? -1 : L == WeightLayout::kDense ? row - image[r] * pixels : row;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int column = at.first_column + warp_column + j * 8 + (lane & 3) * 2;
    const int output[2] = {output_of<L>(p, at.image, columns, column), output_of<L>(p, at.image, columns, column + 1)};
    ChannelEpilogue channel[2];
    const auto look_up = [&](int of_image) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        channel[e].out = kAbsent;
        if (output[e] >= 0) channel[e] = channel_epilogue(epilogue, p.y, of_image, output[e]);
      }
    };
    if (one_for_all) look_up(at.image);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (pixel[r] < 0) continue;
      if (!one_for_all) look_up(image[r]);
      T* const row = row_of<T>(p.y, image[r], pixel[r]);
      T result[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (channel[e].out == kAbsent) continue;
        const float v = gated(epilogue, channel[e], sums[r >> 1][j][(r & 1) * 2 + e]);
        result[e] = from_float<T>(finish<T>(epilogue, channel[e], p.y, image[r], pixel[r], v));
        if (kept) {
          const int row_of_tile = warp_row + r * 8 + (lane >> 2), column_of_tile = warp_column + j * 8 + (lane & 3) * 2;
          kept[row_of_tile * kKeptPitch + column_of_tile + e] = to_float(result[e]);
        }
      }
      if (channel[0].out != kAbsent && channel[1].out == channel[0].out + 1 && channel[0].out % 2 == 0) {
        *reinterpret_cast<Pair<T>*>(row + channel[0].out) = Pair<T>{result[0], result[1]};
        continue;
      }
      if (channel[0].out != kAbsent) row[channel[0].out] = result[0];
      if (channel[1].out != kAbsent) row[channel[1].out] = result[1];
    }
  }
}

// Reduces a kept tile: every thread one column of one group of pixels.
template <WeightLayout L>
__device__ __forceinline__ void reduce_tile(const ConvParams& p, const TileAt& at, const float* kept) {
  static_assert(kGemmThreads == kTile * (kTile / kGroupPixels), "one result per thread");
  const int column = threadIdx.x % kTile, part = threadIdx.x / kTile * kGroupPixels, pixels = p.shape.out_pixels();
  const int first_row = at.first_pixel + part, left = gemm_rows<L>(p) - first_row;
  const int output = output_of<L>(p, at.image, gemm_columns<L>(p, at.image), at.first_column + column);
  if (left <= 0 || output < 0) return;
  const int image = L == WeightLayout::kDense ? first_row / pixels : at.image;
  if (place_of(p.y, image, output) == kAbsent) return;
  const int group = (L == WeightLayout::kDense ? first_row - image * pixels : first_row) / kGroupPixels;
  for (int i = 0; i < p.group_results.count; ++i) {
    const size_t line = (static_cast<size_t>(i) * p.batch + image) * group_count(pixels) + group;
    p.group_results.data[line * p.shape.outputs + output] = reduce_group(
        Reduction(p.group_results.kinds[i]), left, [&](int row) { return kept[(part + row) * kKeptPitch + column]; });
  }
}

// Stores a tile, and makes the reductions of it that are wanted. `kept`: shared memory of kKeptBytes that nobody writes
// meanwhile. All threads call it.
template <typename T, WeightLayout L>
__device__ __forceinline__ void finish_tile(const ConvParams& p, const TileAt& at, const Sums& sums, void* kept) {
  if (p.group_results.count == 0) {
    store_tile<T, L>(p, at, sums, nullptr);
    return;
  }
  __syncthreads();  // all threads are done with what lay there
  store_tile<T, L>(p, at, sums, static_cast<float*>(kept));
  __syncthreads();
  reduce_tile<L>(p, at, static_cast<const float*>(kept));
}

// Where a thread's sums of one segment of a tile lie among the partial sums; they are kGemmThreads floats apart.
__device__ __forceinline__ float* partial_sums(const ConvParams& p, int tile, int segment) {
  const size_t of_tile = static_cast<size_t>(tile) * p.segments + segment;
  return p.partials + of_tile * (kTile * kTile) + threadIdx.x;
}

// Shared memory of the kernel below: the first tile of every image, then a kept tile.
DYNPRUNE_HD constexpr size_t finish_kept_offset(int batch) { return static_cast<size_t>(round_up(batch + 1, 4)) * 4; }

// Adds the segments up in order and finishes the tiles; with the same grid numbering as conv_gemm_kernel.
template <typename T, WeightLayout L>
__global__ void __launch_bounds__(kGemmThreads, 4) conv_gemm_finish_kernel(const __grid_constant__ ConvParams p) {
  int* const first = reinterpret_cast<int*>(shared_memory());
  const int total = number_tiles<L>(p, first);
  for (int tile = blockIdx.x; tile < total; tile += gridDim.x) {
    Sums sums;
#pragma unroll
    for (int i = 0; i < kThreadSums; ++i) sums[i >> 4][i >> 2 & 3][i & 3] = partial_sums(p, tile, 0)[i * kGemmThreads];
    for (int segment = 1; segment < p.segments; ++segment) {
      const float* const partial = partial_sums(p, tile, segment);
#pragma unroll
      for (int i = 0; i < kThreadSums; ++i) sums[i >> 4][i >> 2 & 3][i & 3] += partial[i * kGemmThreads];
    }
    finish_tile<T, L>(p, tile_at<L>(p, first, tile), sums, shared_memory() + finish_kept_offset(p.batch));
  }
}

}  // namespace dynprune::cuda
