// The states of a row's splits become one. Always in the same order, so that results repeat bit for
// bit.
#pragma once

#include "cuda/kernels/block_result.cuh"
#include "cuda/kernels/row_update.cuh"

namespace vrga::gpu {

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

}  // namespace vrga::gpu
