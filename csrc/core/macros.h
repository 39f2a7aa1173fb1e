// Marks a function that g++ and nvcc both compile.
//
// Forced inlining is a matter of correctness here, not of speed: the CPU kernels compile these
// headers once per instruction set. An out-of-line copy built with AVX-512 flags could be the one
// the linker keeps for everybody, and would then stop an older machine with an illegal instruction.
#pragma once

#if defined(__CUDACC__)
#  define VRGA_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#  define VRGA_HOST_DEVICE inline __attribute__((always_inline))
#else
#  define VRGA_HOST_DEVICE inline
#endif
