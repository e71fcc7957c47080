// What is done to a finished sum before it is stored. The order of operations is the contract of
// docs/internals.md: bias, inner clamp, gate, shift, residual, outer clamp, every step rounded on its own.
// An absent step uses its neutral value, so that all kernels round alike (up to the sign of zero).
#pragma once

#include "kernels.h"
#include "vec.h"

namespace dynprune::cpu {
namespace {

struct ChannelEpilogue {
  float bias, gate, shift;
  const float* residual;  // plane, or null
};

// Terms of the output at `position` in the list of live outputs, which is channel `channel` of the model.
DYNPRUNE_INLINE ChannelEpilogue channel_epilogue(const Epilogue& e, int32_t channel, int32_t position) {
  return {e.bias ? e.bias[channel] : 0.0f, e.gate ? e.gate[channel] : 1.0f, e.shift ? e.shift[channel] : 0.0f,
          e.residual ? e.residual[position] : nullptr};
}

// True if only bias and clamps are there; the two clamps are then one.
DYNPRUNE_INLINE bool is_plain(const Epilogue& e) { return !e.gate && !e.shift && !e.residual; }

DYNPRUNE_INLINE float clamp_scalar(float x, Clamp c) {
  const float low = x < c.lo ? c.lo : x;
  return low > c.hi ? c.hi : low;
}

// The clamp that equals `inner` followed by `outer`.
DYNPRUNE_INLINE Clamp merged_clamp(const Epilogue& e) {
  return {clamp_scalar(e.inner.lo, e.outer), clamp_scalar(e.inner.hi, e.outer)};
}

// NaN passes: the operand order matters, see vec.h.
DYNPRUNE_INLINE Vec limit(Vec x, Vec lo, Vec hi) { return min(hi, max(lo, x)); }

// Bias and one clamp, in registers.
struct PlainFinish {
  Vec lo, hi;
  DYNPRUNE_INLINE explicit PlainFinish(Clamp c) : lo(broadcast(c.lo)), hi(broadcast(c.hi)) {}
  DYNPRUNE_INLINE Vec operator()(Vec sum, Vec bias) const { return limit(add(sum, bias), lo, hi); }
};

// All steps. `residual` is the vector of the residual plane, or zero() where there is none.
struct FullFinish {
  Vec inner_lo, inner_hi, outer_lo, outer_hi;
  DYNPRUNE_INLINE explicit FullFinish(const Epilogue& e)
      : inner_lo(broadcast(e.inner.lo)),
        inner_hi(broadcast(e.inner.hi)),
        outer_lo(broadcast(e.outer.lo)),
        outer_hi(broadcast(e.outer.hi)) {}
  DYNPRUNE_INLINE Vec operator()(Vec sum, const ChannelEpilogue& c, Vec residual) const {
    Vec v = limit(add(sum, broadcast(c.bias)), inner_lo, inner_hi);
    v = add(mul(v, broadcast(c.gate)), broadcast(c.shift));
    return limit(add(v, residual), outer_lo, outer_hi);
  }
};

// Epilogues that are common enough for code of their own: fewer instructions, the same bits (up to the sign of zero).
enum class EpilogueKind {
  kPlain,  // bias, clamp
  kGated,  // bias, clamp, gate
  kAdded,  // bias, residual, clamp
  kFull,
};
constexpr int kEpilogueKinds = 4;

DYNPRUNE_INLINE bool is_unbounded(Clamp c) { return c.lo == -__builtin_inff() && c.hi == __builtin_inff(); }

inline EpilogueKind epilogue_kind(const Epilogue& e) {
  if (is_plain(e)) return EpilogueKind::kPlain;
  if (!e.shift && !e.residual && is_unbounded(e.outer)) return EpilogueKind::kGated;
  if (!e.shift && !e.gate && is_unbounded(e.inner)) return EpilogueKind::kAdded;
  return EpilogueKind::kFull;
}

// Finishes vectors of one channel. `residual` is read only where the epilogue has one.
template <EpilogueKind Kind>
struct ChannelFinish {
  const Epilogue& epilogue;
  const ChannelEpilogue& channel;
  Clamp plain = merged_clamp(epilogue);
  static constexpr bool kMayAdd = Kind == EpilogueKind::kAdded || Kind == EpilogueKind::kFull;
  DYNPRUNE_INLINE Vec operator()(Vec sum, Vec residual) const {
    if constexpr (Kind == EpilogueKind::kFull) return FullFinish(epilogue)(sum, channel, residual);
    const Vec v = add(sum, broadcast(channel.bias));
    if constexpr (Kind == EpilogueKind::kPlain) return limit(v, broadcast(plain.lo), broadcast(plain.hi));
    const Clamp limits = Kind == EpilogueKind::kGated ? epilogue.inner : epilogue.outer;
    const Vec lo = broadcast(limits.lo), hi = broadcast(limits.hi);
    return Kind == EpilogueKind::kGated ? mul(limit(v, lo, hi), broadcast(channel.gate))
                                        : limit(add(v, residual), lo, hi);
  }
};

}  // namespace
}  // namespace dynprune::cpu
