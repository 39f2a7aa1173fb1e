// What is known of the 16 keys of a warp before their scores: attended, image, question-relevant.
#pragma once

#include "core/gate.h"
#include "cuda/kernels/key_access.cuh"
#include "cuda/kernels/row_update.cuh"

namespace vrga::gpu {

constexpr uint32_t kAllKeys = 0xffffu;

// As loaded, one key per lane (key lane % 16 of the warp's): whoever touches a value waits for it.
struct RawKey {
  uint8_t flags = 0;
  uint8_t attended = 0;
};

// Bit i: key i of the warp's 16.
struct KeyBits {
  uint32_t attended;  // where each row has a mask of its own: within the range
  uint32_t image, focus;

  VRGA_DEVICE_MEMBER explicit KeyBits(const RawKey& own)
      : attended(ballot(own.attended != 0) & kAllKeys),
        image(ballot((own.flags & kFlagImage) != 0) & kAllKeys),
        focus(ballot((own.flags & kFlagFocus) != 0) & kAllKeys) {}

  // Keys with w != 1.
  VRGA_DEVICE_MEMBER uint32_t weighted(const GateParams& gate) const {
    return (gate.focus_weight != 1.0f ? focus : 0u) |
           (gate.image_weight != 1.0f ? image & ~focus : 0u);
  }
  VRGA_DEVICE_MEMBER float weight(const GateParams& gate, int key) const {
    return (focus >> key & 1u) != 0   ? gate.focus_weight
           : (image >> key & 1u) != 0 ? gate.image_weight
                                      : 1.0f;
  }
};

// Reads the flags of a warp's keys, and the mask if it is one byte per key: boolean and the same
// for all rows.
struct KeyReader {
  const uint8_t* flags;  // of the sample
  const uint8_t* mask;   // of the sample, or null
  int64_t stride_mask;
  int32_t flagged, end;
  bool mask_per_row;

  VRGA_DEVICE_MEMBER KeyReader(const AttentionParams& p, int64_t b)
      : flags(p.key_flags + b * p.stride_flags_b),
        stride_mask(p.mask.stride_k),
        flagged(static_cast<int32_t>(p.n_flags)),
        end(static_cast<int32_t>(p.s_kv)) {
    const bool shared = p.mask.kind == MaskKind::kBool && one_mask_row(p);
    mask = shared ? static_cast<const uint8_t*>(p.mask.data) + b * p.mask.stride_b : nullptr;
    mask_per_row = p.mask.kind != MaskKind::kNone && !shared;
  }

  VRGA_DEVICE_MEMBER RawKey read(int first) const {
    const int key = first + lane_index() % 16;
    RawKey own;
    if (key < flagged) {
      own.flags = flags[key];
    }
    if (key < end) {
      own.attended = mask == nullptr ? 1 : mask[key * stride_mask];
    }
    return own;
  }
};

// Keys of the warp that some row attends to. Lanes 4g + t hold keys 2t, 2t + 1, 2t + 8 and 2t + 9
// of rows g and g + 8.
template <int kRowSlots>
VRGA_DEVICE uint32_t used_keys(const KeyGroup<4> (&keys)[kRowSlots]) {
  uint32_t used = 0;
  VRGA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t votes = ballot(keys[0].attended[i] || keys[kRowSlots - 1].attended[i]);
    VRGA_UNROLL
    for (int t = 0; t < 4; ++t) {
      const uint32_t any = (votes & (0x11111111u << t)) != 0 ? 1u : 0u;
      used |= any << (2 * t + i % 2 + i / 2 * 8);
    }
  }
  return used;
}

}  // namespace vrga::gpu
