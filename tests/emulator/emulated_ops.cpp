// csrc/torch/cuda_ops.cpp, registered for CPU tensors (and as vrga_emulated, by a compiler flag).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "torch/checks.h"
#include "torch/cuda_device.h"

#define CUDA CPU
#include "torch/cuda_ops.cpp"
