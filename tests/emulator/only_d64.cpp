// Stands in for the head dims that `check_kernels --small` does not use.
#include "cuda/instantiations/tensor_launch.cuh"
#include "simt.h"

namespace vrga::gpu {

#define VRGA_ABSENT(T, D)                                                                      \
  template <>                                                                                  \
  void launch_tensor_split<T, D>(const SplitParams&, const CallPlan&, const Device&, Stream) { \
    simt::fail("this build of check_kernels has D = 64 only");                                 \
  }

VRGA_ABSENT(BFloat16, 80)
VRGA_ABSENT(BFloat16, 96)
VRGA_ABSENT(BFloat16, 128)
VRGA_ABSENT(BFloat16, 256)
VRGA_ABSENT(Float16, 80)
VRGA_ABSENT(Float16, 96)
VRGA_ABSENT(Float16, 128)
VRGA_ABSENT(Float16, 256)

}  // namespace vrga::gpu
