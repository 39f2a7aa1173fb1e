// Second kernel: the splits of a row become its output, its statistics and its gate. Always in the
// same order, so that results repeat bit for bit.
#pragma once

#include "vrga/block_result.cuh"
#include "vrga/key_access.cuh"
#include "vrga/row_update.cuh"

namespace vrga::gpu {

constexpr int kMergeWarps = 4;
constexpr int kMergeThreads = kMergeWarps * kWarpSize;
constexpr int kMergeMaxPitch = 256;
constexpr int kRowChunk = 1024;  // image keys per block of merge_row_statistics

// By one warp. Every lane returns the same state; `factors`, if given, takes the splits' factors.
VRGA_DEVICE SoftmaxState merge_states(const PartialState* states, int splits, float* factors) {
  const int lane = lane_index();
  SoftmaxState merged;
  for (int i = lane; i < splits; i += kWarpSize) {
    merged.m = fmaxf(merged.m, states[i].softmax.m);
  }
  merged.m = max_across_lanes(merged.m, 1, kWarpSize);
  for (int i = lane; i < splits; i += kWarpSize) {
    SoftmaxState state = states[i].softmax;
    const float factor = rebase<Bits>(state, merged.m);
    add(merged, state);
    if (factors != nullptr) {
      factors[i] = factor;
    }
  }
  add_across_lanes(merged, 1, kWarpSize);
  return merged;
}

// Dynamic shared memory: [kMergeWarps, pitch] sums, [splits] factors, [splits] planes, 1
// normaliser.
inline int merge_shared_bytes(int pitch, int splits) {
  return (kMergeWarps * pitch + 2 * splits + 1) * 4;
}

// One block per row of [B, Hq, Sq].
template <class T>
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kMergeThreads, 4)
    merge_decode(const VRGA_GRID_CONSTANT SplitParams p) {
  const int64_t row = block_index();
  const int lane = lane_index(), warp = warp_index();
  const DecodeParams& decode = p.decode;

  VRGA_SHARED(shared);
  auto* warp_sums = reinterpret_cast<float*>(shared);
  float* factors = warp_sums + kMergeWarps * p.pitch;
  auto* planes = reinterpret_cast<int32_t*>(factors + p.splits);
  float* normaliser = reinterpret_cast<float*>(planes + p.splits);

  wait_for_previous_kernel();
  if (warp == 0) {
    const PartialState* states = p.partial_states + row * p.splits;
    const SoftmaxState state = merge_states(states, p.splits, factors);
    const HeadStatistics statistics = head_statistics<Bits>(state);
    const GateDecision decision = resolve<Bits>(
        decode.gate, head_enabled(decode.heads, block_index() / static_cast<int>(decode.s_q)),
        state, statistics);
    for (int i = lane; i < p.splits; i += kWarpSize) {
      planes[i] = decision.open && states[i].has_weighted != 0 ? 1 : 0;
    }
    if (lane == 0) {
      write_statistics(decode.statistics + row * kDecodeStatistics, statistics, decision.open);
      *normaliser = decision.normaliser;
    }
  }
  sync_block();

  // Each warp adds every fourth split, four columns per lane; then the warps' sums in warp order.
  struct alignas(16) Columns {
    float value[4];
  };
  constexpr int kParts = kMergeMaxPitch / (4 * kWarpSize);
  Columns sums[kParts] = {};
  for (int i = warp; i < p.splits; i += kMergeWarps) {
    const float* source = p.partial_sums + ((row * p.splits + i) * 2 + planes[i]) * p.pitch;
    VRGA_UNROLL
    for (int part = 0; part < kParts; ++part) {
      const int column = 4 * (lane + part * kWarpSize);
      if (column < p.pitch) {
        Columns partial = {};
        if (column + 4 <= decode.d_v) {
          partial = *reinterpret_cast<const Columns*>(source + column);
        } else {
          VRGA_UNROLL
          for (int c = 0; c < 4; ++c) {  // nobody wrote beyond d_v
            partial.value[c] = column + c < decode.d_v ? source[column + c] : 0.0f;
          }
        }
        VRGA_UNROLL
        for (int c = 0; c < 4; ++c) {
          sums[part].value[c] = fmaf(factors[i], partial.value[c], sums[part].value[c]);
        }
      }
    }
  }
  VRGA_UNROLL
  for (int part = 0; part < kParts; ++part) {
    const int column = 4 * (lane + part * kWarpSize);
    if (column < p.pitch) {
      *reinterpret_cast<Columns*>(warp_sums + warp * p.pitch + column) = sums[part];
    }
  }
  sync_block();
  for (int column = thread_index(); column < decode.d_v; column += kMergeThreads) {
    float sum = 0.0f;
    VRGA_UNROLL
    for (int w = 0; w < kMergeWarps; ++w) {
      sum += warp_sums[w * p.pitch + column];
    }
    static_cast<T*>(decode.out)[row * decode.d_v + column] = narrow<T>(sum * *normaliser);
  }
}

// The dot products of attended image keys become attention, all other keys 0. One block per row and
// chunk of kRowChunk image keys; the first of a row writes its statistics. Shared memory: two
// floats.
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kMergeThreads, 4)
    merge_row_statistics(const VRGA_GRID_CONSTANT SplitParams p) {
  const DecodeParams& decode = p.decode;
  const int chunks = static_cast<int>((decode.n_flags + kRowChunk - 1) / kRowChunk);
  const int64_t row = block_index() / (chunks > 0 ? chunks : 1);
  const int64_t chunk = block_index() % (chunks > 0 ? chunks : 1);

  VRGA_SHARED(shared);
  auto* peak_and_mass = reinterpret_cast<float*>(shared);

  wait_for_previous_kernel();
  if (warp_index() == 0) {
    const SoftmaxState state = merge_states(p.partial_states + row * p.splits, p.splits, nullptr);
    if (lane_index() == 0) {
      peak_and_mass[0] = state.m;
      peak_and_mass[1] = state.z;
      if (chunk == 0) {
        write_statistics(decode.statistics + row * kRowStatistics, head_statistics<Bits>(state),
                         -1);
      }
    }
  }
  sync_block();
  const int heads = static_cast<int>(decode.h_q);
  const int64_t b = static_cast<int>(row) / heads;
  const RowPlace place{static_cast<int>(row) % heads, 0, row, true};
  const ScoreScale scale = score_scale(decode);
  const float m = peak_and_mass[0], z = peak_and_mass[1];
  for (int64_t key = chunk * kRowChunk + thread_index();
       key < decode.n_flags && key < (chunk + 1) * kRowChunk; key += kMergeThreads) {
    float* attention = p.image_attention + row * decode.n_flags + key;
    float value = 0.0f;
    if ((read_flags(decode, b, key) & kFlagImage) != 0) {
      const KeyMask mask = read_mask(decode.mask, mask_offset(decode.mask, b, place), key);
      if (mask.attended) {
        value = exp2_fast(fmaf(*attention, scale.multiplier, mask.bias_bits - m)) / z;
      }
    }
    *attention = value;
  }
}

}  // namespace vrga::gpu
