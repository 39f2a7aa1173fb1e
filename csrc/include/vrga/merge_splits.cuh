// Second kernel: the splits of a row become its output, its statistics and its gate. Always in the
// same order, so that results repeat bit for bit.
#pragma once

#include "vrga/block_result.cuh"
#include "vrga/key_access.cuh"
#include "vrga/row_update.cuh"

namespace vrga::gpu {

constexpr int kMergeWarps = 4;
constexpr int kMergeThreads = kMergeWarps * kWarpSize;
constexpr int kMergeWidth = 4;  // columns per lane
constexpr int kMergeColumns = kMergeWidth * kWarpSize;
constexpr int kKeysPerThread = 8;  // of merge_row_statistics
constexpr int kRowChunk = kKeysPerThread * kMergeThreads;

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
    rebase<Bits>(own, max_across_lanes(own.m, 1, kWarpSize));
    add_across_lanes(own, 1, kWarpSize);
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

// Dynamic shared memory: [kMergeWarps, pitch] sums.
inline int merge_shared_bytes(int pitch) {
  return kMergeWarps * pitch * 4;
}

// What one lane needs of some splits of a row, every kMergeWarps-th one. Loaded before the gate is
// known, so that the loads pass the time in which it is computed.
template <int kParts>
struct PartialBatch {
  static constexpr int kSplits = 8 / kParts;
  static constexpr int kStep = kSplits * kMergeWarps;
  float m[kSplits];
  Vector<kMergeWidth> sums[2][kSplits][kParts];  // by stored plane

  // Splits and columns beyond the last one repeat it; they are not used.
  VRGA_DEVICE_MEMBER void load(const SplitParams& p, const PartialState* states,
                               const float* partials, int first) {
    VRGA_UNROLL
    for (int j = 0; j < kSplits; ++j) {
      const int wanted = first + j * kMergeWarps;
      const int split = wanted < p.splits ? wanted : p.splits - 1;
      m[j] = states[split].row.m;
      const float* source = partials + split * p.stored_planes * p.pitch;
      VRGA_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const int own = kMergeWidth * (lane_index() + part * kWarpSize);
        const int column = own < p.pitch ? own : 0;
        VRGA_UNROLL
        for (int plane = 0; plane < 2; ++plane) {
          const int skipped = plane == 0 ? 0 : (p.stored_planes - 1) * p.pitch;
          sums[plane][j][part] =
              *reinterpret_cast<const Vector<kMergeWidth>*>(source + skipped + column);
        }
      }
    }
  }

  VRGA_DEVICE_MEMBER void add_to(Vector<kMergeWidth> (&total)[kParts], int first, int splits,
                                 float peak, bool second) const {
    VRGA_UNROLL
    for (int j = 0; j < kSplits; ++j) {
      if (first + j * kMergeWarps < splits) {
        const float factor = decay<Bits>(m[j], peak);
        VRGA_UNROLL
        for (int i = 0; i < kParts * kMergeWidth; ++i) {
          const int part = i / kMergeWidth, c = i % kMergeWidth;
          const float own = second ? sums[1][j][part].value[c] : sums[0][j][part].value[c];
          total[part].value[c] = fmaf(factor, own, total[part].value[c]);
        }
      }
    }
  }
};

// One block per row of [B, Hq, Sq]; at most kParts * kMergeColumns columns. Every warp merges the
// states by itself, so that none waits for another before it adds sums.
template <class T, int kParts>
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kMergeThreads, 4)
    merge_decode(const VRGA_GRID_CONSTANT SplitParams p) {
  const int64_t row = block_index();
  const int head_row = p.by_s_q.quotient(block_index());  // b * Hq + h
  const int lane = lane_index(), warp = warp_index();
  const DecodeParams& decode = p.decode;

  VRGA_SHARED(shared);
  auto* warp_sums = reinterpret_cast<float*>(shared);

  wait_for_previous_kernel();
  allow_next_kernel();
  PartialBatch<kParts> batch;
  const PartialState* states = p.partial_states + row * p.splits;
  const float* partials = p.partial_sums + row * p.splits * p.stored_planes * p.pitch;
  StateMerge split_states{states, p.splits, {}};
  split_states.load();
  batch.load(p, states, partials, warp);
  sync_warp();  // no load moves down across it, to where its result is used
  const RowState state = split_states.merged();
  const HeadStatistics statistics = head_statistics<Bits>(state);
  const GateDecision decision = resolve<Bits>(decode.gate, head_enabled(decode.heads, head_row),
                                              state, state.z_output, statistics);
  if (thread_index() == 0) {
    write_statistics(decode.statistics + row * kDecodeStatistics, statistics, decision.open);
  }

  // Each warp adds every fourth split; then the warps' sums in warp order.
  const bool second = p.planes == Planes::kBoth && decision.open;
  Vector<kMergeWidth> sums[kParts] = {};
  batch.add_to(sums, warp, p.splits, state.m, second);
  VRGA_NO_UNROLL
  for (int first = warp + PartialBatch<kParts>::kStep; first < p.splits;
       first += PartialBatch<kParts>::kStep) {
    batch.load(p, states, partials, first);
    batch.add_to(sums, first, p.splits, state.m, second);
  }
  VRGA_UNROLL
  for (int part = 0; part < kParts; ++part) {
    const int column = kMergeWidth * (lane + part * kWarpSize);
    if (column < p.pitch) {
      *reinterpret_cast<Vector<kMergeWidth>*>(warp_sums + warp * p.pitch + column) = sums[part];
    }
  }
  sync_block();
  for (int column = thread_index(); column < decode.d_v; column += kMergeThreads) {
    float sum = 0.0f;
    VRGA_UNROLL
    for (int w = 0; w < kMergeWarps; ++w) {
      sum += warp_sums[w * p.pitch + column];
    }
    static_cast<T*>(decode.out)[row * decode.d_v + column] = narrow<T>(sum * decision.normaliser);
  }
}

// 2^x to about one rounding; below the smallest normal float 0, NaN stays NaN. Here an exact
// exponential costs no time.
VRGA_DEVICE float exp2_exact(float x) {
  const float whole = rintf(x), part = x - whole;
  // Taylor's series in part * ln 2; at |part| = 1/2 the first term left out is 3e-9.
  float value = 1.525273380e-5f;
  value = fmaf(value, part, 1.540353039e-4f);
  value = fmaf(value, part, 1.333355815e-3f);
  value = fmaf(value, part, 9.618129108e-3f);
  value = fmaf(value, part, 5.550410866e-2f);
  value = fmaf(value, part, 2.402265070e-1f);
  value = fmaf(value, part, 6.931471806e-1f);
  value = fmaf(value, part, 1.0f);
  const int exponent = static_cast<int>(fmaxf(whole, -126.0f));
  return x < -126.0f ? 0.0f : value * bits_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// The dot products of attended image keys become attention, all other keys 0. One block per row and
// chunk of kRowChunk image keys; the first of a row writes its statistics.
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kMergeThreads, 4)
    merge_row_statistics(const VRGA_GRID_CONSTANT SplitParams p) {
  const DecodeParams& decode = p.decode;
  const int row_index = p.by_chunks.quotient(block_index());
  const int64_t row = row_index, chunk = p.by_chunks.remainder(block_index(), row_index);

  wait_for_previous_kernel();
  allow_next_kernel();
  StateMerge split_states{p.partial_states + row * p.splits, p.splits, {}};
  split_states.load();
  const RowState state = split_states.merged();
  if (chunk == 0 && thread_index() == 0) {
    write_statistics(decode.statistics + row * kRowStatistics, head_statistics<Bits>(state), -1);
  }
  const int64_t b = p.by_h_q.quotient(row_index);
  const RowPlace place{row - b * decode.h_q, 0, row, true};
  const int64_t masked = mask_offset(decode.mask, b, place);
  const ScoreScale scale = score_scale(decode);
  const float normaliser = 1.0f / state.z;
  float value[kKeysPerThread] = {};
  const auto key_of = [&](int i) { return chunk * kRowChunk + i * kMergeThreads + thread_index(); };
  float* attention = p.image_attention + row * decode.n_flags;
  VRGA_UNROLL
  for (int i = 0; i < kKeysPerThread; ++i) {
    const int64_t key = key_of(i);
    if ((read_flags(decode, b, key) & kFlagImage) != 0) {
      const KeyMask mask = read_mask(decode.mask, masked, key);
      if (mask.attended) {
        value[i] = exp2_exact(fmaf(attention[key], scale.multiplier, mask.bias_bits - state.m)) *
                   normaliser;
      }
    }
  }
  VRGA_UNROLL
  for (int i = 0; i < kKeysPerThread; ++i) {
    if (key_of(i) < decode.n_flags) {
      attention[key_of(i)] = value[i];
    }
  }
}

}  // namespace vrga::gpu
