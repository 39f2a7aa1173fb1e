#include "cpu/isa/begin.h"

#define VRGA_ISA generic
#include "cpu/simd/generic.h"
//
#include "cpu/kernels/math.h"
//
#include "cpu/kernels/table.h"

namespace vrga::cpu {

KernelTable generic_kernels() {
  return generic::kernel_table();
}

}  // namespace vrga::cpu
