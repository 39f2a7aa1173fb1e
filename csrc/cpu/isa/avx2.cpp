#include "cpu/isa/begin.h"

#if VRGA_X86
#  include <immintrin.h>

#  if defined(__clang__)
#    pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target("avx2,fma,f16c")
#  endif

#  define VRGA_ISA avx2
#  include "cpu/simd/avx2.h"
//
#  include "cpu/kernels/math.h"
//
#  include "cpu/kernels/table.h"

#  if defined(__clang__)
#    pragma clang attribute pop
#  else
#    pragma GCC pop_options
#  endif

namespace vrga::cpu {

constinit const KernelTable kAvx2Kernels = avx2::kKernels;

}  // namespace vrga::cpu

#endif  // VRGA_X86
