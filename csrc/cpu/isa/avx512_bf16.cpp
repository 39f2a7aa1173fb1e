#include "cpu/isa/begin.h"

#if VRGA_X86
#  include <immintrin.h>

// GCC 12 takes the undefined vectors inside its own AVX-512 headers for uninitialised variables.
#  if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#    pragma GCC diagnostic ignored "-Wuninitialized"
#  endif

#  if defined(__clang__)
#    pragma clang attribute push(                                                               \
        __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
        apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#  endif

#  define VRGA_ISA avx512_bf16
#  define VRGA_BF16_DOT
#  include "cpu/simd/avx512.h"
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

constinit const KernelTable kAvx512Bf16Kernels = avx512_bf16::kKernels;

}  // namespace vrga::cpu

#endif  // VRGA_X86
