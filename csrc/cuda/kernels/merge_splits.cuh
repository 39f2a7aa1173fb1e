// Second kernel: the splits of a row become its output, its statistics and its gate. Always in the
// same order, so that results repeat bit for bit.
#pragma once

#include "cuda/kernels/block_result.cuh"
#include "cuda/kernels/key_access.cuh"
#include "cuda/kernels/row_update.cuh"

namespace vrga::gpu {

constexpr int kSumWarps = 4;  // of merge_decode, which has one more for the gate
constexpr int kMergeThreads = (kSumWarps + 1) * kWarpSize;
constexpr int kMergeWidth = 4;  // columns per lane
constexpr int kMergeColumns = kMergeWidth * kWarpSize;
constexpr int kRowThreads = 128;  // of merge_row_statistics
constexpr int kRowKeys = 16;      // image keys per thread
constexpr int kRowChunk = kRowKeys * kRowThreads;

// The states of a row's splits, merged by one warp: `load` starts, `merged` ends it. Every lane
// returns the same state.
struct StateMerge {
  const PartialState* states;
  int splits;
  RowState own;

  VRGA_DEVICE_MEMBER void load() {
    if (lane_index() < splits) {
      own = read(lane_index());
    }
  }
  VRGA_DEVICE_MEMBER RowState merged() {
    VRGA_NO_UNROLL
    for (int i = lane_index() + kWarpSize; i < splits; i += kWarpSize) {
      RowState other = read(i);
      const float m = fmaxf(own.m, other.m);
      rebase<Bits>(own, m);
      rebase<Bits>(other, m);
      add(own, other);
    }
    rebase<Bits>(own, max_in_warp(own.m));
    for (float* sum : {&own.z, &own.z_weighted, &own.z_image, &own.s_image, &own.z_output}) {
      for (int distance = 1; distance < kWarpSize; distance *= 2) {
        *sum += shuffle_xor(*sum, distance);
      }
    }
    own.attended = sum_in_warp(own.attended);
    own.image = sum_in_warp(own.image);
    return own;
  }

 private:
  // In two loads; the members one by one would be eight.
  VRGA_DEVICE_MEMBER RowState read(int i) const {
    static_assert(sizeof(PartialState) == 32);
    const auto* words = reinterpret_cast<const Vector<4>*>(states + i);
    const Vector<4> low = words[0], high = words[1];
    RowState state;
    state.m = low.value[0];
    state.z = low.value[1];
    state.z_weighted = low.value[2];
    state.z_image = low.value[3];
    state.s_image = high.value[0];
    state.attended = static_cast<int32_t>(float_bits(high.value[1]));
    state.image = static_cast<int32_t>(float_bits(high.value[2]));
    state.z_output = high.value[3];
    return state;
  }
};

// Dynamic shared memory: sums [kSumWarps, 2, pitch], then a RowResult.
inline int merge_shared_bytes(int pitch) {
  return kSumWarps * 2 * pitch * 4 + static_cast<int>(sizeof(RowResult));
}

// The splits first, first + kSumWarps, ... of a row, one warp: both sums of p v, in ascending
// order.
template <int kParts>
struct SplitSums {
  static constexpr int kAtOnce = 8 / kParts;  // splits whose loads are under way together
  const PartialState* states;
  const float* columns[2][kParts];  // own, of split 0, by stored plane
  int32_t split[kAtOnce];
  Vector<kMergeWidth> sums[2][kParts] = {};  // by stored plane

  // What `add` will load follows from the parameters. Columns and planes beyond the last one repeat
  // another; they are not used.
  VRGA_DEVICE_MEMBER void place(const SplitParams& p, int row, int first) {
    states = p.partial_states + row * p.splits;
    const float* partials = p.partial_sums + int64_t{row * p.splits * p.stored_planes} * p.pitch;
    VRGA_UNROLL
    for (int part = 0; part < kParts; ++part) {
      const int own = kMergeWidth * (lane_index() + part * kWarpSize);
      columns[0][part] = partials + (own < p.pitch ? own : 0);
      columns[1][part] = columns[0][part] + (p.stored_planes - 1) * p.pitch;
    }
    choose(p, first);
  }

  VRGA_DEVICE_MEMBER void add(const SplitParams& p, int first) {
    const int stride = p.stored_planes * p.pitch;
    float peak = lane_index() < p.splits ? states[lane_index()].row.m : negative_infinity();
    VRGA_NO_UNROLL
    for (int start = first; start < p.splits; start += kAtOnce * kSumWarps) {
      float m[kAtOnce];
      Vector<kMergeWidth> partial[2][kAtOnce][kParts];
      VRGA_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        m[j] = states[split[j]].row.m;
        VRGA_UNROLL
        for (int i = 0; i < 2 * kParts; ++i) {
          const int plane = i / kParts, part = i % kParts;
          partial[plane][j][part] = *reinterpret_cast<const Vector<kMergeWidth>*>(
              columns[plane][part] + split[j] * stride);
        }
      }
      sync_warp();  // no load moves down across it, to where its result is used
      if (start == first) {
        VRGA_NO_UNROLL
        for (int i = lane_index() + kWarpSize; i < p.splits; i += kWarpSize) {
          peak = fmaxf(peak, states[i].row.m);
        }
        peak = max_in_warp(peak);
        // Where no split saw a finite score all sums are 0, or NaN.
        peak = peak == negative_infinity() ? 0.0f : peak;
      }
      VRGA_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        if (start + j * kSumWarps < p.splits) {
          const float factor = exp2_fast(m[j] - peak);
          VRGA_UNROLL
          for (int i = 0; i < 2 * kParts * kMergeWidth; ++i) {
            const int plane = i / (kParts * kMergeWidth), part = i / kMergeWidth % kParts;
            float& sum = sums[plane][part].value[i % kMergeWidth];
            sum = fmaf(factor, partial[plane][j][part].value[i % kMergeWidth], sum);
          }
        }
      }
      choose(p, start + kAtOnce * kSumWarps);
    }
  }

 private:
  // Splits beyond the last one repeat the first; they are not used.
  VRGA_DEVICE_MEMBER void choose(const SplitParams& p, int start) {
    VRGA_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      const int wanted = start + j * kSumWarps;
      split[j] = wanted < p.splits ? wanted : 0;
    }
  }
};

// One block per row of [B, Hq, Sq]; at most kParts * kMergeColumns columns. The last warp finds the
// gate while the others add both sums.
template <class T, int kParts>
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kMergeThreads, 3)
    merge_decode(const VRGA_GRID_CONSTANT SplitParams p) {
  const int row = block_index(), warp = warp_index();
  const AttentionParams& attention = p.attention;

  VRGA_SHARED(shared);
  auto* warp_sums = reinterpret_cast<float*>(shared);
  auto& result = *reinterpret_cast<RowResult*>(shared + kSumWarps * 2 * p.pitch * 4);

  SplitSums<kParts> own;
  if (warp != kSumWarps) {
    own.place(p, row, warp);
  }
  wait_for_previous_kernel();
  allow_next_kernel();
  if (warp == kSumWarps) {
    StateMerge splits{p.partial_states + row * p.splits, p.splits, {}};
    splits.load();
    const bool enabled = head_enabled(attention.heads, p.by_s_q.quotient(row));  // of b * Hq + h
    const RowState state = splits.merged();
    const HeadStatistics statistics = head_statistics<Bits>(state);
    const GateDecision decision =
        resolve<Bits>(attention.gate, enabled, state, state.z_output, statistics);
    if (lane_index() == 0) {
      result = {decision.normaliser, p.planes == Planes::kBoth && decision.open ? 1 : 0};
      write_statistics(attention.statistics + int64_t{row} * kDecodeStatistics, statistics,
                       decision.open);
    }
  } else {
    own.add(p, warp);
    VRGA_UNROLL
    for (int i = 0; i < 2 * kParts; ++i) {
      const int plane = i / kParts, part = i % kParts;
      const int column = kMergeWidth * (lane_index() + part * kWarpSize);
      if (column < p.pitch) {
        auto* target = warp_sums + (warp * 2 + plane) * p.pitch + column;
        *reinterpret_cast<Vector<kMergeWidth>*>(target) = own.sums[plane][part];
      }
    }
  }
  sync_block();
  const int columns = static_cast<int>(attention.d_v);
  VRGA_NO_UNROLL
  for (int column = thread_index(); column < columns; column += kMergeThreads) {
    float sum = 0.0f;
    VRGA_UNROLL
    for (int w = 0; w < kSumWarps; ++w) {
      sum += warp_sums[(w * 2 + result.plane) * p.pitch + column];
    }
    static_cast<T*>(attention.out)[int64_t{row} * columns + column] =
        narrow<T>(sum * result.normaliser);
  }
}

// The dot products of attended image keys become attention, all other keys 0. One block per row and
// chunk of kRowChunk image keys; the first of a row writes its statistics.
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
