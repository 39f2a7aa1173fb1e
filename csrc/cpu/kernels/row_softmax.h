// One query row and one block of keys: raw products in, unnormalised probabilities and the updated
// softmax state out.
#pragma once

#include "core/softmax_state.h"
#include "cpu/kernels/keys.h"

namespace vrga::cpu::VRGA_ISA {

// The scores of one row and block, in part still to be computed: score j is scale * s[j].
struct RowScores {
  float scale;
  float highest;  // score, ignoring NaN; -inf if there is nothing to attend to
};

// From here on floats are whole numbers, and a score differs from its rounded self by more than exp
// should see.
constexpr float kRoundedScore = 0x1p24f;

// Products q.k in place to scores: scaled, soft-capped, plus bias (null: no mask). Those that are
// only scaled stay as they are, unless they are huge. Columns from n up to the next vector become
// masked.
VRGA_HOST_DEVICE RowScores finish_scores(float* s, int n, float scale, float softcap,
                                         const float* bias) {
  if (softcap != 0.0f || bias != nullptr || !(scale > 0.0f)) {
    for (int j = 0; j < n; j += kWidth) {
      Vec x = load(s + j) * splat(scale);
      if (softcap != 0.0f) {
        x = splat(softcap) * tanh(x * splat(1.0f / softcap));
      }
      if (bias != nullptr) {
        const Vec add = load(bias + j);
        x = select_less(add, splat(kLowest), splat(kMasked), x + add);
      }
      store(s + j, x);
    }
    scale = 1.0f;
  }
  for (int i = n; i % kWidth != 0; ++i) {
    s[i] = kMasked;
  }
  Vec highest = splat(kMasked);
  for (int j = 0; j < n; j += kWidth) {
    highest = max_keep_second(load(s + j), highest);
  }
  const float top = reduce_max(highest) * scale;
  if (scale != 1.0f && (top > kRoundedScore || top < -kRoundedScore)) {
    for (int j = 0; j < n; j += kWidth) {
      store(s + j, load(s + j) * splat(scale));
    }
    scale = 1.0f;
  }
  return {scale, top};
}

// Where the p_j of a row's image keys go besides, for row_statistics; `at` null: nowhere.
struct ImageRow {
  float* at = nullptr;
  int count = 0;  // columns of the block that exist there

  VRGA_HOST_DEVICE void put(int j, Vec x) const {
    if (j + kWidth <= count) {
      store(at + j, x);
    } else if (j < count) {
      store_partial(at + j, x, count - j);
    }
  }
  VRGA_HOST_DEVICE void put_nothing() const {
    for (int j = 0; j < count; j += kWidth) {
      put(j, splat(kNoAttention));
    }
  }
};

enum class ImageKeys { kNone, kSome, kAll };  // of a block

// Scores -> p_j = exp(score - m) in place, and the block's sums. Masked columns become exactly 0.
template <ImageKeys kImage, bool kWeighted>
VRGA_HOST_DEVICE SoftmaxState exponentiate(float* s, int n, float scale, float m,
                                           const BlockFlags& flags, const ImageRow& image) {
  // All scores -inf: any finite reference keeps exp at 0, and lets a NaN through.
  const Vec reference = splat(m == kMasked ? 0.0f : -m);
  Vec z = zero(), z_weighted = zero(), z_image = zero(), s_image = zero();
  for (int j = 0; j < n; j += kWidth) {
    const Vec score = load(s + j);
    const Vec distance = not_below_underflow(fma(score, splat(scale), reference));
    const Vec p = exponential(distance);
    store(s + j, p);
    z = z + p;
    if (kImage != ImageKeys::kNone) {
      Vec p_image = p, seen = p;
      if (kImage == ImageKeys::kSome) {
        const Vec is_image = load(flags.is_image + j);
        p_image = p * is_image;
        seen = select_less(is_image, splat(1.0f), splat(kNoAttention), p);
      }
      if (image.at != nullptr) {
        image.put(j, select_less(score, splat(kLowest), splat(kNoAttention), seen));
      }
      z_image = z_image + p_image;
      s_image = fma(p_image, distance, s_image);
    }
    if (kWeighted) {
      z_weighted = fma(p, load(flags.weight + j), z_weighted);
    }
  }
  if (kImage == ImageKeys::kNone) {
    image.put_nothing();
  }
  float sums[4];
  store(sums, lane_sums(z, z_weighted, z_image, s_image));
  SoftmaxState block;
  block.m = m;
  block.z = sums[0];
  block.z_weighted = sums[kWeighted ? 1 : 0];
  block.z_image = sums[2];
  block.s_image = sums[3];
  return block;
}

template <bool kWeighted>
VRGA_HOST_DEVICE SoftmaxState exponentiate(float* s, int n, float scale, float m,
                                           const BlockFlags& flags, const ImageRow& image) {
  if (flags.image == 0) {
    return exponentiate<ImageKeys::kNone, kWeighted>(s, n, scale, m, flags, image);
  }
  if (flags.image == first_keys(n)) {
    return exponentiate<ImageKeys::kAll, kWeighted>(s, n, scale, m, flags, image);
  }
  return exponentiate<ImageKeys::kSome, kWeighted>(s, n, scale, m, flags, image);
}

// The reference point of a row moves only when a score is this much above it: exp is far from its
// limits there, and in most blocks no sum needs to be scaled.
template <class T>
constexpr float kRise = 8.0f;
#if defined(VRGA_BF16_DOT) && !defined(VRGA_BF16_TILES)
template <>
inline constexpr float kRise<BFloat16> = 0.0f;  // p is rounded to bf16; the highest is 1, exactly
#endif

// Returns the factor by which earlier output sums of this row must be scaled.
template <class T>
VRGA_HOST_DEVICE float softmax_block(float* s, int n, const RowScores& row, const BlockFlags& flags,
                                     SoftmaxState& state, const ImageRow& image) {
  const float m = row.highest > state.m + kRise<T> ? row.highest : state.m;
  const float factor = rebase<Nats>(state, m);
  add(state, flags.weighted ? exponentiate<true>(s, n, row.scale, m, flags, image)
                            : exponentiate<false>(s, n, row.scale, m, flags, image));
  return factor;
}

}  // namespace vrga::cpu::VRGA_ISA
