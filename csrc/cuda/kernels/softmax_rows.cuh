// Scores in, reweighted probabilities and statistics out. One block per row of [B, Hq, Sq]; the
// second sweep over the row finds it in the cache, so that memory is read once and written once.
#pragma once

#include "cuda/kernels/block_result.cuh"
#include "cuda/kernels/row_update.cuh"

namespace vrga::gpu {

constexpr int kSoftmaxWarps = 8;
constexpr int kSoftmaxThreads = kSoftmaxWarps * kWarpSize;

template <class T>
struct Lowest;  // the lowest finite value of a score; at or below it a key is masked
template <>
struct Lowest<float> {
  static constexpr float kValue = -3.40282346638528860e38f;
};
template <>
struct Lowest<BFloat16> {
  static constexpr float kValue = -3.38953138925153547e38f;
};
template <>
struct Lowest<Float16> {
  static constexpr float kValue = -65504.0f;
};

// 16 bytes of scores and the flags of their keys; keys at or beyond the end are masked.
template <class T>
struct ScoreVector {
  static constexpr int kKeys = 16 / sizeof(T);
  struct alignas(16) Words {
    T element[kKeys];
  };
  float value[kKeys];
  uint8_t flags[kKeys];

  VRGA_DEVICE_MEMBER void load(const T* scores, const uint8_t* key_flags, int64_t first,
                               int64_t keys, int64_t flagged, bool aligned) {
    const bool whole = first + kKeys <= keys;
    if (aligned && whole) {
      const Words words = *reinterpret_cast<const Words*>(scores + first);
      VRGA_UNROLL
      for (int i = 0; i < kKeys; ++i) {
        value[i] = widen(words.element[i]);
      }
    } else {
      VRGA_UNROLL
      for (int i = 0; i < kKeys; ++i) {
        value[i] = first + i < keys ? widen(scores[first + i]) : negative_infinity();
      }
    }
    VRGA_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      flags[i] = first + i < flagged ? key_flags[first + i] : 0;
    }
  }
};

// Grid: B * Hq * Sq. Block: kSoftmaxThreads. Dynamic shared memory: [kSoftmaxWarps] SoftmaxState.
template <class T>
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kSoftmaxThreads, 4)
    softmax_rows(const VRGA_GRID_CONSTANT SoftmaxParams p) {
  constexpr int kKeys = ScoreVector<T>::kKeys;
  const int64_t row = block_index();
  const int rows = static_cast<int>(p.s_q), heads = static_cast<int>(p.h_q);
  const int head = block_index() / rows;
  const int64_t s = block_index() % rows, h = head % heads, b = head / heads;
  const auto* scores =
      static_cast<const T*>(p.scores) + b * p.stride_s_b + h * p.stride_s_h + s * p.stride_s_s;
  auto* probabilities = static_cast<T*>(p.probabilities) + row * p.s_kv;
  const uint8_t* key_flags = p.key_flags + b * p.stride_flags_b;
  const bool aligned = reinterpret_cast<uintptr_t>(scores) % 16 == 0;
  const bool aligned_out = reinterpret_cast<uintptr_t>(probabilities) % 16 == 0;
  const ScoreScale scale{1.0f, 1.0f, 0.0f};
  VRGA_SHARED(shared);
  auto* states = reinterpret_cast<SoftmaxState*>(shared);

  wait_for_previous_kernel();
  allow_next_kernel();
  SoftmaxState state;
  for (int64_t first = int64_t{thread_index()} * kKeys; first < p.s_kv;
       first += int64_t{kSoftmaxThreads} * kKeys) {
    ScoreVector<T> vector;
    vector.load(scores, key_flags, first, p.s_kv, p.n_flags, aligned);
    KeyGroup<kKeys> keys;
    bool image[kKeys];
    float weights[kKeys];
    VRGA_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      keys.x[i] = vector.value[i];
      keys.bias[i] = 0.0f;
      keys.attended[i] = !(vector.value[i] <= Lowest<T>::kValue);
      image[i] = (vector.flags[i] & kFlagImage) != 0;
      weights[i] = key_weight(p.gate, vector.flags[i]);
    }
    const float peak = fmaxf(state.m, keys.peak(scale));
    if (peak > state.m) {
      rebase<Nats>(state, peak);
    }
    add_keys<Nats>(state, keys, scale, image, true);
    VRGA_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      state.z_weighted += weights[i] * keys.p[i];
    }
  }
  rebase<Nats>(state, max_across_lanes(state.m, 1, kWarpSize));
  add_across_lanes(state, 1, kWarpSize);
  if (lane_index() == 0) {
    states[warp_index()] = state;
  }
  sync_block();
  state = states[0];
  for (int w = 1; w < kSoftmaxWarps; ++w) {
    merge<Nats>(state, states[w]);
  }

  const HeadStatistics statistics = head_statistics<Nats>(state);
  const GateDecision decision =
      resolve<Nats>(p.gate, head_enabled(p.heads, head), state, state.z, statistics);
  if (thread_index() == 0) {
    write_statistics(p.statistics + row * kDecodeStatistics, statistics, decision.open);
  }
  for (int64_t first = int64_t{thread_index()} * kKeys; first < p.s_kv;
       first += int64_t{kSoftmaxThreads} * kKeys) {
    ScoreVector<T> vector;
    vector.load(scores, key_flags, first, p.s_kv, p.n_flags, aligned);
    typename ScoreVector<T>::Words words;
    VRGA_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      const bool attended = !(vector.value[i] <= Lowest<T>::kValue);
      const float weight = decision.open ? key_weight(p.gate, vector.flags[i]) : 1.0f;
      const float probability = exponential(Nats{}, vector.value[i] - state.m);
      words.element[i] = narrow<T>(attended ? weight * probability * decision.normaliser : 0.0f);
    }
    if (aligned_out && first + kKeys <= p.s_kv) {
      *reinterpret_cast<typename ScoreVector<T>::Words*>(probabilities + first) = words;
    } else {
      VRGA_UNROLL
      for (int i = 0; i < kKeys; ++i) {
        if (first + i < p.s_kv) {
          probabilities[first + i] = words.element[i];
        }
      }
    }
  }
}

}  // namespace vrga::gpu
