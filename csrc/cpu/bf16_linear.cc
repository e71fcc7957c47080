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

constexpr int32_t kLine = 64 / sizeof(uint16_t);

// As dot_rows (dot_rows.h): lane l sums the c with c mod 16 == l, ascending. Fetches the
// rows after these: weights stream from memory, and the ends of short rows stop the hardware's prefetching.
template <int kN>
DYNPRUNE_INLINE void dot_bf16_rows(int32_t n, const uint16_t* w, const float* bias, const float* x, Clamp limits,
                                   float* y) {
  Vec acc[kN][kVecsPerBlock];
  DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
    DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) acc[r][v] = zero();
  }
  int32_t c = 0;
  for (; c + kBlock <= n; c += kBlock) {
    DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) {
      const Vec xv = load(x + c + v * kLanes);
      DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
        acc[r][v] = fma(load_bf16(w + int64_t{r} * n + c + v * kLanes), xv, acc[r][v]);
      }
    }
    if (c % kLine == 0) {
      DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) __builtin_prefetch(w + int64_t{kN + r} * n + c);
    }
  }
  if (c < n) {
    float x_end[kBlock] = {};
    for (int32_t i = 0; c + i < n; ++i) x_end[i] = x[c + i];
    for (int r = 0; r < kN; ++r) {
      uint16_t w_end[kBlock] = {};
      for (int32_t i = 0; c + i < n; ++i) w_end[i] = w[int64_t{r} * n + c + i];
      DYNPRUNE_UNROLL for (int v = 0; v < kVecsPerBlock; ++v) {
        acc[r][v] = fma(load_bf16(w_end + v * kLanes), load(x_end + v * kLanes), acc[r][v]);
      }
    }
  }
  DYNPRUNE_UNROLL for (int r = 0; r < kN; ++r) {
    float sum = fold_block(acc[r], [](Vec a, Vec b) { return add(a, b); });
    if (bias) sum += bias[r];
    sum = sum < limits.lo ? limits.lo : sum;
    y[r] = sum > limits.hi ? limits.hi : sum;
  }
}

void bf16_linear(int32_t out_features, int32_t in_features, const uint16_t* weights, const float* bias, const float* x,
                 Clamp limits, float* y) {
  int32_t k = 0;
  for (; k + kRows <= out_features; k += kRows)
    dot_bf16_rows<kRows>(in_features, weights + int64_t{k} * in_features, bias ? bias + k : nullptr, x, limits, y + k);
  for (; k < out_features; ++k)
    dot_bf16_rows<1>(in_features, weights + int64_t{k} * in_features, bias ? bias + k : nullptr, x, limits, y + k);
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_bf16_linear)(Bf16Kernels& table) { table.linear = bf16_linear; }

}  // namespace dynprune::cpu
