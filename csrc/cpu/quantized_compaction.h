// Compaction of weight rows to the live inputs, with AVX-512 VBMI.
//
// A row is [taps][channels]; the kernels read it as consecutive words of four channels. When only some input channels
// are live, the live bytes of every tap are moved together, 64 bytes at a time, by byte permutations whose
// index vectors depend on the list alone: they are made once per call and used for every row.
#pragma once

#include <immintrin.h>

#include "cpu/quantized_kernels.h"

namespace dynprune::cpu {
namespace {

class RowCompaction {
 public:
  // Bytes of memory that `plan` needs for its tables.
  static size_t table_bytes(int32_t row_channels) { return static_cast<size_t>(chunks_for(row_channels)) * 64; }

  // in_channel lists the live channels, fewer than row_channels; table has table_bytes, 64-byte aligned.
  void plan(int32_t row_channels, int32_t taps, const int32_t* in_channel, int32_t n_in, uint8_t* table) {
    table_ = table;
    const int32_t live = quantized_row_channels(n_in);
    out_bytes_ = taps * live;
    // Several taps fit into one chunk, or one tap needs several chunks.
    const int32_t together = 64 % row_channels == 0 ? 64 / row_channels : 1;
    chunks_ = chunks_for(row_channels);
    steps_ = (taps + together - 1) / together;
    step_in_ = row_channels * together;
    step_out_ = live * together;
    for (int32_t i = 0; i < chunks_ * 64; ++i) table[i] = 0;
    if (together > 1) {
      for (int32_t t = 0; t < together; ++t)
        for (int32_t i = 0; i < n_in; ++i) table[t * live + i] = static_cast<uint8_t>(t * row_channels + in_channel[i]);
      return;
    }
    int32_t at = 0;
    for (int32_t chunk = 0; chunk < chunks_; ++chunk) {
      offset_[chunk] = at;
      for (int32_t i = 0; at < n_in && in_channel[at] < (chunk + 1) * 64; ++at, ++i)
        table[chunk * 64 + i] = static_cast<uint8_t>(in_channel[at] - chunk * 64);
    }
  }

  // Writes up to 64 bytes past the end of the compacted row, reads as many past the end of `row`.
  void run(const int8_t* row, uint8_t* out) const {
    for (int32_t step = 0; step < steps_; ++step, row += step_in_, out += step_out_) {
      for (int32_t chunk = 0; chunk < chunks_; ++chunk) {
        const __m512i index = _mm512_load_si512(table_ + chunk * 64);
        const __m512i bytes = _mm512_loadu_si512(row + chunk * 64);
        _mm512_storeu_si512(out + offset_[chunk], _mm512_permutexvar_epi8(index, bytes));
      }
    }
  }
  int32_t out_bytes() const { return out_bytes_; }

  static constexpr int32_t kMaxChunks = 128;  // 8192 channels

 private:
  static int32_t chunks_for(int32_t row_channels) { return (row_channels + 63) / 64; }

  const uint8_t* table_ = nullptr;
  int32_t out_bytes_ = 0, chunks_ = 0, steps_ = 0, step_in_ = 0, step_out_ = 0;
  int32_t offset_[kMaxChunks] = {};
};

// The sum of `bytes` signed bytes.
inline int32_t sum_of_row(const uint8_t* row, int32_t bytes) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  for (int32_t i = 0; i < bytes; i += 64) {
    const __mmask64 inside = bytes - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (bytes - i)) - 1;
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(inside, row + i));
  }
  return _mm512_reduce_add_epi32(sum);
}

}  // namespace
}  // namespace dynprune::cpu
