// Winograd convolution F(4x4, 3x3) on bf16 maps, for AVX512_BF16: that of conv_winograd.cc, which reads halves of
// words and writes two outputs at a time.
//
// vdpbf16ps does twice the multiply-adds of float32; Winograd saves three quarters of them. Weights are stored raw, as
// bf16, and transformed on the fly: stored transformed they would take eight times the memory.
#include "cpu/bf16_kernels.h"

#if defined(__AVX512BF16__)

#include "cpu/bf16_vector.h"
#include "cpu/winograd_groups.h"
#include "cpu/winograd_input.h"
#include "cpu/winograd_output.h"

namespace dynprune::cpu {
namespace {

constexpr int kTile = 4;  // outputs of a tile, each way

WinogradSizes bf16_winograd_sizes(const Bf16ConvShape& conv) {
  const WinogradShape shape = bf16_winograd_shape(conv);
  const TileGrid grid = tile_grid(shape.out, kTile, kLanes);
  const auto elements = static_cast<size_t>(tile_elements(shape));
  return {static_cast<size_t>(channel_blocks(shape.out_channels) * shape.in_channels * kRawBlock),
          static_cast<size_t>(matrix_stride(grid, shape.in_channels)) * elements,
          static_cast<size_t>(matrix_stride(grid, kGroup) + group_matrix(shape.in_channels, kGroup)) * elements};
}

void bf16_winograd_pack(const Bf16ConvShape& conv, const uint16_t* weights, uint16_t* packed) {
  pack_raw(conv.out_channels, conv.in_channels, weights, packed);
}

struct LowHalves {
  static DYNPRUNE_INLINE Vec floats(Vec words) { return low_floats(_mm512_castps_si512(words)); }
};
struct HighHalves {
  static DYNPRUNE_INLINE Vec floats(Vec words) { return high_floats(_mm512_castps_si512(words)); }
};

void bf16_winograd_input(const Bf16ConvShape& conv, TileRows rows, const Bf16ConvCall& call, const int32_t* positions,
                         int32_t first, int32_t last, float* v) {
  const TileGrid grid = tile_grid(conv.out, kTile, kLanes, rows);
  const int64_t stride = matrix_stride(grid, call.n_in);
  for (int32_t i = first; i < last; ++i) {
    const int32_t at = positions ? positions[i] : i;
    // Words are only moved as floats, until a policy above has made floats of them.
    const auto* words = reinterpret_cast<const float*>(call.input.data + at / kBf16PerWord * call.input.stride);
    (at % kBf16PerWord ? input_plane<kTile, HighHalves> : input_plane<kTile, LowHalves>)(grid, conv.out, words,
                                                                                         v + at * grid.stride, stride);
  }
}

// What becomes of the finished rows of an output.
enum class HalfUse {
  kKept,    // low halves, kept as floats until the high ones are there
  kPaired,  // high halves, stored with the low ones
  kAlone,   // the other halves of the words stay, or become zero
};

// An output of a Winograd convolution, as one half of the words of a plane (see OutputPlane).
template <HalfUse Use>
struct HalfPlane {
  uint32_t* y;
  const PlaneShape* map;
  const Epilogue* epilogue;
  ChannelEpilogue channel;
  float* rows;       // [kRowSlots][kLanes]
  bool high;         // kAlone: which half
  bool others_stay;  // kAlone

  template <EpilogueKind Kind>
  DYNPRUNE_INLINE void store_row(const ChannelFinish<Kind>& finish, int slot, int64_t position, uint32_t bits,
                                 Vec v) const {
    const auto mask = static_cast<__mmask16>(bits);
    uint32_t* const to = y + position;
    __m512i before = _mm512_setzero_si512();
    if (ChannelFinish<Kind>::kMayAdd || Use == HalfUse::kAlone) before = _mm512_maskz_loadu_epi32(mask, to);
    Vec residual = zero();
    if (ChannelFinish<Kind>::kMayAdd && epilogue->residual) {
      const bool is_high = Use == HalfUse::kAlone ? high : Use == HalfUse::kPaired;
      residual = is_high ? high_floats(before) : low_floats(before);
    }
    v = finish(v, residual);
    if constexpr (Use == HalfUse::kKept) {
      store(rows + slot * kLanes, v);
    } else if constexpr (Use == HalfUse::kPaired) {
      _mm512_mask_storeu_epi32(to, mask, round_pairs(load(rows + slot * kLanes), v));
    } else {
      const __m512i words = high ? round_pairs(zero(), v) : round_pairs(v, zero());
      const __mmask32 own = high ? 0xaaaaaaaau : 0x55555555u;
      _mm512_mask_storeu_epi32(to, mask, others_stay ? _mm512_mask_mov_epi16(before, own, words) : words);
    }
  }
};

// Transforms the products of outputs back and stores them, in pairs where both halves of a word are at hand.
struct WordWriter {
  const Bf16ConvShape& shape;
  const Bf16Weights& weights;
  const Bf16ConvCall& call;
  const TileGrid& grid;
  const Epilogue& epilogue;
  int64_t matrix;  // floats between elements of a tile in the products

  // Where entry i of out_channel goes, counted in halves.
  int32_t half_of_entry(int32_t i) const { return shape.adds ? call.out_channel[i] : i; }
  bool pairs(int32_t i) const { return half_of_entry(i) % 2 == 0 && half_of_entry(i + 1) == half_of_entry(i) + 1; }

  template <HalfUse Use>
  HalfPlane<Use> plane(int32_t i, float* rows) const {
    const int32_t at = half_of_entry(i);
    const Bf16Channel c = bf16_channel(weights, call.out_channel[i]);
    return {call.output.data + at / kBf16PerWord * call.output.stride,
            &shape.out,
            &epilogue,
            {c.bias, c.gate, c.shift, nullptr},
            rows,
            at % kBf16PerWord == 1,
            shape.adds || at % kBf16PerWord == 1};
  }
  template <HalfUse Use>
  OutputTilesFn<HalfPlane<Use>> tiles() const {
    return kOutputTiles<kTile, HalfPlane<Use>>[grid.kind()][static_cast<int>(epilogue_kind(epilogue))];
  }

  // Entries [first, last), whose products are `grid.stride` apart.
  void write(int32_t first, int32_t last, const float* products) const {
    alignas(64) float rows[kRowSlots * kLanes];
    for (int32_t i = first; i < last;) {
      const float* own = products + (i - first) * grid.stride;
      if (i + 1 < last && pairs(i)) {
        const auto low = plane<HalfUse::kKept>(i, rows);
        const auto high = plane<HalfUse::kPaired>(i + 1, rows);
        for_each_tile_vector(grid, [&](int32_t row, int32_t column, int64_t lane) {
          tiles<HalfUse::kKept>()(low, row, column, own + lane, matrix);
          tiles<HalfUse::kPaired>()(high, row, column, own + grid.stride + lane, matrix);
        });
        i += kBf16PerWord;
      } else {
        output_plane<kTile>(grid, plane<HalfUse::kAlone>(i, rows), own, matrix);
        ++i;
      }
    }
  }
};

void bf16_winograd_output(const Bf16ConvShape& conv, TileRows rows, const uint16_t* packed, const Bf16Weights& weights,
                          const float* v, const Bf16ConvCall& call, int32_t first, int32_t last,
                          float* thread_scratch) {
  static constexpr const float* kInPlace[1] = {nullptr};  // says that there is a residual: what the output holds
  const WinogradShape shape = bf16_winograd_shape(conv);
  const TileGrid grid = tile_grid(shape.out, kTile, kLanes, rows);
  const int32_t elements = tile_elements(shape);
  const Epilogue epilogue{weights.bias, weights.gate, weights.shift, conv.adds ? kInPlace : nullptr,
                          conv.inner,   conv.outer};
  const ConvCall lists{nullptr, call.in_channel, call.n_in, nullptr, call.out_channel, call.n_out, epilogue};
  const WordWriter writer{conv, weights, call, grid, epilogue, matrix_stride(grid, kGroup)};
  float* products = thread_scratch;
  float* u = thread_scratch + writer.matrix * elements;
  const int32_t most = raw_group_limit(call.n_in, elements);
  for (Group group{first, first}, next = next_group(lists, first, last, most); group.last < last;) {
    group = next;
    next = next_group(lists, group.last, last, most);
    multiply_raw_group(shape, grid, lists, group, next, packed, v, products, u);
    writer.write(group.first, group.last, products);
  }
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_bf16_winograd)(Bf16Kernels& table) {
  table.has_winograd = true;
  table.winograd_sizes = bf16_winograd_sizes;
  table.winograd_pack = bf16_winograd_pack;
  table.winograd_input = bf16_winograd_input;
  table.winograd_output = bf16_winograd_output;
}

}  // namespace dynprune::cpu

#else

#include "cpu/vec.h"

namespace dynprune::cpu {

// What portable code computes is to be the same bits on every ISA.
void DYNPRUNE_ISA_NAME(fill_bf16_winograd)(Bf16Kernels& table) { table.has_winograd = false; }

}  // namespace dynprune::cpu

#endif
