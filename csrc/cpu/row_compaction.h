// Compaction of weight rows to the live inputs, with AVX-512.
//
// A row is [taps][channels]; the kernels read it as consecutive words of channels. When only some input channels are
// live, the live elements of every tap are moved together, 64 bytes at a time, by permutations whose index vectors
// depend on the list alone: they are made once per call and used for every row.
#pragma once

#include <immintrin.h>

#include "cpu/group_planes.h"

namespace dynprune::cpu {
namespace {

#if defined(__AVX512VBMI__)
inline __m512i permute_elements(__m512i index, __m512i v, int8_t) { return _mm512_permutexvar_epi8(index, v); }
#endif
inline __m512i permute_elements(__m512i index, __m512i v, int16_t) { return _mm512_permutexvar_epi16(index, v); }

// Element: int8_t (needs VBMI) or int16_t; the bits of the weights do not matter.
template <class Element>
class RowCompaction {
 public:
  static constexpr int32_t kChunk = 64 / sizeof(Element);  // elements
  static constexpr int32_t kMaxChannels = 8192;

  // Bytes of memory that `plan` needs for its tables.
  static size_t table_bytes(int32_t row_channels) { return 2 * static_cast<size_t>(chunks_for(row_channels)) * 64; }

  // Channels [0, n_in) of in_channel go to positions 0.. of each tap. The list ascends, or consists of two parts
  // that do. A tap takes row_channels elements of a row and live_channels of the compacted one; table has
  // table_bytes, 64-byte aligned.
  void plan(int32_t row_channels, int32_t live_channels, int32_t taps, const int32_t* in_channel, int32_t n_in,
            void* table) {
    table_ = static_cast<Element*>(table);
    out_size_ = taps * live_channels;
    chunks_ = 0;
    // Several taps fit into one chunk, or one tap needs several chunks.
    const int32_t together = kChunk % row_channels == 0 ? kChunk / row_channels : 1;
    steps_ = (taps + together - 1) / together;
    step_in_ = row_channels * together;
    step_out_ = live_channels * together;
    if (together > 1) {
      Element* index = next_chunk(0, 0);
      for (int32_t t = 0; t < together; ++t)
        for (int32_t i = 0; i < n_in; ++i)
          index[t * live_channels + i] = static_cast<Element>(t * row_channels + in_channel[i]);
      return;
    }
    for (int32_t at = 0; at < n_in;) {
      const int32_t source = in_channel[at] / kChunk * kChunk;
      Element* index = next_chunk(source, at);
      int32_t before = -1;
      for (int32_t i = 0; at < n_in && in_channel[at] > before && in_channel[at] < source + kChunk; ++at, ++i) {
        before = in_channel[at];
        index[i] = static_cast<Element>(before - source);
      }
    }
  }

  // Writes up to 64 bytes past the end of the compacted row, reads as many past the end of `row`.
  void run(const Element* row, Element* out) const {
    for (int32_t step = 0; step < steps_; ++step, row += step_in_, out += step_out_) {
      for (int32_t chunk = 0; chunk < chunks_; ++chunk) {
        const __m512i index = _mm512_load_si512(table_ + chunk * kChunk);
        const __m512i elements = _mm512_loadu_si512(row + source_[chunk]);
        _mm512_storeu_si512(out + target_[chunk], permute_elements(index, elements, Element{}));
      }
    }
  }
  int32_t out_size() const { return out_size_; }  // elements

 private:
  static constexpr int32_t kMaxChunks = 2 * kMaxChannels / kChunk;
  static int32_t chunks_for(int32_t row_channels) { return (row_channels + kChunk - 1) / kChunk; }
  Element* next_chunk(int32_t source, int32_t target) {
    Element* index = table_ + chunks_ * kChunk;
    for (int32_t i = 0; i < kChunk; ++i) index[i] = 0;
    source_[chunks_] = source;
    target_[chunks_++] = target;
    return index;
  }

  Element* table_ = nullptr;
  int32_t out_size_ = 0, chunks_ = 0, steps_ = 0, step_in_ = 0, step_out_ = 0;
  int32_t source_[kMaxChunks], target_[kMaxChunks];
};

}  // namespace
}  // namespace dynprune::cpu
