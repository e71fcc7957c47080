// Passes over quantised planes other than convolution: quantise, dequantise, rescale, sums, maxima, max pooling.
#include "cpu/row_windows.h"
#include "cpu/vec.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#define DYNPRUNE_QUANTIZED_VECTORS 1
#include "cpu/quantized_vector.h"
#else
#include "cpu/quantized_scalar.h"
#endif

namespace dynprune::cpu {
namespace {

// The flipped sign bits that give s8 bytes the order of u8 bytes; 0 for u8.
DYNPRUNE_INLINE uint32_t flip_bits(QuantizedType type) { return type == QuantizedType::kS8 ? 0x80808080u : 0u; }

void quantize(const PlaneShape& shape, const float* const* x, int32_t x_pitch, float inverse_scale, QuantizedType type,
              uint32_t* y) {
  for (int64_t row = 0; row < shape.height; ++row) {
    uint32_t* target = y + row * shape.pitch;
    int32_t i = 0;
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
    for (; i < shape.width; i += 16) {
      const int32_t left = shape.width - i;
      const auto inside = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
      __m512i rounded[4];
      for (int a = 0; a < kChannelsPerWord; ++a) {
        const __m512 v = x[a] ? _mm512_maskz_loadu_ps(inside, x[a] + row * x_pitch + i) : _mm512_setzero_ps();
        rounded[a] = round_to_int(_mm512_mul_ps(v, _mm512_set1_ps(inverse_scale)));
      }
      _mm512_mask_storeu_epi32(target + i, inside, type == QuantizedType::kS8 ? pack_s8(rounded) : pack_u8(rounded));
    }
#endif
    for (; i < shape.width; ++i) {
      uint32_t word = 0;
      for (int32_t a = 0; a < kChannelsPerWord; ++a)
        if (x[a]) word = with_byte(word, a, saturate(round_saturated(x[a][row * x_pitch + i] * inverse_scale), type));
      target[i] = word;
    }
  }
}

// Writes whole blocks, zeros after the last pixel.
void quantize_row(int32_t width, const float* x, float inverse_scale, QuantizedType type, int8_t* y) {
  int32_t i = 0;
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
  for (; i < width; i += 16) {
    const int32_t left = width - i;
    const auto inside = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(inside, x + i), _mm512_set1_ps(inverse_scale));
    const __m512i rounded = round_to_int(v);
    const __m128i bytes = type == QuantizedType::kS8
                              ? _mm512_cvtsepi32_epi8(rounded)
                              : _mm512_cvtusepi32_epi8(_mm512_max_epi32(rounded, _mm512_setzero_si512()));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), bytes);  // zeros after the last pixel
  }
#endif
  for (; i < width; ++i) y[i] = static_cast<int8_t>(saturate(round_saturated(x[i] * inverse_scale), type));
}

size_t window_scratch(const WindowShape& shape) {
  return static_cast<size_t>(window_line_size(shape, kChannelsPerWord));
}

void quantize_windows(const WindowShape& shape, const float* x, float inverse_scale, QuantizedType type, uint32_t* y,
                      void* scratch) {
  image_windows(shape, x, y, static_cast<int8_t*>(scratch),
                [&](const float* row, int8_t* out) { quantize_row(shape.width, row, inverse_scale, type, out); });
}

void dequantize(const PlaneShape& in, const PlaneShape& out, const uint32_t* x, int32_t byte, float scale,
                QuantizedType type, float* y) {
  for (int64_t row = 0; row < in.height; ++row) {
    const uint32_t* source = x + row * in.pitch;
    float* target = y + row * out.pitch;
    int32_t i = 0;
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
    for (; i < in.width; i += 16) {
      const int32_t left = in.width - i;
      const auto inside = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
      const __m512i words = _mm512_maskz_loadu_epi32(inside, source + i);
      _mm512_mask_storeu_ps(target + i, inside,
                            _mm512_mul_ps(channel_floats(words, byte, type), _mm512_set1_ps(scale)));
    }
#endif
    for (; i < in.width; ++i) target[i] = static_cast<float>(byte_of(source[i], byte, type)) * scale;
  }
}

void rescale(const PlaneShape& shape, uint32_t lanes, const float* shift, float scale, QuantizedType from,
             QuantizedType to, uint32_t* y) {
  for (int64_t block = 0; block < shape.blocks; ++block) {
    uint32_t* words = y + block * kBlock;
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
    __m512i v[4];
    for (int a = 0; a < kChannelsPerWord; ++a) v[a] = _mm512_castps_si512(_mm512_set1_ps(shift[a]));
    const __m512i before = _mm512_loadu_si512(words);
    const __m512i after =
        _mm512_mask_mov_epi8(before, 0x1111111111111111ull * lanes, add_scaled(v, before, scale, from, to));
    store_pixels(words, shape.store_mask[block], after);
#else
    for (int i = 0; i < kBlock; ++i) {
      if (!(shape.store_mask[block] >> i & 1)) continue;
      for (int32_t a = 0; a < kChannelsPerWord; ++a) {
        if (!(lanes >> a & 1)) continue;
        const float r = static_cast<float>(byte_of(words[i], a, from)) * scale;
        words[i] = with_byte(words[i], a, saturate(round_saturated(shift[a] + r), to));
      }
    }
#endif
  }
}

#if defined(DYNPRUNE_QUANTIZED_VECTORS)
// Per channel the sum over all positions of products(words) = (unsigned factor, signed factor), bytes of the same
// channel multiplied.
template <class Products>
void sum_products(const PlaneShape& shape, const uint32_t* x, int32_t* sums, const Products& products) {
  __m512i acc[kChannelsPerWord];
  DYNPRUNE_UNROLL for (int a = 0; a < kChannelsPerWord; ++a) acc[a] = _mm512_setzero_si512();
  for (int64_t block = 0; block < shape.blocks; ++block) {
    __m512i left, right;
    products(_mm512_loadu_si512(x + block * kBlock), left, right);
    DYNPRUNE_UNROLL for (int a = 0; a < kChannelsPerWord; ++a)
        add_products(acc[a], left, _mm512_and_si512(right, _mm512_set1_epi32(static_cast<int32_t>(255u << (8 * a)))));
  }
  DYNPRUNE_UNROLL for (int a = 0; a < kChannelsPerWord; ++a) sums[a] = _mm512_reduce_add_epi32(acc[a]);
}
#else
template <class Term>
void sum_terms(const PlaneShape& shape, const uint32_t* x, QuantizedType type, int32_t* sums, const Term& term) {
  for (int32_t a = 0; a < kChannelsPerWord; ++a) {
    int32_t total = 0;
    for (int64_t p = 0; p < static_cast<int64_t>(shape.blocks) * kBlock; ++p) total += term(byte_of(x[p], a, type));
    sums[a] = total;
  }
}
#endif

// Pads are zero bits and add nothing.
void sum(const PlaneShape& shape, const uint32_t* x, QuantizedType type, int32_t* sums) {
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
  const __m512i flip = _mm512_set1_epi32(static_cast<int32_t>(flip_bits(type)));
  sum_products(shape, x, sums, [&](__m512i words, __m512i& left, __m512i& right) {
    left = _mm512_xor_si512(words, flip);
    right = _mm512_set1_epi8(1);
  });
  const int32_t offset = type == QuantizedType::kS8 ? 128 * kBlock * shape.blocks : 0;
  for (int a = 0; a < kChannelsPerWord; ++a) sums[a] -= offset;
#else
  sum_terms(shape, x, type, sums, [](int32_t v) { return v; });
#endif
}

void sum_abs(const PlaneShape& shape, const uint32_t* x, QuantizedType type, int32_t* sums) {
  if (type == QuantizedType::kU8) return sum(shape, x, type, sums);
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
  sum_products(shape, x, sums, [](__m512i words, __m512i& left, __m512i& right) {
    left = _mm512_abs_epi8(words);
    right = _mm512_set1_epi8(1);
  });
#else
  sum_terms(shape, x, type, sums, [](int32_t v) { return v < 0 ? -v : v; });
#endif
}

void sum_squares(const PlaneShape& shape, const uint32_t* x, QuantizedType type, int32_t* sums) {
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
  // Four positions of a channel side by side, as 16 bits, are two pairs for each instruction. Two sums for each half of
  // the channels hide its latency.
  const bool is_signed = type == QuantizedType::kS8;
  __m512i low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};   // channels 0 and 1, two words of each
  __m512i high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};  // channels 2 and 3
  const auto add_block = [&](int64_t block, int at) __attribute__((always_inline)) {
    const __m512i v = interleave(_mm512_loadu_si512(x + block * kBlock));  // a transpose of 4x4, its own inverse
    __m512i first = _mm512_unpacklo_epi8(v, is_signed ? v : _mm512_setzero_si512());
    __m512i second = _mm512_unpackhi_epi8(v, is_signed ? v : _mm512_setzero_si512());
    if (is_signed) first = _mm512_srai_epi16(first, 8), second = _mm512_srai_epi16(second, 8);
    add_pair_products(low[at], first, first);
    add_pair_products(high[at], second, second);
  };
  int64_t block = 0;
  for (; block + 2 <= shape.blocks; block += 2) {
    add_block(block, 0);
    add_block(block + 1, 1);
  }
  if (block < shape.blocks) add_block(block, 0);
  const __m512i both[2] = {_mm512_add_epi32(low[0], low[1]), _mm512_add_epi32(high[0], high[1])};
  for (int a = 0; a < kChannelsPerWord; ++a) {
    const auto words = static_cast<__mmask16>(a % 2 ? 0xcccc : 0x3333);
    sums[a] = _mm512_mask_reduce_add_epi32(words, both[a / 2]);
  }
#else
  sum_terms(shape, x, type, sums, [](int32_t v) { return v * v; });
#endif
}

void max(const PlaneShape& shape, const uint32_t* x, QuantizedType type, int32_t* maxima) {
  for (int32_t a = 0; a < kChannelsPerWord; ++a) maxima[a] = lowest(type);
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
  const __m512i flip = _mm512_set1_epi32(static_cast<int32_t>(flip_bits(type)));
  __m512i best = _mm512_setzero_si512();  // the lowest value in the order of flipped bytes
  for (int64_t block = 0; block < shape.blocks; ++block) {
    const __m512i in = _mm512_xor_si512(_mm512_loadu_si512(x + block * kBlock), flip);
    best = _mm512_max_epu8(best, _mm512_maskz_mov_epi32(shape.store_mask[block], in));
  }
  alignas(64) uint32_t words[kBlock];
  _mm512_store_si512(words, _mm512_xor_si512(best, flip));
  for (int i = 0; i < kBlock; ++i)
    for (int32_t a = 0; a < kChannelsPerWord; ++a) {
      const int32_t v = byte_of(words[i], a, type);
      if (v > maxima[a]) maxima[a] = v;
    }
#else
  for (int64_t p = 0; p < static_cast<int64_t>(shape.blocks) * kBlock; ++p) {
    if (!is_pixel(shape, p)) continue;
    for (int32_t a = 0; a < kChannelsPerWord; ++a) {
      const int32_t v = byte_of(x[p], a, type);
      if (v > maxima[a]) maxima[a] = v;
    }
  }
#endif
}

// Bytewise maximum of two words of unsigned bytes.
DYNPRUNE_INLINE uint32_t max_of_bytes(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (int i = 0; i < 32; i += 8) {
    const uint32_t x = a >> i & 255u, y = b >> i & 255u;
    result |= (x > y ? x : y) << i;
  }
  return result;
}

// line[i] = bytewise maximum of `rows` rows, sign bits flipped for s8.
void max_of_rows(const uint32_t* x, int64_t rows, int64_t row_stride, int32_t width, uint32_t flip, uint32_t* line) {
  int32_t i = 0;
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
  const __m512i flips = _mm512_set1_epi32(static_cast<int32_t>(flip));
  for (; i < width; i += 16) {
    const int32_t left = width - i;
    const auto inside = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
    __m512i best = _mm512_setzero_si512();
    for (int64_t r = 0; r < rows; ++r)
      best = _mm512_max_epu8(best, _mm512_xor_si512(_mm512_maskz_loadu_epi32(inside, x + r * row_stride + i), flips));
    _mm512_storeu_si512(line + i, _mm512_maskz_mov_epi32(inside, best));
  }
#else
  for (; i < width; ++i) {
    line[i] = 0;
    for (int64_t r = 0; r < rows; ++r) line[i] = max_of_bytes(line[i], x[r * row_stride + i] ^ flip);
  }
#endif
}

// y[i] = bytewise maximum over the taps line[i * stride + t * dilation].
void max_of_columns(const uint32_t* line, int32_t taps, int32_t stride, int32_t dilation, int32_t width, uint32_t flip,
                    uint32_t* y) {
  int32_t i = 0;
#if defined(DYNPRUNE_QUANTIZED_VECTORS)
  const __m512i flips = _mm512_set1_epi32(static_cast<int32_t>(flip));
  const __m512i columns = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(stride));
  for (; i < width; i += 16) {
    const int32_t left = width - i;
    const auto inside = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
    __m512i best = _mm512_setzero_si512();
    for (int32_t t = 0; t < taps; ++t) {
      const uint32_t* x = line + static_cast<int64_t>(i) * stride + t * dilation;
      __m512i in;
      if (stride == 1)
        in = _mm512_maskz_loadu_epi32(inside, x);
      else if (stride == 2)  // reads no further than the last column needs, plus one word
        in = _mm512_permutex2var_epi32(_mm512_maskz_loadu_epi32(left >= 8 ? 0xffff : (1 << 2 * left) - 1, x), columns,
                                       _mm512_maskz_loadu_epi32(left >= 16  ? 0xffff
                                                                : left <= 8 ? 0
                                                                            : (1 << 2 * (left - 8)) - 1,
                                                                x + 16));
      else
        in = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), inside, columns, x, 4);
      best = _mm512_max_epu8(best, in);
    }
    _mm512_mask_storeu_epi32(y + i, inside, _mm512_xor_si512(best, flips));
  }
#else
  for (; i < width; ++i) {
    uint32_t best = 0;
    for (int32_t t = 0; t < taps; ++t) best = max_of_bytes(best, line[static_cast<int64_t>(i) * stride + t * dilation]);
    y[i] = best ^ flip;
  }
#endif
}

int64_t max_pool_reach(const PoolShape& shape) {
  return static_cast<int64_t>(shape.out.width - 1) * shape.stride_w + (shape.kernel_w - 1) * shape.dilation_w + 2;
}

// Words of scratch: one line of the padded input, and what vectors write beyond it.
size_t max_pool_scratch(const PoolShape& shape) {
  const int64_t padded = static_cast<int64_t>(shape.pad_left) + shape.in.width;
  const int64_t reach = max_pool_reach(shape);
  return static_cast<size_t>((padded > reach ? padded : reach) + kBlock);
}

void max_pool(const PoolShape& shape, QuantizedType type, const uint32_t* x, uint32_t* y, uint32_t* line) {
  const uint32_t flip = flip_bits(type);
  const auto words = static_cast<int64_t>(max_pool_scratch(shape));
  for (int64_t i = 0; i < words; ++i) line[i] = 0;  // what lies beside the map never wins
  for (int64_t row = 0; row < shape.out.height; ++row) {
    const int64_t top = row * shape.stride_h - shape.pad_top;
    int64_t first = 0;  // rows of the window inside the map
    while (first < shape.kernel_h && top + first * shape.dilation_h < 0) ++first;
    int64_t last = first;
    while (last < shape.kernel_h && top + last * shape.dilation_h < shape.in.height) ++last;
    max_of_rows(x + (top + first * shape.dilation_h) * shape.in.pitch, last - first,
                static_cast<int64_t>(shape.dilation_h) * shape.in.pitch, shape.in.width, flip, line + shape.pad_left);
    max_of_columns(line, shape.kernel_w, shape.stride_w, shape.dilation_w, shape.out.width, flip,
                   y + row * shape.out.pitch);
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_quantized_maps)(QuantizedKernels& table) {
  table.quantize = quantize;
  table.window_scratch = window_scratch;
  table.quantize_windows = quantize_windows;
  table.dequantize = dequantize;
  table.rescale = rescale;
  table.reduce[static_cast<int>(QuantizedReduce::kSum)] = sum;
  table.reduce[static_cast<int>(QuantizedReduce::kSumAbs)] = sum_abs;
  table.reduce[static_cast<int>(QuantizedReduce::kSumSquares)] = sum_squares;
  table.reduce[static_cast<int>(QuantizedReduce::kMax)] = max;
  table.max_pool_scratch = max_pool_scratch;
  table.max_pool = max_pool;
}

}  // namespace dynprune::cpu
