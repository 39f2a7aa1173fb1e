// One explicit instantiation of launch_tensor_split per dtype and head dim, each in its own file:
// they are what takes the compile time.
#pragma once

#include "cuda/kernels/tensor_split.cuh"
#include "cuda/launch.h"

namespace vrga::gpu {

template <class T, int kDim>
void launch_tensor_split(const SplitParams& params, const CallPlan& plan, const Device& device,
                         Stream stream) {
  using Narrow = TensorShape<kDim, 1>;
  const auto run = [&](auto kernel, const char* name, int shared_bytes) {
    launch(kernel, name, plan.blocks, kTensorThreads, shared_bytes, device.overlaps_launches,
           stream, params);
  };
  if (!params.attention.has_values) {
    run(tensor_split<T, kDim, 1, false>, "row_statistics", Narrow::kSharedBytes);
    return;
  }
  if constexpr (kDim <= 128) {
    if (plan.row_slots == 2) {
      run(tensor_split<T, kDim, 2, true>, "decode_attention", TensorShape<kDim, 2>::kSharedBytes);
      return;
    }
  }
  run(tensor_split<T, kDim, 1, true>, "decode_attention", Narrow::kSharedBytes);
}

}  // namespace vrga::gpu
