// Stands in for csrc/torch/cuda_device.cpp: a small imaginary GPU.
#include "torch/cuda_device.h"

namespace vrga::binding {

struct CudaScope::Guard {};

CudaScope::CudaScope(const torch::stable::Tensor&) {
  device_.multiprocessors = 6;  // few, but enough that most shapes are split
  device_.overlaps_launches = true;
}

CudaScope::~CudaScope() = default;

}  // namespace vrga::binding
