// Index arithmetic of the CUDA kernels, as constexpr functions: tested on the host against a plain convolution.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define DYNPRUNE_HD __host__ __device__ __forceinline__
#else
#define DYNPRUNE_HD inline
#endif

namespace dynprune::cuda {

// Channels in a group: rows of channels and of weights are padded to groups, and outputs are picked by group. A group
// of 16-bit elements is the 16 bytes that one asynchronous copy moves; one of fp32 is two copies.
constexpr int kChunk = 8;
// Position of a channel that a map does not store.
constexpr unsigned kAbsent = 0xFFFF;
// Channel numbers and positions are 16 bit; the last value is kAbsent.
constexpr int kMaxChannels = 0xFFFE;
// Pixels of an image whose values are reduced together (spatial_reduction.cuh).
constexpr int kGroupPixels = 32;

DYNPRUNE_HD constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
DYNPRUNE_HD constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

struct ConvShape {
  int in_h, in_w, out_h, out_w;
  int channels, outputs;
  int kernel_h, kernel_w;
  int stride_h, stride_w;
  int pad_top, pad_left;
  int dilation_h, dilation_w;

  DYNPRUNE_HD constexpr int taps() const { return kernel_h * kernel_w; }
  DYNPRUNE_HD constexpr int out_pixels() const { return out_h * out_w; }
};

// The pixel of the input that a tap reads for an output pixel; -1 in the padding or past the map.
DYNPRUNE_HD constexpr int input_pixel(const ConvShape& s, int out_pixel, int tap) {
  const int oy = out_pixel / s.out_w, ox = out_pixel - oy * s.out_w;
  const int ty = tap / s.kernel_w, tx = tap - ty * s.kernel_w;
  const int iy = oy * s.stride_h - s.pad_top + ty * s.dilation_h;
  const int ix = ox * s.stride_w - s.pad_left + tx * s.dilation_w;
  if (out_pixel >= s.out_pixels() || iy < 0 || ix < 0 || iy >= s.in_h || ix >= s.in_w) return -1;
  return iy * s.in_w + ix;
}

// The K dimension of the implicit GEMM is a list of chunks of 16 bytes, taps outermost; a walker steps through it
// without division.
struct KWalker {
  int index;  // position in the list
  int chunk;  // chunk of the image's stored channels
  int tap_y, tap_x;

  DYNPRUNE_HD constexpr int tap(int kernel_w) const { return tap_y * kernel_w + tap_x; }
};

DYNPRUNE_HD constexpr KWalker k_walker(int index, int chunks, int kernel_h, int kernel_w) {
  if (chunks == 0) return KWalker{index, 0, kernel_h, 0};
  const int tap = index / chunks;
  const int tap_y = tap / kernel_w;
  return KWalker{index, index - tap * chunks, tap_y, tap - tap_y * kernel_w};
}

DYNPRUNE_HD constexpr KWalker advance(KWalker w, int steps, int chunks, int kernel_w) {
  w.index += steps;
  w.chunk += steps;
  while (w.chunk >= chunks) {  // never entered with chunks == 0: the list is empty then
    w.chunk -= chunks;
    if (++w.tap_x == kernel_w) {
      w.tap_x = 0;
      ++w.tap_y;
    }
  }
  return w;
}

// Bytes of a 16-byte chunk that hold stored channels. The rest of a compact row is never trusted.
DYNPRUNE_HD constexpr int chunk_bytes(int chunk, int count, int element_bytes = 2) {
  const int left = element_bytes * count - chunk * 16;
  return left < 0 ? 0 : left < 16 ? left : 16;
}

// Weight layouts, in elements. By input: [taps][C + 1][K up to 8], row C is zero. By output: [K][taps][C up to 8].
DYNPRUNE_HD constexpr size_t weight_by_input(const ConvShape& s, int tap, int channel, int output) {
  return (static_cast<size_t>(tap) * (s.channels + 1) + channel) * round_up(s.outputs, kChunk) + output;
}
DYNPRUNE_HD constexpr size_t weight_by_output(const ConvShape& s, int output, int tap, int channel) {
  return (static_cast<size_t>(output) * s.taps() + tap) * round_up(s.channels, kChunk) + channel;
}

// The K dimension is cut into segments of whole steps, summed one by one and added up in order, so that they may be
// computed by one block or by several with the same bits: the first step of a segment.
DYNPRUNE_HD constexpr int segment_begin(int segment, int segments, int steps) {
  return static_cast<int>(static_cast<int64_t>(segment) * steps / segments);
}

// Places of 16-byte units in shared memory such that neither the copies nor ldmatrix meet a bank conflict.
DYNPRUNE_HD constexpr int swizzle4(int row, int unit) { return row * 4 + (unit ^ ((row >> 1) & 3)); }  // 64-byte rows
DYNPRUNE_HD constexpr int swizzle8(int row, int unit) { return row * 8 + (unit ^ (row & 7)); }         // 128-byte rows
// 256-byte rows of fp32, read as single words: 8 neighbouring words of 4 neighbouring rows.
DYNPRUNE_HD constexpr int swizzle16(int row, int unit) { return row * 16 + (unit ^ ((row & 3) << 1)); }

// A channel set says, per image, which channels exist. One record per image:
//   int32 count, int32 chunk_count, 8 bytes unused,
//   uint16 index[P]     stored channels, ascending; up to a multiple of 32 padded with C (the zero row)
//   uint16 position[P]  place of each channel among them, or kAbsent
//   uint16 chunk[P/8]   aligned groups of 8 channels with at least one in the set, ascending
// with P = C up to a multiple of 32. Records start on 16-byte boundaries.
DYNPRUNE_HD constexpr int set_pitch(int channels) { return round_up(channels, 32); }
DYNPRUNE_HD constexpr int set_record_bytes(int channels) {
  return round_up(16 + 4 * set_pitch(channels) + set_pitch(channels) / 4, 16);
}

struct SetView {
  const uint8_t* record;
  int pitch;

  DYNPRUNE_HD int count() const { return reinterpret_cast<const int32_t*>(record)[0]; }
  DYNPRUNE_HD int chunk_count() const { return reinterpret_cast<const int32_t*>(record)[1]; }
  DYNPRUNE_HD const uint16_t* index() const { return reinterpret_cast<const uint16_t*>(record + 16); }
  DYNPRUNE_HD const uint16_t* position() const { return index() + pitch; }
  DYNPRUNE_HD const uint16_t* chunk() const { return index() + 2 * pitch; }
};

DYNPRUNE_HD SetView set_view(const void* sets, int image, int channels) {
  const uint8_t* base = static_cast<const uint8_t*>(sets);
  return SetView{base + static_cast<size_t>(image) * set_record_bytes(channels), set_pitch(channels)};
}

// Tiles are numbered image by image; first[n] is the number of image n's first tile, first[batch] their total.
struct TileOfImage {
  int image, tile;
};

DYNPRUNE_HD TileOfImage locate_tile(const int* first, int batch, int tile) {
  int low = 0, high = batch;  // the largest n with first[n] <= tile: images without tiles are passed over
  while (high - low > 1) {
    const int middle = (low + high) >> 1;
    if (first[middle] <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return TileOfImage{low, tile - first[low]};
}

}  // namespace dynprune::cuda
