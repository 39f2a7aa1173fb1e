#include "cuda/instantiations/tensor_launch.cuh"

template void vrga::gpu::launch_tensor_split<vrga::gpu::BFloat16, 96>(const SplitParams&,
                                                                      const CallPlan&,
                                                                      const Device&, Stream);
