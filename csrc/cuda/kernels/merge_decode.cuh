// Second kernel of decode_attention: the splits of a row become its output, its statistics and its
// gate. Always in the same order, so that results repeat bit for bit.
#pragma once

#include "cuda/kernels/state_merge.cuh"

namespace vrga::gpu {

constexpr int kSumWarps = 4;  // and one more for the gate
constexpr int kMergeThreads = (kSumWarps + 1) * kWarpSize;
constexpr int kMergeWidth = 4;  // columns per lane
constexpr int kMergeColumns = kMergeWidth * kWarpSize;

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

// At most kParts * kMergeColumns columns. The last warp finds the gate while the others add both
// sums.
// Grid: B * Hq * Sq. Block: kMergeThreads. Dynamic shared memory: merge_shared_bytes(pitch).
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

}  // namespace vrga::gpu
