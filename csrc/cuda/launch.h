// Entry to the kernels: enqueues on `stream` and returns. Throws std::runtime_error if a launch
// fails, std::invalid_argument for what `unsupported` names.
#pragma once

#include "cuda/plan.h"

namespace vrga::gpu {

using StreamHandle = void*;  // cudaStream_t

// At least the sizes of the plan, in device memory; contents do not matter.
struct Workspace {
  float* partial_sums = nullptr;   // 16-byte aligned
  void* partial_states = nullptr;  // 16-byte aligned
};

// Whether kernels may be scheduled before their predecessor has ended: on sm_90 and newer, unless
// the driver compiled them from older PTX, which does not wait. Asks the current device.
bool overlaps_launches();

void launch_attention(const AttentionParams& params, const CallPlan& plan,
                      const Workspace& workspace, const Device& device, StreamHandle stream);
void launch_softmax(const SoftmaxParams& params, const Device& device, StreamHandle stream);

}  // namespace vrga::gpu
