// Everything a kernel asks of the GPU, under one set of names: PTX for nvcc; for g++ the emulator
// of the tests, found as "device.h" on the include path. No kernel contains assembly, a static
// shared array or a launch of its own.
//
//   thread_index  block_index  sync_block  sync_warp         a thread's place, barriers
//   shuffle_xor  ballot  any_in_warp  sum_in_warp  max_in_warp   warp-wide (all 32 lanes)
//   copy_async  copy_async_commit  copy_async_wait           16 bytes, global to shared (cp.async)
//   load_matrices                                            four 8x8 matrices (ldmatrix)
//   mma_m16n8k16                                             D = A B + C, fp32 sums
//   exp2_fast  widen  narrow  pack                           scalars
//   allow_next_kernel  wait_for_previous_kernel              overlap of dependent launches (sm_90)
//   launch  ptx_version                                      throw std::runtime_error
#pragma once

#include <cstdint>

namespace vrga::gpu {

// A 16-bit float as the kernels see it. These headers know neither torch nor cuda_bf16.h.
struct BFloat16 {
  static constexpr bool kIsBFloat16 = true;
  uint16_t bits;
};
struct Float16 {
  static constexpr bool kIsBFloat16 = false;
  uint16_t bits;
};

}  // namespace vrga::gpu

#if !defined(__CUDACC__)
#  include "device.h"
#else

#  include <cuda_runtime.h>

#  include <map>
#  include <mutex>
#  include <stdexcept>
#  include <string>
#  include <utility>

#  define VRGA_KERNEL static __global__ void
#  define VRGA_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#  define VRGA_DEVICE static __device__ __forceinline__
#  define VRGA_DEVICE_MEMBER __device__ __forceinline__
#  define VRGA_GRID_CONSTANT __grid_constant__
#  define VRGA_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#  define VRGA_UNROLL _Pragma("unroll")
#  define VRGA_NO_UNROLL _Pragma("unroll 1")

namespace vrga::gpu {

using Stream = cudaStream_t;

VRGA_DEVICE int thread_index() {
  return static_cast<int>(threadIdx.x);
}
VRGA_DEVICE int block_index() {
  return static_cast<int>(blockIdx.x);
}

VRGA_DEVICE void sync_block() {
  __syncthreads();
}
VRGA_DEVICE void sync_warp() {
  __syncwarp();
}
// Lets the next kernel of the stream start its blocks; it still waits for all of this one's writes.
VRGA_DEVICE void allow_next_kernel() {
#  if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#  endif
}
VRGA_DEVICE void wait_for_previous_kernel() {
#  if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#  endif
}

VRGA_DEVICE uint32_t shuffle_xor_bits(uint32_t value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
VRGA_DEVICE uint32_t ballot(bool predicate) {
  return __ballot_sync(0xffffffffu, predicate);
}

VRGA_DEVICE int32_t sum_in_warp(int32_t value) {
  return __reduce_add_sync(0xffffffffu, value);
}
VRGA_DEVICE int32_t max_in_warp(int32_t value) {
  return __reduce_max_sync(0xffffffffu, value);
}

VRGA_DEVICE uint32_t float_bits(float value) {
  return __float_as_uint(value);
}
VRGA_DEVICE float bits_float(uint32_t bits) {
  return __uint_as_float(bits);
}

// 2^x to about 2 ulp; 2^-inf = 0, NaN stays NaN, results below the smallest normal float are 0.
VRGA_DEVICE float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

VRGA_DEVICE float widen(BFloat16 value) {
  return bits_float(static_cast<uint32_t>(value.bits) << 16);
}
VRGA_DEVICE float widen(Float16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
template <class T>
VRGA_DEVICE uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (T::kIsBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}
template <class T>
VRGA_DEVICE T narrow(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    return {static_cast<uint16_t>(pack<T>(value, 0.0f))};
  }
}

// The address must be a multiple of 16 on both sides. Not valid: 16 zero bytes, nothing is read.
VRGA_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
VRGA_DEVICE void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most the newest kGroupsLeft groups of this thread are still under way. Other threads see
// the data after a barrier.
template <int kGroupsLeft>
VRGA_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Lane i gives the address of row i % 8 of matrix i / 8. words[m] holds elements (r, 2c) and
// (r, 2c + 1) of matrix m with r = lane / 4, c = lane % 4, or of its transpose.
template <bool kTransposed>
VRGA_DEVICE void load_matrices(uint32_t (&words)[4], const void* shared_row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
}

// c += A B. With g = lane / 4 and t = 2 * (lane % 4): c holds (g, t), (g, t + 1), (g + 8, t),
// (g + 8, t + 1); a holds rows g, g + 8, g, g + 8 at columns t, t, t + 8, t + 8 and their right
// neighbours; b0 and b1 hold rows t, t + 1 and t + 8, t + 9 of column g.
template <class T>
VRGA_DEVICE void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (T::kIsBFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

inline void check_cuda(cudaError_t error, const char* name, const char* step) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // not left for whoever asks next
    throw std::runtime_error(std::string(name) + ": " + step + ": " + cudaGetErrorString(error));
  }
}

// Of the code that the current device runs: 90 for sm_90, and for a newer device whose code was
// compiled from PTX of sm_90.
template <class Params>
int ptx_version(void (*kernel)(Params)) {
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "vrga_ext kernels", "attributes");
  return attributes.ptxVersion;
}

// Lets a kernel have more than 48 KB of shared memory on the current device. The driver is told
// once for each, not on every launch: an eager decode step waits for the host.
inline void allow_shared_memory(const void* kernel, const char* name, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  check_cuda(cudaGetDevice(&device), name, "device");
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes > most) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)),
               name, "shared memory");
    most = bytes;
  }
}

// `overlap`: the kernel may be scheduled before its predecessor has ended (sm_90 and newer); it
// then begins with wait_for_previous_kernel().
template <class Params>
void launch(void (*kernel)(Params), const char* name, int64_t grid, int threads,
            size_t shared_bytes, bool overlap, Stream stream, const Params& params) {
  if (grid > 2147483647) {
    throw std::runtime_error(std::string(name) + ": wanted fewer than 2^31 blocks, got " +
                             std::to_string(grid));
  }
  if (shared_bytes > 48 * 1024) {
    allow_shared_memory(reinterpret_cast<const void*>(kernel), name, shared_bytes);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, params), name, "launch");
}

}  // namespace vrga::gpu

#endif  // __CUDACC__

namespace vrga::gpu {

constexpr int kWarpSize = 32;

VRGA_DEVICE float widen(float value) {
  return value;
}
// Not for NaN. Integers in the order of the floats that have their bits.
VRGA_DEVICE float max_in_warp(float value) {
  const auto ordered = [](int32_t bits) { return bits < 0 ? bits ^ 0x7fffffff : bits; };
  const int32_t highest = max_in_warp(ordered(static_cast<int32_t>(float_bits(value))));
  return bits_float(static_cast<uint32_t>(ordered(highest)));
}
// low + high of a packed pair.
template <class T>
VRGA_DEVICE float unpacked_sum(uint32_t word) {
  return widen(T{static_cast<uint16_t>(word & 0xffffu)}) +
         widen(T{static_cast<uint16_t>(word >> 16)});
}
VRGA_DEVICE int lane_index() {
  return thread_index() % kWarpSize;
}
VRGA_DEVICE int warp_index() {
  return thread_index() / kWarpSize;
}
VRGA_DEVICE float shuffle_xor(float value, int lane_mask) {
  return bits_float(shuffle_xor_bits(float_bits(value), lane_mask));
}
VRGA_DEVICE int32_t shuffle_xor(int32_t value, int lane_mask) {
  return static_cast<int32_t>(shuffle_xor_bits(static_cast<uint32_t>(value), lane_mask));
}
VRGA_DEVICE bool any_in_warp(bool predicate) {
  return ballot(predicate) != 0;
}

}  // namespace vrga::gpu
