// Passes over bf16 planes other than convolution: pack, unpack, pass residuals through, max pooling.
#include "cpu/row_windows.h"
#include "cpu/vec.h"

#if defined(__AVX512BF16__)
#include "cpu/bf16_vector.h"
#else
#include "cpu/bf16_scalar.h"
#endif

namespace dynprune::cpu {
namespace {

#if defined(__AVX512BF16__)
// The first `left` of 16 lanes.
DYNPRUNE_INLINE __mmask16 first_lanes(int32_t left) {
  return static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
}
#endif

void pack(const PlaneShape& shape, const float* const* x, int32_t x_pitch, uint32_t* y) {
  for (int64_t row = 0; row < shape.height; ++row) {
    uint32_t* target = y + row * shape.pitch;
    const float* low = x[0] ? x[0] + row * x_pitch : nullptr;
    const float* high = x[1] ? x[1] + row * x_pitch : nullptr;
    int32_t i = 0;
#if defined(__AVX512BF16__)
    for (; i < shape.width; i += 16) {
      const __mmask16 inside = first_lanes(shape.width - i);
      const __m512 a = low ? _mm512_maskz_loadu_ps(inside, low + i) : _mm512_setzero_ps();
      const __m512 b = high ? _mm512_maskz_loadu_ps(inside, high + i) : _mm512_setzero_ps();
      _mm512_mask_storeu_epi32(target + i, inside, round_pairs(a, b));
    }
#else
    for (; i < shape.width; ++i)
      target[i] = round_to_bf16(low ? low[i] : 0.0f) | round_to_bf16(high ? high[i] : 0.0f) << 16;
#endif
  }
}

// May write whole blocks, zeros after the last pixel.
void round_row(int32_t width, const float* x, int16_t* y) {
  int32_t i = 0;
#if defined(__AVX512BF16__)
  const __m256i large = _mm256_set1_epi16(static_cast<int16_t>(kLargeExponent));
  for (; i < width; i += 16) {
    const __mmask16 inside = first_lanes(width - i);
    const auto halves = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(inside, x + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i),
                        _mm256_maskz_mov_epi16(_mm256_test_epi16_mask(halves, large), halves));
  }
#endif
  for (; i < width; ++i) y[i] = static_cast<int16_t>(round_to_bf16(x[i]));
}

size_t window_scratch(const WindowShape& shape) {
  return static_cast<size_t>(window_line_size(shape, kBf16PerWord)) * sizeof(int16_t);
}

void pack_windows(const WindowShape& shape, const float* x, uint32_t* y, void* scratch) {
  image_windows(shape, x, y, static_cast<int16_t*>(scratch),
                [&](const float* row, int16_t* out) { round_row(shape.width, row, out); });
}

void unpack(const PlaneShape& in, const PlaneShape& out, const uint32_t* x, int32_t half, float* y) {
  const bool tight = in.pitch == in.width && out.pitch == out.width;  // one long row
  const int64_t rows = tight ? 1 : in.height, width = tight ? int64_t{in.height} * in.width : in.width;
  for (int64_t row = 0; row < rows; ++row) {
    const uint32_t* source = x + row * in.pitch;
    float* target = y + row * out.pitch;
    if (half)
      for (int64_t i = 0; i < width; ++i) target[i] = high_half(source[i]);
    else
      for (int64_t i = 0; i < width; ++i) target[i] = low_half(source[i]);
  }
}

void sum(const PlaneShape& shape, bool magnitudes, const uint32_t* x, float* low, float* high) {
  const uint32_t keep_bits = magnitudes ? 0x7fff7fffu : 0xffffffffu;
#if defined(__AVX512BF16__)
  const __m512i kept = _mm512_set1_epi32(static_cast<int32_t>(keep_bits));
  __m512 lows[kBf16SumBlocks], highs[kBf16SumBlocks];
  for (int c = 0; c < kBf16SumBlocks; ++c) lows[c] = highs[c] = _mm512_setzero_ps();
  const auto add_block = [&](int64_t block, int c) __attribute__((always_inline)) {
    const __m512i words = _mm512_and_si512(_mm512_loadu_si512(x + block * kBlock), kept);
    lows[c] = _mm512_add_ps(lows[c], low_floats(words));
    highs[c] = _mm512_add_ps(highs[c], high_floats(words));
  };
  int64_t block = 0;
  for (; block + kBf16SumBlocks <= shape.blocks; block += kBf16SumBlocks) {
    DYNPRUNE_UNROLL for (int c = 0; c < kBf16SumBlocks; ++c) add_block(block + c, c);
  }
  DYNPRUNE_UNROLL for (int c = 0; c < kBf16SumBlocks; ++c) {
    if (block + c < shape.blocks) add_block(block + c, c);
    _mm512_storeu_ps(low + c * kBlock, lows[c]);
    _mm512_storeu_ps(high + c * kBlock, highs[c]);
  }
#else
  for (int i = 0; i < kBf16SumBlocks * kBlock; ++i) low[i] = high[i] = 0.0f;
  for (int64_t block = 0; block < shape.blocks; ++block) {
    const int64_t to = block % kBf16SumBlocks * kBlock;
    for (int i = 0; i < kBlock; ++i) {
      const uint32_t word = x[block * kBlock + i] & keep_bits;
      low[to + i] += low_half(word);
      high[to + i] += high_half(word);
    }
  }
#endif
}

void pass(const PlaneShape& shape, uint32_t lanes, const float* shift, Clamp outer, uint32_t* y) {
#if defined(__AVX512BF16__)
  const __mmask32 halves = (lanes & 1 ? 0x55555555u : 0u) | (lanes & 2 ? 0xaaaaaaaau : 0u);
  for (int64_t block = 0; block < shape.blocks; ++block) {
    const __m512i words = _mm512_loadu_si512(y + block * kBlock);
    const __m512 low = clamp_floats(_mm512_add_ps(_mm512_set1_ps(shift[0]), low_floats(words)), outer);
    const __m512 high = clamp_floats(_mm512_add_ps(_mm512_set1_ps(shift[1]), high_floats(words)), outer);
    _mm512_mask_storeu_epi32(y + block * kBlock, shape.store_mask[block],
                             _mm512_mask_mov_epi16(words, halves, round_pairs(low, high)));
  }
#else
  for (int64_t p = 0; p < static_cast<int64_t>(shape.blocks) * kBlock; ++p) {
    if (!(shape.store_mask[p / kBlock] >> (p % kBlock) & 1)) continue;
    const uint32_t word = y[p];
    const uint32_t low = lanes & 1 ? round_to_bf16(clamp_float(shift[0] + low_half(word), outer)) : word & 0xffffu;
    const uint32_t high = lanes & 2 ? round_to_bf16(clamp_float(shift[1] + high_half(word), outer)) : word >> 16;
    y[p] = low | high << 16;
  }
#endif
}

// bf16 numbers in the order of signed 16-bit integers; every NaN is the largest.
DYNPRUNE_INLINE int32_t order_of(uint32_t half) {
  if ((half & 0x7fffu) > 0x7f80u) return 0x7fff;
  return half & 0x8000u ? static_cast<int16_t>(half ^ 0x7fffu) : static_cast<int32_t>(half);
}
DYNPRUNE_INLINE uint32_t half_at(int32_t order) {
  return static_cast<uint32_t>(order < 0 ? order ^ 0x7fff : order) & 0xffffu;
}
constexpr uint32_t kLowestOrders = 0x80008000u;

DYNPRUNE_INLINE uint32_t orders_of(uint32_t word) {
  return (static_cast<uint32_t>(order_of(word & 0xffffu)) & 0xffffu) | static_cast<uint32_t>(order_of(word >> 16))
                                                                           << 16;
}
DYNPRUNE_INLINE uint32_t halves_at(uint32_t orders) {
  return half_at(static_cast<int16_t>(orders & 0xffffu)) | half_at(static_cast<int16_t>(orders >> 16)) << 16;
}
DYNPRUNE_INLINE uint32_t max_orders(uint32_t a, uint32_t b) {
  const auto larger = [](uint32_t x, uint32_t y) {
    return static_cast<int16_t>(x) > static_cast<int16_t>(y) ? x & 0xffffu : y & 0xffffu;
  };
  return larger(a & 0xffffu, b & 0xffffu) | larger(a >> 16, b >> 16) << 16;
}

#if defined(__AVX512BF16__)
DYNPRUNE_INLINE __m512i flip_negative(__m512i v) {
  const __m512i sign = _mm512_srai_epi16(v, 15);
  return _mm512_xor_si512(v, _mm512_and_si512(sign, _mm512_set1_epi16(0x7fff)));
}
DYNPRUNE_INLINE __m512i orders_of(__m512i words) {
  const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7fff));
  const __mmask32 nan = _mm512_cmpgt_epi16_mask(magnitude, _mm512_set1_epi16(0x7f80));
  return _mm512_mask_mov_epi16(flip_negative(words), nan, _mm512_set1_epi16(0x7fff));
}
#endif

// line[i] = the larger of two channels' orders over `rows` rows.
void max_of_rows(const uint32_t* x, int64_t rows, int64_t row_stride, int32_t width, uint32_t* line) {
  int32_t i = 0;
#if defined(__AVX512BF16__)
  for (; i < width; i += 16) {
    const __mmask16 inside = first_lanes(width - i);
    const __m512i lowest = _mm512_set1_epi32(static_cast<int32_t>(kLowestOrders));
    __m512i best = lowest;
    for (int64_t r = 0; r < rows; ++r)
      best = _mm512_max_epi16(best, orders_of(_mm512_maskz_loadu_epi32(inside, x + r * row_stride + i)));
    _mm512_storeu_si512(line + i, _mm512_mask_mov_epi32(lowest, inside, best));
  }
#else
  for (; i < width; ++i) {
    line[i] = kLowestOrders;
    for (int64_t r = 0; r < rows; ++r) line[i] = max_orders(line[i], orders_of(x[r * row_stride + i]));
  }
#endif
}

// y[i] = the maximum over the taps line[i * stride + t * dilation].
void max_of_columns(const uint32_t* line, int32_t taps, int32_t stride, int32_t dilation, int32_t width, uint32_t* y) {
  int32_t i = 0;
#if defined(__AVX512BF16__)
  const __m512i columns = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(stride));
  for (; i < width; i += 16) {
    const __mmask16 inside = first_lanes(width - i);
    __m512i best = _mm512_set1_epi32(static_cast<int32_t>(kLowestOrders));
    for (int32_t t = 0; t < taps; ++t) {
      const uint32_t* x = line + static_cast<int64_t>(i) * stride + t * dilation;
      __m512i in;
      if (stride == 1) {
        in = _mm512_maskz_loadu_epi32(inside, x);
      } else if (stride == 2) {  // reads no further than the last column needs
        const int32_t left = 2 * (width - i) - 1;
        in = _mm512_permutex2var_epi32(_mm512_maskz_loadu_epi32(first_lanes(left), x), columns,
                                       _mm512_maskz_loadu_epi32(left > 16 ? first_lanes(left - 16) : 0, x + 16));
      } else {
        in = _mm512_mask_i32gather_epi32(best, inside, columns, x, 4);
      }
      best = _mm512_max_epi16(best, in);
    }
    _mm512_mask_storeu_epi32(y + i, inside, flip_negative(best));
  }
#else
  for (; i < width; ++i) {
    uint32_t best = kLowestOrders;
    for (int32_t t = 0; t < taps; ++t) best = max_orders(best, line[static_cast<int64_t>(i) * stride + t * dilation]);
    y[i] = halves_at(best);
  }
#endif
}

// Words of scratch: one line of the padded input, and what vectors write beyond it.
size_t max_pool_scratch(const PoolShape& shape) {
  const int64_t padded = static_cast<int64_t>(shape.pad_left) + shape.in.width;
  const int64_t reach =
      static_cast<int64_t>(shape.out.width - 1) * shape.stride_w + (shape.kernel_w - 1) * shape.dilation_w + 1;
  return static_cast<size_t>((padded > reach ? padded : reach) + kBlock);
}

void max_pool(const PoolShape& shape, const uint32_t* x, uint32_t* y, uint32_t* line) {
  const auto words = static_cast<int64_t>(max_pool_scratch(shape));
  for (int64_t i = 0; i < words; ++i) line[i] = kLowestOrders;  // what lies beside the map never wins
  for (int64_t row = 0; row < shape.out.height; ++row) {
    const int64_t top = row * shape.stride_h - shape.pad_top;
    int64_t first = 0;  // rows of the window inside the map
    while (first < shape.kernel_h && top + first * shape.dilation_h < 0) ++first;
    int64_t last = first;
    while (last < shape.kernel_h && top + last * shape.dilation_h < shape.in.height) ++last;
    max_of_rows(x + (top + first * shape.dilation_h) * shape.in.pitch, last - first,
                static_cast<int64_t>(shape.dilation_h) * shape.in.pitch, shape.in.width, line + shape.pad_left);
    max_of_columns(line, shape.kernel_w, shape.stride_w, shape.dilation_w, shape.out.width, y + row * shape.out.pitch);
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_bf16_maps)(Bf16Kernels& table) {
  table.pass = pass;
  table.pack = pack;
  table.window_scratch = window_scratch;
  table.pack_windows = pack_windows;
  table.unpack = unpack;
  table.sum = sum;
  table.max_pool_scratch = max_pool_scratch;
  table.max_pool = max_pool;
}

}  // namespace dynprune::cpu
