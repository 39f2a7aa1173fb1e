// One row meets a few more keys: the online softmax of softmax_state.h, a handful of keys per
// thread.
#pragma once

#include <cmath>

#include "core/gate.h"
#include "cuda/kernels/primitives.cuh"
#include "cuda/kernels/split_params.h"

namespace vrga::gpu {

// From a dot product to a score: s = multiplier * x + bias.
struct ScoreScale {
  float multiplier;      // scale or softcap, times log2(e) for scores in bits
  float scale, softcap;  // softcap = 0: off

  VRGA_DEVICE_MEMBER float prepare(float dot) const {
    return softcap > 0.0f ? tanhf(dot * scale / softcap) : dot;
  }
};

VRGA_DEVICE ScoreScale score_scale(const AttentionParams& p) {
  return {(p.softcap > 0.0f ? p.softcap : p.scale) * kLog2e, p.scale, p.softcap};
}

// kKeys keys of one row in one thread.
template <int kKeys>
struct KeyGroup {
  float x[kKeys];     // prepared dot products
  float bias[kKeys];  // additive mask in the unit of the scores
  bool attended[kKeys];
  float p[kKeys];  // exp(s - m), 0 where not attended

  VRGA_DEVICE_MEMBER float score(int i, const ScoreScale& scale) const {
    return fmaf(x[i], scale.multiplier, bias[i]);
  }
  // A NaN score is passed over here and appears in p.
  VRGA_DEVICE_MEMBER float peak(const ScoreScale& scale) const {
    float highest = negative_infinity();
    VRGA_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      highest = attended[i] ? fmaxf(highest, score(i, scale)) : highest;
    }
    return highest;
  }
};

// exp in the unit of the scores. Attention takes the short way in bits. A softmax of given scores
// takes the long one in nats: with nothing else to compute it can be exact at no cost in time.
VRGA_DEVICE float exponential(Bits, float x) {
  return exp2_fast(x);
}
VRGA_DEVICE float exponential(Nats, float x) {
  return expf(x);
}

// exp(x) = 0 below it, in bits and in nats.
constexpr float kLowestDifference = -256.0f;

// The sums of a thread's own keys, z_weighted excepted; `state.m` is already at or above every
// score of the group, or not far below. `image`: bit of key i; has_image says whether any matters.
template <class Unit, int kKeys>
VRGA_DEVICE void add_keys(SoftmaxState& state, KeyGroup<kKeys>& keys, const ScoreScale& scale,
                          const bool (&image)[kKeys], bool has_image) {
  // Without a finite score yet, any finite reference gives p = 0 or NaN, as it should.
  const float reference = state.m == negative_infinity() ? 0.0f : state.m;
  float sum = 0.0f;
  VRGA_UNROLL
  for (int i = 0; i < kKeys; ++i) {
    // One fused multiply-add: the product is not rounded before the difference is taken.
    // m was; beyond 2^30 the two may be further apart than exp2 reaches, and the row becomes NaN.
    const float difference = fmaf(keys.x[i], scale.multiplier, keys.bias[i] - reference);
    keys.p[i] = keys.attended[i] ? exponential(Unit{}, difference) : 0.0f;
    sum += keys.p[i];
    state.attended += keys.attended[i];
    if (has_image && keys.attended[i] && image[i]) {
      state.z_image += keys.p[i];
      // Of no effect but where p = 0: 0 * -inf would not be 0.
      state.s_image = fmaf(keys.p[i], fmaxf(difference, kLowestDifference), state.s_image);
      ++state.image;
    }
  }
  state.z += sum;
}

VRGA_DEVICE void exchange(SoftmaxState& other, const SoftmaxState& state, int distance) {
  other.z = shuffle_xor(state.z, distance);
  other.z_weighted = shuffle_xor(state.z_weighted, distance);
  other.z_image = shuffle_xor(state.z_image, distance);
  other.s_image = shuffle_xor(state.s_image, distance);
  other.attended = shuffle_xor(state.attended, distance);
  other.image = shuffle_xor(state.image, distance);
}
VRGA_DEVICE void exchange(RowState& other, const RowState& state, int distance) {
  exchange(static_cast<SoftmaxState&>(other), static_cast<const SoftmaxState&>(state), distance);
  other.z_output = shuffle_xor(state.z_output, distance);
}

// The sums of lanes `first`, 2 * first, ... below `last` apart are added; all share one m.
template <class State>
VRGA_DEVICE void add_across_lanes(State& state, int first, int last) {
  for (int distance = first; distance < last; distance *= 2) {
    State other;
    exchange(other, state, distance);
    add(state, other);
  }
}

VRGA_DEVICE float max_across_lanes(float value, int first, int last) {
  for (int distance = first; distance < last; distance *= 2) {
    value = fmaxf(value, shuffle_xor(value, distance));
  }
  return value;
}

}  // namespace vrga::gpu
