// From a merged softmax state to the statistics of a head, its gate, and the normaliser of its
// output.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/params.h"
#include "core/softmax_state.h"

namespace vrga {

struct HeadStatistics {
  float image_ratio;    // R_img   = (z_image / z) * M / n
  float image_entropy;  // H_img   = log z_image - s_image / z_image, nats, inside the image
  float joint_entropy;  // H_joint = (z_image log z - s_image) / z, nats, over all keys
};

// A share of the mass below this counts as none: p_j that far below the highest are about to
// underflow in fp32, or have, and what is divided by their sum is noise or overflows.
constexpr float kLeastShare = 0x1p-100f;

// No attended key, no image key, or no image mass: all three are 0. A NaN anywhere in the row, or
// nothing but -inf in it: all three are NaN, even where the image part is finite.
template <class Unit>
VRGA_HOST_DEVICE HeadStatistics head_statistics(const SoftmaxState& state) {
  if (state.attended == 0 || state.image == 0) {
    return {0.0f, 0.0f, 0.0f};
  }
  if (!(state.z > 0.0f)) {
    return {NAN, NAN, NAN};
  }
  if (state.z_image < kLeastShare * state.z) {
    return {0.0f, 0.0f, 0.0f};
  }
  const float s_image = state.s_image * Unit::kToNats;
  const float ratio = state.z_image / state.z *
                      (static_cast<float>(state.attended) / static_cast<float>(state.image));
  const float image_entropy = logf(state.z_image) - s_image / state.z_image;
  const float joint_entropy = (state.z_image * logf(state.z) - s_image) / state.z;
  // Both entropies are >= 0; a single dominant key leaves them a rounding error below.
  return {ratio, image_entropy < 0.0f ? 0.0f : image_entropy,
          joint_entropy < 0.0f ? 0.0f : joint_entropy};
}

// The choice of `gate` before the edge cases of `resolve`. A NaN statistic fails every comparison
// and closes a dynamic gate.
VRGA_HOST_DEVICE bool gate_opens(const GateParams& gate, bool head_enabled,
                                 const HeadStatistics& statistics) {
  if (gate.kind == GateKind::kStatic) {
    return head_enabled;
  }
  return head_enabled && statistics.image_ratio > gate.min_ratio &&
         statistics.image_ratio > gate.entropy_factor * statistics.joint_entropy;
}

struct GateDecision {
  bool open;         // use the weighted sums
  float normaliser;  // 1 / z_weighted if open, else 1 / z; 0 for a row that attends to nothing
};

// A row without an attended key is closed and outputs 0. A row whose mass the weights remove stays
// as it was. `z`: what the plain sums are divided by, state.z or the same with rounded terms.
template <class Unit>
VRGA_HOST_DEVICE GateDecision resolve(const GateParams& gate, bool head_enabled,
                                      const SoftmaxState& state, float z,
                                      const HeadStatistics& statistics) {
  if (state.attended == 0) {
    return {false, 0.0f};
  }
  const bool open =
      gate_opens(gate, head_enabled, statistics) && !(state.z_weighted < kLeastShare * state.z);
  return {open, 1.0f / (open ? state.z_weighted : z)};
}

VRGA_HOST_DEVICE float key_weight(const GateParams& gate, uint8_t flags) {
  if (flags & kFlagFocus) {
    return gate.focus_weight;
  }
  return flags & kFlagImage ? gate.image_weight : 1.0f;
}

}  // namespace vrga
