// Depthwise convolution: one input plane per output plane.
//
// The general kernel shifts the plane by every tap, a few vectors of positions at a time. With one load per
// multiply-add it is bound by loads, so the 3x3 kernel of stride 1 walks down columns of 16 pixels instead and
// uses each loaded row for the three output rows it touches. A stride of 2 is taken apart in registers: a pair of
// loads gives the even and the odd columns of a tap row, or those of two tap rows where output rows are short. All take
// taps in order into one accumulator that starts at 0, so their results have the same bits.
#include "conv_epilogue.h"
#include "kernels.h"
#include "vec_select.h"

namespace dynprune::cpu {
namespace {

// Finishes the sum at float `position` of the plane.
template <bool Plain>
struct Finisher {
  const float* next_output = nullptr;  // a plane to come: its lines are fetched while this one is computed
  const float* next_input = nullptr;   // the same for reading
  PlainFinish plain;
  FullFinish full;
  ChannelEpilogue channel;
  Vec bias;
  DYNPRUNE_INLINE Finisher(const Epilogue& e, const ChannelEpilogue& c)
      : plain(merged_clamp(e)), full(e), channel(c), bias(broadcast(c.bias)) {}
  DYNPRUNE_INLINE void fetch(int64_t position) const {
    prefetch_for_write(next_output + position);
    __builtin_prefetch(next_input + position, 0, 3);
  }
  // Of `width` pixels; the residual is not read beyond them.
  DYNPRUNE_INLINE Vec operator()(Vec sum, int64_t position, int32_t width = kLanes) const {
    if constexpr (Plain) return plain(sum, bias);
    return full(sum, channel, channel.residual ? load_first(channel.residual + position, width) : zero());
  }
};

// Any taps: `Vectors` vectors of positions per step.
template <bool Plain, int Vectors, int Taps>
DYNPRUNE_INLINE void shifted_step(const DirectShape& shape, const float* x, const float* w, float* y, int64_t v0,
                                  const Finisher<Plain>& finish) {
  Vec acc[Vectors];
  DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[j] = zero();
  const int32_t taps = Taps ? Taps : shape.taps;
  const auto accumulate = [&](int32_t t) __attribute__((always_inline)) {
    const float* shifted = x + shape.tap_offset[t] + v0 * kLanes;
    const Vec weight = broadcast(w[t]);
    DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) acc[j] = fma(weight, load(shifted + j * kLanes), acc[j]);
  };
  if constexpr (Taps) {
    DYNPRUNE_UNROLL for (int32_t t = 0; t < Taps; ++t) accumulate(t);
  } else {
    for (int32_t t = 0; t < taps; ++t) accumulate(t);
  }
  DYNPRUNE_UNROLL for (int j = 0; j < Vectors; ++j) {
    const int64_t position = (v0 + j) * kLanes;
    finish.fetch(position);
    store(y + position, keep(vector_mask(shape.out.store_mask, v0 + j), finish(acc[j], position)));
  }
}

template <bool Plain, int Taps>
void shifted_plane(const DirectShape& shape, const float* x, const float* w, float* y, const Finisher<Plain>& finish) {
  constexpr int kStep = 4;
  int64_t end = static_cast<int64_t>(shape.out.blocks) * kVecsPerBlock;
  while (end > 0 && keep_none(vector_mask(shape.out.store_mask, end - 1))) --end;
  int64_t v = 0;
  for (; v + kStep <= end; v += kStep) shifted_step<Plain, kStep, Taps>(shape, x, w, y, v, finish);
  for (; v < end; ++v) shifted_step<Plain, 1, Taps>(shape, x, w, y, v, finish);
}

// The vectors that a column of pixels is worked on in.
struct FullColumn {
  using V = Vec;
  static constexpr int kWidth = kLanes;
  static DYNPRUNE_INLINE V zeros() { return zero(); }
  static DYNPRUNE_INLINE V load_pinned(const float* p) {
    V v = load(p);
    pin(v);
    return v;
  }
  static DYNPRUNE_INLINE V add_product(Vec weight, V x, V sum) { return fma(weight, x, sum); }
  static DYNPRUNE_INLINE Vec full(V v) { return v; }
};
#if defined(__AVX512F__)
// Eight pixels or fewer, at twice the rate.
struct HalfColumn {
  using V = HalfVec;
  static constexpr int kWidth = kLanes / 2;
  static DYNPRUNE_INLINE V zeros() { return half_zero(); }
  static DYNPRUNE_INLINE V load_pinned(const float* p) {
    V v = half_load(p);
    half_pin(v);
    return v;
  }
  static DYNPRUNE_INLINE V add_product(Vec weight, V x, V sum) { return half_fma(lower_half(weight), x, sum); }
  static DYNPRUNE_INLINE Vec full(V v) { return widen(v); }
};
#else
using HalfColumn = FullColumn;
#endif

// 3x3, stride 1, one column of at most Column::kWidth pixels: `x` is the input at the first tap of its first pixel, tap
// columns are `step` and rows one pitch apart.
template <class Column, bool Plain>
DYNPRUNE_INLINE void column_3x3(const PlaneShape& out, const float* x, int32_t step, const Vec* weight, int32_t column,
                                float* y, const Finisher<Plain>& finish) {
  using V = typename Column::V;
  const int32_t width = out.width - column;
  const uint32_t mask = width >= kLanes ? ~0u : (1u << width) - 1;
  const auto row_into = [&](V acc, const V* in, int row) __attribute__((always_inline)) {
    DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) acc = Column::add_product(weight[3 * row + s], in[s], acc);
    return acc;
  };
  const auto load_row = [&](V* in) __attribute__((always_inline)) {
    DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) in[s] = Column::load_pinned(x + s * step);
    x += out.pitch;
  };
  V in[3];
  load_row(in);
  V upper = row_into(Column::zeros(), in, 0);  // sum over the first row of taps
  load_row(in);
  V middle = row_into(upper, in, 1);  // over the first two
  upper = row_into(Column::zeros(), in, 0);
  int64_t position = column;
  for (int32_t row = 0; row < out.height; ++row, position += out.pitch) {
    finish.fetch(position);
    load_row(in);
    const Vec v = finish(Column::full(row_into(middle, in, 2)), position, width);
    if (width >= kLanes) {
      store(y + position, v);
    } else if (position + kLanes <= int64_t{kBlock} * out.blocks) {
      store_over(y + position, mask, v);
    } else {
      store_lanes(y + position, mask, v);
    }
    middle = row_into(upper, in, 1);
    upper = row_into(Column::zeros(), in, 0);
  }
}

// All columns; `x` is the input at the first tap of pixel (0, 0).
template <bool Plain>
void columns_3x3(const DirectShape& shape, const float* x, int32_t step, const float* w, float* y,
                 const Finisher<Plain>& finish) {
  Vec weight[9];
  DYNPRUNE_UNROLL for (int t = 0; t < 9; ++t) weight[t] = broadcast(w[t]);
  int32_t column = 0;
  for (; column + HalfColumn::kWidth < shape.out.width; column += kLanes) {
    column_3x3<FullColumn>(shape.out, x + column, step, weight, column, y, finish);
  }
  if (column < shape.out.width) column_3x3<HalfColumn>(shape.out, x + column, step, weight, column, y, finish);
}

// True if the taps are 3 rows one pitch apart of 3 equally spaced columns.
bool is_3x3_rows(const DirectShape& shape) {
  if (shape.taps != 9) return false;
  const int32_t* t = shape.tap_offset;
  for (int i = 0; i < 9; ++i) {
    if (t[i] != t[0] + i / 3 * shape.out.pitch + i % 3 * (t[1] - t[0])) return false;
  }
  return true;
}

// Cycles per vector of the two 3x3 kernels, loads included (Zen 4); columns lose where a row fills few lanes.
bool columns_pay(const PlaneShape& out) {
  const int32_t half_columns = (out.width + kLanes / 2 - 1) / (kLanes / 2);
  const int32_t columns = HalfColumn::kWidth < kLanes ? half_columns : (half_columns + 1) / 2 * 2;
  return static_cast<int64_t>(out.height) * columns * 6 < static_cast<int64_t>(out.blocks) * kVecsPerBlock * 16;
}

// An input that is exactly zero: the epilogue of 0.
template <bool Plain>
void zero_plane(const DirectShape& shape, float* y, const Finisher<Plain>& finish) {
  for (int64_t v = 0; v < static_cast<int64_t>(shape.out.blocks) * kVecsPerBlock; ++v) {
    store(y + v * kLanes, keep(vector_mask(shape.out.store_mask, v), finish(zero(), v * kLanes)));
  }
}

// How many planes ahead lines are fetched: small planes take less time than memory to answer.
int32_t planes_ahead(const PlaneShape& out) { return 1 + 16 / out.blocks; }

template <bool Plain>
void depthwise_planes(const DirectShape& shape, const float* weights, const ConvCall& call) {
  const bool by_columns = is_3x3_rows(shape) && columns_pay(shape.out);
  const int32_t ahead = planes_ahead(shape.out);
  for (int32_t i = 0; i < call.n_out; ++i) {
    const int32_t channel = call.out_channel[i];
    Finisher<Plain> finish(call.epilogue, channel_epilogue(call.epilogue, channel, i));
    const int32_t next = i + ahead < call.n_out ? i + ahead : i;
    finish.next_output = call.output[next];
    finish.next_input = call.input[next] ? call.input[next] : call.output[next];
    const float* x = call.input[i];
    const float* w = weights + static_cast<int64_t>(channel) * shape.taps;
    float* y = call.output[i];
    if (!x) {
      zero_plane(shape, y, finish);
    } else if (by_columns) {
      columns_3x3(shape, x + shape.tap_offset[0], shape.tap_offset[1] - shape.tap_offset[0], w, y, finish);
    } else if (shape.taps == 9) {
      shifted_plane<Plain, 9>(shape, x, w, y, finish);
    } else {
      shifted_plane<Plain, 0>(shape, x, w, y, finish);
    }
  }
}

void conv_depthwise(const DirectShape& shape, const float* weights, const ConvCall& call) {
  if (is_plain(call.epilogue)) {
    depthwise_planes<true>(shape, weights, call);
  } else {
    depthwise_planes<false>(shape, weights, call);
  }
}

// True for 3x3 taps of adjoining columns and rows, stride 2 both ways.
bool is_3x3_by_two(const StridedShape& shape) {
  if (shape.taps != 9 || shape.stride_h != 2) return false;
  for (int i = 0; i < 9; ++i) {
    if (shape.tap_offset[i] != shape.tap_offset[0] + i / 3 * shape.in_pitch + i % 3) return false;
  }
  return true;
}

// Finishes a vector of sums that starts at float `position` of the plane. Lanes outside `bits` are not pixels of it.
template <bool Plain>
DYNPRUNE_INLINE void put_lanes(float* y, Vec sum, int64_t position, uint32_t bits, const Finisher<Plain>& finish) {
  prefetch_for_write(finish.next_output + position);
  Vec v;
  if constexpr (Plain) {
    v = finish.plain(sum, finish.bias);
  } else {
    const float* residual = finish.channel.residual;
    v = finish.full(sum, finish.channel, residual ? load_lanes(residual + position, lane_mask(bits)) : zero());
  }
  constexpr uint32_t kAll = (1u << kLanes) - 1;
  if ((bits & kAll) == kAll) {
    store(y + position, v);
  } else if (kLanes == 16) {
    store_lanes(y + position, bits, v);
  } else {  // the first lanes; masked stores of AVX2 take dozens of cycles on AMD
    store_first(y + position, __builtin_popcount(bits), v);
  }
}

// The three columns of a tap row for one vector of outputs.
struct TapRow {
  Vec columns[3];
};
// Of outputs side by side: pixels 0, 2, ... , 1, 3, ... and 2, 4, ... from x on.
DYNPRUNE_INLINE TapRow load_tap_row(const float* x) {
  TapRow row;
  deinterleave(load(x), load(x + kLanes), row.columns[0], row.columns[1]);
  row.columns[2] = shift_in(row.columns[0], x + 2 * kLanes);
  return row;
}
// Of two short output rows, whose pixels start at x and at x + second, half a vector each.
DYNPRUNE_INLINE TapRow load_two_rows(const float* x, int64_t second) {
  TapRow row;
  Vec odd;
  deinterleave(load(x), load(x + second), row.columns[0], row.columns[1]);
  deinterleave(load(x + 2), load(x + 2 + second), row.columns[2], odd);
  return row;
}

DYNPRUNE_INLINE Vec add_taps(Vec sum, const TapRow& row, const Vec* weight) {
  DYNPRUNE_UNROLL for (int s = 0; s < 3; ++s) sum = fma(weight[s], row.columns[s], sum);
  return sum;
}

template <bool Plain>
void strided_3x3(const StridedShape& shape, const float* x, const float* w, float* y, const Finisher<Plain>& finish) {
  const PlaneShape out = shape.out;
  const int64_t pitch = shape.in_pitch;
  Vec weight[9];
  DYNPRUNE_UNROLL for (int t = 0; t < 9; ++t) weight[t] = broadcast(w[t]);
  x += shape.tap_offset[0];
  if (kLanes == 16 && 2 * out.width <= kLanes) {  // masked stores into the middle of a vector cost little there
    constexpr int kHalf = kLanes / 2;
    const uint32_t bits = (1u << out.width) - 1;
    for (int64_t row = 0; row < out.height; row += 2) {
      const bool both = row + 1 < out.height;
      const int64_t second = both ? 2 * pitch : kLanes;
      const float* from = x + row * 2 * pitch;
      Vec sum = zero();
      DYNPRUNE_UNROLL for (int r = 0; r < 3; ++r) {
        sum = add_taps(sum, load_two_rows(from + r * pitch, second), weight + 3 * r);
      }
      put_lanes(y, sum, row * out.pitch, bits, finish);
      if (both) put_lanes(y, sum, (row + 1) * out.pitch - kHalf, bits << kHalf, finish);
    }
    return;
  }
  // Down columns of outputs: the last row of taps is the first one of the next output row.
  for (int64_t column = 0; column < out.width; column += kLanes) {
    const int64_t left = out.width - column;
    const uint32_t bits = left >= kLanes ? ~0u : (1u << left) - 1;
    const float* from = x + 2 * column;
    TapRow first = load_tap_row(from);
    for (int64_t row = 0; row < out.height; ++row, from += 2 * pitch) {
      const TapRow middle = load_tap_row(from + pitch), last = load_tap_row(from + 2 * pitch);
      Vec sum = add_taps(zero(), first, weight);
      sum = add_taps(add_taps(sum, middle, weight + 3), last, weight + 6);
      put_lanes(y, sum, row * out.pitch + column, bits, finish);
      first = last;
    }
  }
}

// Any taps.
template <bool Plain>
void strided_plane(const StridedShape& shape, const float* x, const float* w, float* y, const Finisher<Plain>& finish) {
  const PlaneShape& out = shape.out;
  for (int64_t row = 0; row < out.height; ++row, x += static_cast<int64_t>(shape.in_pitch) * shape.stride_h) {
    for (int64_t column = 0; column < out.width; column += kLanes) {
      const int64_t left = out.width - column;
      Vec sum = zero(), even, odd;
      for (int32_t t = 0; t < shape.taps; ++t) {
        const float* from = x + 2 * column + shape.tap_offset[t];
        deinterleave(load(from), load(from + kLanes), even, odd);
        sum = fma(broadcast(w[t]), even, sum);
      }
      put_lanes(y, sum, row * out.pitch + column, left >= kLanes ? ~0u : (1u << left) - 1, finish);
    }
  }
}

template <bool Plain>
void strided_planes(const StridedShape& shape, const float* weights, const ConvCall& call) {
  const DirectShape zeros{shape.in_channels, shape.out_channels, 0, nullptr, shape.out};
  const bool by_two = is_3x3_by_two(shape);
  const int32_t ahead = planes_ahead(shape.out);
  for (int32_t i = 0; i < call.n_out; ++i) {
    const int32_t channel = call.out_channel[i];
    Finisher<Plain> finish(call.epilogue, channel_epilogue(call.epilogue, channel, i));
    const int32_t next = i + ahead < call.n_out ? i + ahead : i;
    finish.next_output = call.output[next];
    finish.next_input = call.input[next] ? call.input[next] : call.output[next];
    const float* w = weights + static_cast<int64_t>(channel) * shape.taps;
    if (!call.input[i]) {
      zero_plane(zeros, call.output[i], finish);
    } else if (by_two) {
      strided_3x3(shape, call.input[i], w, call.output[i], finish);
    } else {
      strided_plane(shape, call.input[i], w, call.output[i], finish);
    }
  }
}

void conv_depthwise_strided(const StridedShape& shape, const float* weights, const ConvCall& call) {
  if (is_plain(call.epilogue)) {
    strided_planes<true>(shape, weights, call);
  } else {
    strided_planes<false>(shape, weights, call);
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_conv_depthwise)(KernelTable& table) {
  table.conv_depthwise = conv_depthwise;
  table.conv_depthwise_strided = conv_depthwise_strided;
}

}  // namespace dynprune::cpu
