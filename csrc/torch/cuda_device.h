// The device and the stream that a CUDA entry runs on.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <memory>

#include "cuda/launch.h"

namespace vrga::binding {

// Makes the tensor's device current while it lives, and names the stream that is current there.
class CudaScope {
 public:
  explicit CudaScope(const torch::stable::Tensor& tensor);
  ~CudaScope();
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;

  const gpu::Device& device() const { return device_; }
  gpu::StreamHandle stream() const { return stream_; }

 private:
  struct Guard;
  std::unique_ptr<Guard> guard_;
  gpu::Device device_;
  gpu::StreamHandle stream_ = nullptr;
};

}  // namespace vrga::binding
