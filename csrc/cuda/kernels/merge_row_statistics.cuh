// Second kernel of row_statistics: the splits of a row become its statistics, the dot products of
// attended image keys become attention, and all other keys of [0, N) get 0.
#pragma once

#include "cuda/kernels/key_access.cuh"
#include "cuda/kernels/state_merge.cuh"

namespace vrga::gpu {

constexpr int kRowThreads = 128;
constexpr int kRowKeys = 16;  // keys per thread
constexpr int kRowChunk = kRowKeys * kRowThreads;

// A block serves a row and a chunk of kRowChunk keys of [0, N); the first of a row writes its
// statistics.
// Grid: B * Hq * chunks. Block: kRowThreads. No dynamic shared memory.
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kRowThreads, 8)
    merge_row_statistics(const VRGA_GRID_CONSTANT SplitParams p) {
  const AttentionParams& attention = p.attention;
  const int row = p.by_chunks.quotient(block_index());
  const int b = p.by_h_q.quotient(row);
  const int first = p.by_chunks.remainder(block_index(), row) * kRowChunk + thread_index();
  const int flagged = static_cast<int>(attention.n_flags);

  wait_for_previous_kernel();
  allow_next_kernel();
  // Everything is under way before the first of it is used: loads that wait for one another would
  // take longer than all the rest.
  StateMerge splits{p.partial_states + row * p.splits, p.splits, {}};
  splits.load();
  const RowPlace place{p.by_h_q.remainder(row, b), 0, row, true};
  const MaskView& mask = attention.mask;
  const int64_t masked = mask_offset(mask, b, place) + first * mask.stride_k;
  const auto* boolean =
      mask.kind == MaskKind::kBool ? static_cast<const uint8_t*>(mask.data) + masked : nullptr;
  const bool additive = mask.kind != MaskKind::kNone && mask.kind != MaskKind::kBool;
  const uint8_t* flags = attention.key_flags + b * attention.stride_flags_b + first;
  float* image_attention = p.attention.image_attention + int64_t{row} * flagged + first;
  uint8_t bytes[kRowKeys];
  uint32_t image = 0;  // bit i: key first + i * kRowThreads, attended as far as `boolean` tells
  VRGA_UNROLL
  for (int i = 0; i < kRowKeys; ++i) {
    bytes[i] = first + i * kRowThreads < flagged ? flags[i * kRowThreads] : 0;
  }
  VRGA_UNROLL
  for (int i = 0; i < kRowKeys; ++i) {
    image |= (bytes[i] & kFlagImage) != 0 ? 1u << i : 0u;
  }
  if (boolean != nullptr) {
    VRGA_UNROLL
    for (int i = 0; i < kRowKeys; ++i) {
      bytes[i] = (image >> i & 1u) != 0 ? boolean[i * kRowThreads * mask.stride_k] : 0;
    }
    VRGA_UNROLL
    for (int i = 0; i < kRowKeys; ++i) {
      image &= bytes[i] != 0 ? ~0u : ~(1u << i);
    }
  }
  float value[kRowKeys];
  VRGA_UNROLL
  for (int i = 0; i < kRowKeys; ++i) {
    value[i] = (image >> i & 1u) != 0 && !additive ? image_attention[i * kRowThreads] : 0.0f;
  }
  sync_warp();  // no load moves down across it, to where its result is used
  const RowState state = splits.merged();
  const float multiplier = score_scale(attention).multiplier, normaliser = 1.0f / state.z;
  if (!additive) {
    VRGA_UNROLL
    for (int i = 0; i < kRowKeys; ++i) {
      if (first + i * kRowThreads < flagged) {
        const float probability = exp2_fast(fmaf(value[i], multiplier, -state.m)) * normaliser;
        image_attention[i * kRowThreads] = (image >> i & 1u) != 0 ? probability : 0.0f;
      }
    }
  } else {
    VRGA_NO_UNROLL
    for (int i = 0; i < kRowKeys && first + i * kRowThreads < flagged; ++i) {
      const KeyMask own = read_mask(mask, masked, i * kRowThreads);
      // Of other keys the split kernel wrote nothing.
      const bool attended = (image >> i & 1u) != 0 && own.attended;
      const float dot = attended ? image_attention[i * kRowThreads] : 0.0f;
      const float difference = fmaf(dot, multiplier, own.bias_bits - state.m);
      image_attention[i * kRowThreads] = attended ? exp2_fast(difference) * normaliser : 0.0f;
    }
  }
  if (first == 0) {
    write_statistics(attention.statistics + int64_t{row} * kRowStatistics,
                     head_statistics<Bits>(state), -1);
  }
}

}  // namespace vrga::gpu
