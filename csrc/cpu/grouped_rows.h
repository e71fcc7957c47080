// Rows of weights of grouped convolutions on group planes, with AVX-512 or without.
//
// A row holds the weights of its own group's inputs only: [taps][inputs of a group, whole words]. In a map in list
// order the live inputs of one group lie side by side, but neither start nor end with a word; so a block of outputs
// reads a *window* of whole words that covers the groups of its rows, and rows are spread out over it, zero where an
// input belongs to another group.
#pragma once

#include <cstdint>

namespace dynprune::cpu {
namespace {

// Where the live inputs of each group are in the list of inputs. The list ascends, or consists of two parts that do.
class GroupPositions {
 public:
  static constexpr int64_t table_bytes(int32_t groups) { return 2 * int64_t{groups} * sizeof(int32_t); }

  // table: table_bytes.
  GroupPositions(int32_t groups, int32_t group_channels, const int32_t* in_channel, int32_t n_in, void* table)
      : group_channels_(group_channels), in_channel_(in_channel) {
    begin_ = static_cast<int32_t*>(table);
    end_ = begin_ + groups;
    for (int32_t g = 0; g < groups; ++g) begin_[g] = n_in, end_[g] = 0;
    for (int32_t i = 0; i < n_in; ++i) {
      const int32_t g = in_channel[i] / group_channels;
      if (begin_[g] > i) begin_[g] = i;
      end_[g] = i + 1;
    }
  }

  struct Window {
    int32_t first, words;
  };
  // The words that groups [low, high] touch; none where no input of theirs is live.
  Window window(int32_t low, int32_t high, int32_t per_word) const {
    int32_t begin = INT32_MAX, end = 0;
    for (int32_t g = low; g <= high; ++g) {
      if (begin_[g] < end_[g] && begin_[g] < begin) begin = begin_[g];
      if (end_[g] > end) end = end_[g];
    }
    if (end == 0) return {0, 0};
    const int32_t first = begin / per_word;
    return {first, (end + per_word - 1) / per_word - first};
  }

  // Spreads `row`, [taps][row_channels], of group g over the window: [taps][window.words * per_word].
  template <class Element>
  void spread(const Element* row, int32_t row_channels, int32_t taps, int32_t g, Window window, int32_t per_word,
              Element* out) const {
    const int32_t size = window.words * per_word;
    const int32_t low = g * group_channels_;
    for (int64_t i = 0; i < int64_t{taps} * size; ++i) out[i] = 0;
    for (int32_t at = begin_[g]; at < end_[g]; ++at) {
      const int32_t c = in_channel_[at] - low;
      if (c < 0 || c >= group_channels_) continue;  // between the two parts of a list
      Element* target = out + (at - window.first * per_word);
      for (int32_t t = 0; t < taps; ++t) target[t * size] = row[t * row_channels + c];
    }
  }

 private:
  int32_t group_channels_;
  const int32_t* in_channel_;
  int32_t* begin_;
  int32_t* end_;
};

}  // namespace
}  // namespace dynprune::cpu
