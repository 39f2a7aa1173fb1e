// The scalar half of one query row's online softmax, and how two of them merge.
//
// With p_j = exp(s_j - m) over the attended keys M, the attended image keys V, and the weight w_j
// of a key:
//
//     z          = sum_M p_j
//     z_weighted = sum_M w_j p_j
//     z_image    = sum_V p_j
//     s_image    = sum_V p_j (s_j - m)
//
// z_weighted is Z + Z_delta of the method. It is kept as a sum of its own because every term is >=
// 0: when w removes almost all of the mass, Z - (a little less than Z) would be rounding noise, and
// "exactly zero" could not be told from "small". The vector half (the sums of p_j v_j) belongs to
// the kernel; `merge` returns the factors to apply to it.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace vrga {

constexpr float kLn2 = 0.693147180559945309f;
constexpr float kLog2e = 1.442695040888963407f;

// The unit in which a kernel keeps its scores (m and s_image). A GPU prefers bits: log2(e) folds
// into the scale.
struct Nats {
  static constexpr float kToNats = 1.0f;
  static VRGA_HOST_DEVICE float exponential(float x) { return expf(x); }
};
struct Bits {
  static constexpr float kToNats = kLn2;
  static VRGA_HOST_DEVICE float exponential(float x) { return exp2f(x); }
};

VRGA_HOST_DEVICE float negative_infinity() {
  return -INFINITY;
}

// No key seen yet: m = -inf, every sum 0. This is the identity of `merge`.
struct SoftmaxState {
  float m = -INFINITY;      // reference point: max s_j, or not far below; in the unit of the kernel
  float z = 0.0f;           // sum p_j
  float z_weighted = 0.0f;  // sum w_j p_j
  float z_image = 0.0f;     // sum over V of p_j
  float s_image = 0.0f;     // sum over V of p_j (s_j - m), in the unit of the kernel
  int32_t attended = 0;     // M
  int32_t image = 0;        // n = |V|
};

struct MergeFactors {
  // Multiply the unnormalised output sums of either side by these before adding them.
  float left, right;
};

// exp(m_old - m_new) for m_old <= m_new. m_new = -inf means that neither side saw a finite score:
// their sums are 0 (or NaN, which the factor 1 lets through).
template <class Unit>
VRGA_HOST_DEVICE float decay(float m_old, float m_new) {
  return m_old == m_new ? 1.0f : Unit::exponential(m_old - m_new);
}

// Moves the reference point of a state to m_new >= state.m. When m grows by d, every p_j shrinks by
// exp(-d) and every (s_j - m) loses d. Returns the factor for the vector sums.
template <class Unit>
VRGA_HOST_DEVICE float rebase(SoftmaxState& state, float m_new) {
  const float factor = decay<Unit>(state.m, m_new);
  // With m = -inf the sums are 0, and 0 * inf would make a NaN of them.
  const float shift = state.m == negative_infinity() ? 0.0f : state.m - m_new;
  state.s_image =
      factor == 0.0f ? factor * state.s_image : factor * (state.s_image + shift * state.z_image);
  state.z *= factor;
  state.z_weighted *= factor;
  state.z_image *= factor;
  state.m = m_new;
  return factor;
}

// left <- left + right, for states that share one reference point m.
VRGA_HOST_DEVICE void add(SoftmaxState& left, const SoftmaxState& right) {
  left.z += right.z;
  left.z_weighted += right.z_weighted;
  left.z_image += right.z_image;
  left.s_image += right.s_image;
  left.attended += right.attended;
  left.image += right.image;
}

// left <- left + right. Not associative to the last bit: merge splits in ascending key order, so
// that results repeat.
template <class Unit>
VRGA_HOST_DEVICE MergeFactors merge(SoftmaxState& left, SoftmaxState right) {
  const float m_new = left.m > right.m ? left.m : right.m;
  const MergeFactors factors{rebase<Unit>(left, m_new), rebase<Unit>(right, m_new)};
  add(left, right);
  return factors;
}

}  // namespace vrga
