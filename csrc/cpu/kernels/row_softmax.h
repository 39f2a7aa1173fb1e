// One query row and one block of keys: raw products in, unnormalised probabilities and the updated
// softmax state out.
#pragma once

#include "cpu/kernels/keys.h"
#include "vrga/softmax_state.h"

namespace vrga::cpu::VRGA_ISA {

// s_j = scale * q.k, soft-capped, plus bias (null: no mask); columns from n up to the next vector
// become masked. Returns the maximum, ignoring NaN; -inf if there is nothing to attend to.
VRGA_HOST_DEVICE float finish_scores(float* s, int n, float scale, float softcap,
                                     const float* bias) {
  Vec highest = splat(kMasked);
  const auto finish = [&](int j) {
    Vec x = load(s + j) * splat(scale);
    if (softcap != 0.0f) {
      x = splat(softcap) * tanh(x * splat(1.0f / softcap));
    }
    if (bias != nullptr) {
      const Vec add = load(bias + j);
      x = select_less(add, splat(kLowest), splat(kMasked), x + add);
    }
    store(s + j, x);
    return x;
  };
  int j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    highest = max_keep_second(finish(j), highest);
  }
  if (j < n) {
    finish(j);
    for (int i = n; i < j + kWidth; ++i) {
      s[i] = kMasked;
    }
    highest = max_keep_second(load(s + j), highest);
  }
  return reduce_max(highest);
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

// s_j -> p_j = exp(s_j - m) in place, and the block's sums. Masked columns become exactly 0.
template <bool kImage, bool kWeighted>
VRGA_HOST_DEVICE SoftmaxState exponentiate(float* s, int n, float m, const BlockFlags& flags,
                                           const ImageRow& image) {
  // All scores -inf: any finite reference keeps exp at 0, and lets a NaN through.
  const Vec reference = splat(m == kMasked ? 0.0f : m);
  Vec z = zero(), z_weighted = zero(), z_image = zero(), s_image = zero();
  for (int j = 0; j < n; j += kWidth) {
    const Vec score = load(s + j), distance = score - reference;
    const Vec p = exp_nonpositive(distance);
    store(s + j, p);
    z = z + p;
    if (kImage) {
      const Vec is_image = load(flags.is_image + j), p_image = p * is_image;
      if (image.at != nullptr) {
        const Vec nothing = splat(kNoAttention);
        const Vec seen = select_less(score, splat(kLowest), nothing, p);
        image.put(j, select_less(is_image, splat(1.0f), nothing, seen));
      }
      z_image = z_image + p_image;
      // p is 0 long before -200; the bound keeps 0 * -inf out.
      s_image = fma(p_image, max_keep_second(splat(-200.0f), distance), s_image);
    }
    if (kWeighted) {
      z_weighted = fma(p, load(flags.weight + j), z_weighted);
    }
  }
  if (!kImage) {
    image.put_nothing();
  }
  float plain[2], of_image[2];
  reduce2x2(z, z_weighted, z_image, s_image, plain, of_image);
  SoftmaxState block;
  block.m = m;
  block.z = plain[0];
  block.z_weighted = plain[kWeighted ? 1 : 0];
  block.z_image = of_image[0];
  block.s_image = of_image[1];
  return block;
}

// Returns the factor by which earlier output sums of this row must be scaled.
VRGA_HOST_DEVICE float softmax_block(float* s, int n, float highest, const BlockFlags& flags,
                                     SoftmaxState& state, const ImageRow& image) {
  const float m = highest > state.m ? highest : state.m;
  const float factor = rebase<Nats>(state, m);
  if (flags.image != 0) {
    add(state, flags.weighted ? exponentiate<true, true>(s, n, m, flags, image)
                              : exponentiate<true, false>(s, n, m, flags, image));
  } else {
    add(state, flags.weighted ? exponentiate<false, true>(s, n, m, flags, image)
                              : exponentiate<false, false>(s, n, m, flags, image));
  }
  return factor;
}

}  // namespace vrga::cpu::VRGA_ISA
