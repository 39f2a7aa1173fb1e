// csrc/host/cuda_ops.cpp, registered for CPU tensors (and as vrga_emulated, by a compiler flag).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "host/checks.h"
#include "host/cuda_device.h"

#define CUDA CPU
#include "host/cuda_ops.cpp"
