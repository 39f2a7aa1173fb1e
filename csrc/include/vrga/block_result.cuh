// The end of a split kernel: the warps of a block, each with its own keys, become one result or one
// partial result.
#pragma once

#include "vrga/head_gate.h"
#include "vrga/primitives.cuh"
#include "vrga/split_params.h"

namespace vrga::gpu {

struct RowResult {
  int64_t row;       // of [B, Hq, Sq]; negative: no such row
  float normaliser;  // splits = 1
  int32_t plane;     // splits = 1: which sum is the result
  int32_t has_weighted;
};

// Shared memory of the result phase, in floats' order: states, factors, results.
template <int kWarps, int kRows>
struct ResultScratch {
  PartialState states[kWarps * kRows];  // written by the warps
  float factors[kWarps * kRows];
  RowResult results[kRows];
};

VRGA_DEVICE void write_statistics(float* statistics, const HeadStatistics& values, int gate) {
  statistics[0] = values.image_ratio;
  statistics[1] = values.image_entropy;
  statistics[2] = values.joint_entropy;
  if (gate >= 0) {
    statistics[3] = static_cast<float>(gate);
  }
}

VRGA_DEVICE bool head_enabled(const bool* heads, int64_t head) {
  return heads == nullptr || heads[head];
}

// After the warps have written `states` and a block barrier. A barrier must follow.
template <int kWarps, int kRows>
VRGA_DEVICE void combine_states(const SplitParams& p, const BlockPlace& place,
                                ResultScratch<kWarps, kRows>& scratch) {
  const int r = thread_index();
  if (r >= kRows) {
    return;
  }
  RowResult& result = scratch.results[r];
  const RowPlace row = row_of(p.decode, place, place.row_block * kRows + r);
  result.row = row.valid ? row.row : -1;
  if (!row.valid) {
    return;
  }
  PartialState merged = scratch.states[r];
  for (int w = 1; w < kWarps; ++w) {
    const PartialState& other = scratch.states[w * kRows + r];
    merge<Bits>(merged.softmax, other.softmax);
    merged.has_weighted |= other.has_weighted;
  }
  for (int w = 0; w < kWarps; ++w) {
    const float m = scratch.states[w * kRows + r].softmax.m;
    scratch.factors[w * kRows + r] = decay<Bits>(m, merged.softmax.m);
  }
  result.has_weighted = merged.has_weighted;
  if (p.decode.out == nullptr || p.splits > 1) {
    p.partial_states[row.row * p.splits + place.split] = merged;
    return;
  }
  const HeadStatistics statistics = head_statistics<Bits>(merged.softmax);
  const GateDecision decision =
      resolve<Bits>(p.decode.gate, head_enabled(p.decode.heads, place.b * p.decode.h_q + row.h),
                    merged.softmax, statistics);
  result.normaliser = decision.normaliser;
  result.plane = decision.open && merged.has_weighted ? 1 : 0;
  write_statistics(p.decode.statistics + row.row * kDecodeStatistics, statistics, decision.open);
}

// Adds the warps' sums in warp order and writes planes [first_plane, first_plane + planes).
// sums: shared [kWarps, planes, kRows, row_stride].
template <class T, int kWarps, int kRows>
VRGA_DEVICE void store_sums(const SplitParams& p, const BlockPlace& place,
                            const ResultScratch<kWarps, kRows>& scratch, const float* sums,
                            int row_stride, int columns, int first_plane, int planes) {
  const int threads = kWarps * kWarpSize;
  for (int i = thread_index(); i < planes * kRows * columns; i += threads) {
    const int column = i % columns, r = i / columns % kRows, plane = i / columns / kRows;
    const RowResult& result = scratch.results[r];
    const bool direct = p.splits == 1;
    if (result.row < 0 || (direct ? result.plane != first_plane + plane
                                  : first_plane + plane == 1 && result.has_weighted == 0)) {
      continue;
    }
    float sum = 0.0f;
    VRGA_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      sum += scratch.factors[w * kRows + r] *
             sums[((w * planes + plane) * kRows + r) * row_stride + column];
    }
    if (direct) {
      static_cast<T*>(p.decode.out)[result.row * p.decode.d_v + column] =
          narrow<T>(sum * result.normaliser);
    } else {
      const int64_t partial = (result.row * p.splits + place.split) * 2 + first_plane + plane;
      p.partial_sums[partial * p.pitch + column] = sum;
    }
  }
}

}  // namespace vrga::gpu
