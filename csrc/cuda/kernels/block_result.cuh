// The end of a split kernel: the warps of a block, each with its own keys, become one result or one
// partial result.
#pragma once

#include "core/gate.h"
#include "cuda/kernels/primitives.cuh"
#include "cuda/kernels/split_params.h"

namespace vrga::gpu {

// What the sums of a row become: the one named, times the normaliser.
struct RowResult {
  float normaliser;
  int32_t plane;
};

// Shared memory of the result phase.
template <int kWarps, int kRows>
struct ResultScratch {
  PartialState states[kWarps * kRows];  // written by the warps, all of a row with the same m
  RowResult results[kRows];
};

template <int kCount>
struct alignas(4 * kCount) Vector {
  float value[kCount];
};

VRGA_DEVICE void write_statistics(float* statistics, const HeadStatistics& values, int gate) {
  statistics[0] = values.image_ratio;
  statistics[1] = values.image_entropy;
  statistics[2] = values.joint_entropy;
  if (gate >= 0) {
    statistics[3] = static_cast<float>(gate);
  }
}

// A block that writes the result itself, rather than a partial one.
VRGA_DEVICE bool writes_result(const SplitParams& p) {
  return p.pitch > 0 && p.splits == 1;
}

// Which rows of a block have a head that may be reweighted, to `enabled`, shared [kRows]: asked for
// long before it is read, which is after a block barrier.
template <int kRows>
VRGA_DEVICE void find_enabled(const SplitParams& p, const BlockPlace& place, bool* enabled) {
  const int r = thread_index();
  if (r < kRows) {
    const RowPlace row = row_of(p, place, place.row_block * kRows + r);
    enabled[r] =
        head_enabled(p.attention.heads, place.b * static_cast<int32_t>(p.attention.h_q) + row.h);
  }
}

// peaks: shared [kWarps, kRows], written by the warps before a block barrier.
template <int kWarps, int kRows>
VRGA_DEVICE float block_peak(const float* peaks, int row) {
  float highest = negative_infinity();
  VRGA_UNROLL
  for (int w = 0; w < kWarps; ++w) {
    highest = fmaxf(highest, peaks[w * kRows + row]);
  }
  return highest;
}

// Adds the warps' states of each row, in warp order: the row's partial result, or its statistics
// and gate. After a block barrier; ends with one if writes_result. enabled: of find_enabled.
template <int kWarps, int kRows>
VRGA_DEVICE void finish_states(const SplitParams& p, const BlockPlace& place, const bool* enabled,
                               ResultScratch<kWarps, kRows>& scratch) {
  const int r = thread_index();
  const RowPlace row = row_of(p, place, place.row_block * kRows + r);
  if (r < kRows && row.valid) {
    PartialState merged = scratch.states[r];
    VRGA_UNROLL
    for (int w = 1; w < kWarps; ++w) {
      add(merged.row, scratch.states[w * kRows + r].row);
    }
    if (writes_result(p)) {
      const HeadStatistics statistics = head_statistics<Bits>(merged.row);
      const GateDecision decision =
          resolve<Bits>(p.attention.gate, enabled[r], merged.row, merged.row.z_output, statistics);
      scratch.results[r] = {decision.normaliser,
                            decision.open && p.planes != Planes::kPlain ? 1 : 0};
      write_statistics(p.attention.statistics + int64_t{row.row} * kDecodeStatistics, statistics,
                       decision.open);
    } else {
      p.partial_states[row.row * p.splits + place.split] = merged;
    }
  }
  if (writes_result(p)) {
    sync_block();
  }
}

// Adds the warps' sums in warp order and writes what is wanted of the planes [first_plane,
// first_plane + kPlanes). sums: shared [kWarps, kPlanes, kRows, row_stride]. After finish_states.
// kColumns: D if the kernel knows it, else 0 and `columns`.
template <class T, int kPlanes, int kColumns, int kWarps, int kRows>
VRGA_DEVICE void store_sums(const SplitParams& p, const BlockPlace& place, const bool* enabled,
                            const ResultScratch<kWarps, kRows>& scratch, const float* sums,
                            int row_stride, int columns, int first_plane) {
  constexpr int kThreads = kWarps * kWarpSize, kWidth = 4;  // columns per thread
  constexpr int kUnrolled = kRows * kColumns / kWidth / kThreads;
  const int vectors = ((kColumns > 0 ? kColumns : columns) + kWidth - 1) / kWidth;
  const bool direct = writes_result(p);
  const auto store = [&](int i) {
    const int column = i % vectors * kWidth, r = i / vectors;
    const RowPlace row = row_of(p, place, place.row_block * kRows + r);
    if (!row.valid) {
      return;
    }
    VRGA_UNROLL
    for (int plane = 0; plane < kPlanes; ++plane) {
      const int stored = stored_plane(p.planes, enabled[r], first_plane + plane);
      if (direct ? scratch.results[r].plane != first_plane + plane : stored < 0) {
        continue;
      }
      Vector<kWidth> sum = {};
      VRGA_UNROLL
      for (int w = 0; w < kWarps; ++w) {
        const auto& own = *reinterpret_cast<const Vector<kWidth>*>(
            sums + ((w * kPlanes + plane) * kRows + r) * row_stride + column);
        VRGA_UNROLL
        for (int c = 0; c < kWidth; ++c) {
          sum.value[c] += own.value[c];
        }
      }
      if (!direct) {
        const int partial = (row.row * p.splits + place.split) * p.stored_planes + stored;
        *reinterpret_cast<Vector<kWidth>*>(p.partial_sums + int64_t{partial} * p.pitch + column) =
            sum;
        continue;
      }
      auto* out =
          static_cast<T*>(p.attention.out) + int64_t{row.row} * static_cast<int>(p.attention.d_v);
      VRGA_UNROLL
      for (int c = 0; c < kWidth; ++c) {
        if (column + c < columns) {
          out[column + c] = narrow<T>(sum.value[c] * scratch.results[r].normaliser);
        }
      }
    }
  };
  VRGA_UNROLL
  for (int i = 0; i < kUnrolled; ++i) {
    store(thread_index() + i * kThreads);
  }
  for (int i = thread_index() + kUnrolled * kThreads; i < kRows * vectors; i += kThreads) {
    store(i);
  }
}

}  // namespace vrga::gpu
