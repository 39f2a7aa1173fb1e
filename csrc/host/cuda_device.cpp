#include "host/cuda_device.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

// Part of the stable C interface, but declared only in a header that is not. Weak: a torch without
// CUDA lacks it, and never comes here.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace vrga::host {
namespace {

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  STD_TORCH_CHECK(error == cudaSuccess, "device ", device, ": ", cudaGetErrorString(error));
  return value;
}

}  // namespace

struct CudaScope::Guard {
  torch::stable::accelerator::DeviceGuard device;
};

CudaScope::CudaScope(const torch::stable::Tensor& tensor)
    : guard_(new Guard{torch::stable::accelerator::DeviceGuard(tensor.get_device_index())}) {
  const int index = tensor.get_device_index();
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "query: wanted a torch with CUDA, got one without");
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &stream_) == 0, "device ", index,
                  ": no current stream");
  device_.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
  device_.overlaps_launches = attribute(cudaDevAttrComputeCapabilityMajor, index) >= 9;
}

CudaScope::~CudaScope() = default;

}  // namespace vrga::host
