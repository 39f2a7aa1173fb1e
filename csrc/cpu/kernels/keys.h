// What is known about one block of keys before any score: its flags and who may attend to it.
#pragma once

#include "core/gate.h"
#include "cpu/job.h"

namespace vrga::cpu::VRGA_ISA {

constexpr float kMasked = -INFINITY;
constexpr float kLowest = -3.402823466e38f;  // scores below it (that is, -inf) are masked
constexpr float kNoAttention = -1.0f;        // in place of a p_j >= 0: a masked or a text key

// Sets of keys of a block: bit j is key j.
using KeySet = uint64_t;
static_assert(kBlockKeys == 64, "one bit per key");

VRGA_HOST_DEVICE KeySet first_keys(int n) {
  return n < 64 ? (KeySet{1} << n) - 1 : ~KeySet{0};
}

// Flags of n keys for arithmetic: 1 for an image key, else 0, and w_j. For the compiler to
// vectorise.
VRGA_HOST_DEVICE void widen_flags(const uint8_t* flags, int64_t n, float focus_weight,
                                  float image_weight, float* __restrict is_image,
                                  float* __restrict weight) {
  for (int64_t j = 0; j < n; ++j) {
    const int flag = flags[j];
    is_image[j] = static_cast<float>(flag & kFlagImage);
    const float unfocused = flag & kFlagImage ? image_weight : 1.0f;
    weight[j] = flag & kFlagFocus ? focus_weight : unfocused;
  }
}

// Flags of the keys [first, first + n) of one batch row.
struct BlockFlags {
  KeySet image;                 // image keys
  KeySet classes[kMaxClasses];  // keys of each weight; every key is in one of them
  bool weighted;                // some key is outside class 0

  // For arithmetic; filled only if some key has a flag.
  float is_image[kBlockKeys];  // 1 for an image key, else 0
  float weight[kBlockKeys];    // w_j

  void read(const uint8_t* flags, int64_t n_flags, int64_t first, int n,
            const KeyClasses& key_classes) {
    const int64_t left = n_flags - first;
    const int64_t known = left < 0 ? 0 : left < n ? left : n;
    const uint8_t* of_key = known > 0 ? flags + first : nullptr;
    uint8_t copy[kBlockKeys];
    if (known < kBlockKeys) {
      memset(copy, 0, sizeof(copy));
      if (known > 0) {
        memcpy(copy, of_key, static_cast<size_t>(known));
      }
      of_key = copy;
    }
    image = bytes_with(of_key, 0);
    const KeySet focus = bytes_with(of_key, 1), all = first_keys(n);
    const KeySet of_flags[4] = {all & ~image & ~focus, image & ~focus, focus & ~image,
                                image & focus};
    classes[0] = classes[1] = classes[2] = 0;
    for (int f = 0; f < 4; ++f) {
      classes[key_classes.of_flags[f]] |= of_flags[f];
    }
    weighted = (classes[1] | classes[2]) != 0;
    if ((image | focus) == 0) {
      return;
    }
    const float focus_weight = key_classes.weight[key_classes.of_flags[kFlagFocus]];
    const float image_weight = key_classes.weight[key_classes.of_flags[kFlagImage]];
    widen_flags(of_key, kBlockKeys, focus_weight, image_weight, is_image, weight);
  }
};

// One distinct mask row (heads or query rows that share it by broadcasting share this too).
struct MaskRow {
  int64_t offset;                       // of its first key in the mask, in elements
  int64_t attended, image;              // M and n, summed over the blocks of a split
  enum { kNothing, kAll, kSome } kind;  // of the current block; kAll: nothing masked, nothing added
};

// The masks of one chunk of query rows.
struct MaskRows {
  MaskRow row[kMaxRows];
  uint8_t of_query[kMaxRows];  // query row -> its mask row
  int count = 0;

  void locate(const MaskView& mask, int64_t b, int64_t first_head, int64_t s_q, int64_t first_row,
              int rows) {
    for (int r = 0; r < rows; ++r) {
      const int64_t head = first_head + (first_row + r) / s_q;
      const int64_t offset =
          b * mask.stride_b + head * mask.stride_h + (first_row + r) % s_q * mask.stride_s;
      int u = 0;
      while (u < count && row[u].offset != offset) {
        ++u;
      }
      if (u == count) {
        row[count++] = {offset, 0, 0, MaskRow::kAll};
      }
      of_query[r] = static_cast<uint8_t>(u);
    }
  }
};

template <class M>
VRGA_HOST_DEVICE float mask_bias(M value, float lowest) {
  const float x = to_float(value);
  return x <= lowest ? kMasked : x;
}
VRGA_HOST_DEVICE float mask_bias(bool attend, float) {
  return attend ? 0.0f : kMasked;
}

// bias[j] = what the mask adds, kMasked where the key is not attended (or beyond n).
template <class M>
void read_bias(const M* mask, int64_t stride, int n, float lowest, float* bias) {
  if (stride == 1) {
    for (int j = 0; j < n; ++j) {
      bias[j] = mask_bias(mask[j], lowest);
    }
  } else {
    for (int j = 0; j < n; ++j) {
      bias[j] = mask_bias(mask[j * stride], lowest);
    }
  }
  for (int j = n; j < kBlockKeys; ++j) {
    bias[j] = kMasked;
  }
}

inline void read_bias(const MaskView& mask, int64_t offset, int n, float* bias) {
  switch (mask.kind) {
    case MaskKind::kBool:
      return read_bias(static_cast<const bool*>(mask.data) + offset, mask.stride_k, n, 0.0f, bias);
    case MaskKind::kFloat32:
      return read_bias(static_cast<const float*>(mask.data) + offset, mask.stride_k, n, kLowest,
                       bias);
    case MaskKind::kBFloat16:
      return read_bias(static_cast<const BFloat16*>(mask.data) + offset, mask.stride_k, n,
                       -0x1.fep127f, bias);
    case MaskKind::kFloat16:
      return read_bias(static_cast<const Half*>(mask.data) + offset, mask.stride_k, n, -65504.0f,
                       bias);
    case MaskKind::kNone:
      return;
  }
}

}  // namespace vrga::cpu::VRGA_ISA
