#include "cpu/isa/begin.h"

#define VRGA_ISA generic
#include "cpu/simd/generic.h"
//
#include "cpu/kernels/math.h"
//
#include "cpu/kernels/table.h"

namespace vrga::cpu {

constinit const KernelTable kGenericKernels = generic::kKernels;

}  // namespace vrga::cpu
