// Prints "D row_slots bytes" of dynamic shared memory for every tensor kernel.
#include <cstdio>

#include "cuda/kernels/plain_split.cuh"
#include "cuda/kernels/tensor_split.cuh"

template <int kDim>
void print() {
  std::printf("%d 1 %d\n", kDim, vrga::gpu::TensorShape<kDim, 1>::kSharedBytes);
  std::printf("%d 2 %d\n", kDim, vrga::gpu::TensorShape<kDim, 2>::kSharedBytes);
}

int main() {
  print<64>();
  print<80>();
  print<96>();
  print<128>();
  print<256>();
  std::printf("0 1 %d\n", vrga::gpu::plain_shared_bytes(256));
}
