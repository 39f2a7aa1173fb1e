#include "torch/cuda_device.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <map>
#include <mutex>

// Part of the stable C interface, but declared only in a header that is not. Weak: a torch without
// CUDA lacks it, and never comes here.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace vrga::binding {
namespace {

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  STD_TORCH_CHECK(error == cudaSuccess, "device ", device, ": ", cudaGetErrorString(error));
  return value;
}

// Of the current device. Asked once: an eager decode step waits for the host, which comes here in
// every layer.
gpu::Device facts_of(int index) {
  static std::mutex mutex;
  static std::map<int, gpu::Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) {
    return found->second;
  }
  gpu::Device device;
  device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
  device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, index);
  device.overlaps_launches = gpu::overlaps_launches();
  return known.emplace(index, device).first->second;
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
  device_ = facts_of(index);
}

CudaScope::~CudaScope() = default;

}  // namespace vrga::binding
