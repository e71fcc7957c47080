// Matrix times vector with bf16 weights and float arithmetic: half the bytes of layers that memory bounds.
#include "cpu/bf16_kernels.h"
#include "cpu/vec_select.h"

namespace dynprune::cpu {
namespace {

constexpr int kRows = kLanes == 16 ? 8 : 4;  // outputs at once: enough independent sums to hide the FMA latency

DYNPRUNE_INLINE Vec load_bf16(const uint16_t* p) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
#elif defined(__AVX2__)
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
    float lane;
    __builtin_memcpy(&lane, &bits, sizeof lane);
    v[i] = lane;
  }
  return v;
#endif
}

constexpr int kFetchAhead = 4096 / sizeof(uint16_t);  // elements: what memory needs at the pace of the products

// Outputs of kN rows of a group, whose weights start at w. Lane l sums the c with c mod 16 == l, ascending, as
// dot_rows (dot_rows.h) does.
template <int kN>
DYNPRUNE_INLINE void dot_bf16_rows(int32_t n, const uint16_t* w, const float* x, Vec (&acc)[kN][kVecsPerBlock]) {
  DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
    DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) acc[r][v] = zero();
  }
  const auto add_block = [&](const float* block) __attribute__((always_inline)) {
    DYNPRUNE_UNROLL for (int r = 0; r < kN; r += 64 / (kBlock * static_cast<int>(sizeof(uint16_t))))
        __builtin_prefetch(w + kFetchAhead + r * kBlock);
    DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) {
      const Vec xv = load(block + v * kLanes);
      DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
        acc[r][v] = fma(load_bf16(w + r * kBlock + v * kLanes), xv, acc[r][v]);
      }
    }
    w += kBf16LinearRows * kBlock;
  };
  int32_t c = 0;
  for (; c + kBlock <= n; c += kBlock) add_block(x + c);
  if (c < n) {
    float x_end[kBlock] = {};
    for (int32_t i = 0; c + i < n; ++i) x_end[i] = x[c + i];
    add_block(x_end);
  }
}

void bf16_linear(int32_t out_features, int32_t in_features, const uint16_t* weights, const float* bias, const float* x,
                 Clamp limits, int32_t first_group, int32_t last_group, float* y) {
  const int64_t group_size = bf16_linear_group_size(in_features);
  for (int32_t group = first_group; group < last_group; ++group) {
    for (int r = 0; r < kBf16LinearRows; r += kRows) {
      Vec acc[kRows][kVecsPerBlock];
      dot_bf16_rows<kRows>(in_features, weights + group * group_size + r * kBlock, x, acc);
      const int32_t first = group * kBf16LinearRows + r;
      DYNPRUNE_UNROLL for (int i = 0; i < kRows; ++i) {
        float sum = fold_block(acc[i], [](Vec a, Vec b) { return add(a, b); });
        if (first + i >= out_features) break;
        if (bias) sum += bias[first + i];
        sum = sum < limits.lo ? limits.lo : sum;
        y[first + i] = sum > limits.hi ? limits.hi : sum;
      }
    }
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_bf16_linear)(Bf16Kernels& table) { table.linear = bf16_linear; }

}  // namespace dynprune::cpu
