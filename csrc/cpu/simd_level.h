// Which instruction sets the kernels were compiled for, and which one runs.
#pragma once

#include "cpu/job.h"

#if defined(__x86_64__) && defined(__GNUC__)
#  define VRGA_X86 1
#else
#  define VRGA_X86 0
#endif

namespace vrga::cpu {

extern const KernelTable kGenericKernels;
#if VRGA_X86
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAmxBf16Kernels;
#endif

// Ascending. Names: "generic", "avx2", "avx512", "avx512_bf16", "amx_bf16".
constexpr int kMaxLevels = 5;
int compiled_levels(const char* names[kMaxLevels]);

// Compiled in, and this machine can run it.
bool level_runs_here(const char* name);

// The level in use: the highest that runs here, or the one VRGA_EXT_SIMD names. Throws
// std::runtime_error if that one is unknown or cannot run here.
const char* simd_level();

// Changes the level for the whole process; for tests and comparisons.
void set_simd_level(const char* name);

const KernelTable& kernels();

}  // namespace vrga::cpu
