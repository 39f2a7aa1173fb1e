// The emulated half of csrc/cuda/kernels/primitives.cuh: same names, on the SIMT machine. The reads
// and writes of a lane happen here, in code that the sanitizers instrument.
#pragma once

#include <cmath>
#include <cstring>

#include "simt.h"

#define VRGA_KERNEL static void
#define VRGA_LAUNCH_BOUNDS(threads, blocks)
#define VRGA_DEVICE inline
#define VRGA_DEVICE_MEMBER inline
#define VRGA_GRID_CONSTANT
#define VRGA_SHARED(name) auto* name = static_cast<unsigned char*>(simt::dynamic_shared())
#define VRGA_UNROLL
#define VRGA_NO_UNROLL

namespace vrga::gpu {

using Stream = void*;

inline int thread_index() {
  return simt::thread_index();
}
inline int block_index() {
  return static_cast<int>(simt::block_index());
}

inline void sync_block() {
  simt::block_barrier();
}
inline void sync_warp() {
  simt::LaneOperands operands{};
  simt::warp_instruction(simt::WarpOp::kBarrier, operands);
}
inline void allow_next_kernel() {}
inline void wait_for_previous_kernel() {}

inline uint32_t shuffle_xor_bits(uint32_t value, int lane_mask) {
  simt::LaneOperands operands{};
  operands.shuffle = {value, lane_mask};
  return simt::warp_instruction(simt::WarpOp::kShuffleXor, operands).words[0];
}
inline uint32_t ballot(bool predicate) {
  simt::LaneOperands operands{};
  operands.predicate = predicate;
  return simt::warp_instruction(simt::WarpOp::kBallot, operands).words[0];
}

inline int32_t sum_in_warp(int32_t value) {
  for (int distance = 1; distance < simt::kWarpLanes; distance *= 2) {
    value += static_cast<int32_t>(shuffle_xor_bits(static_cast<uint32_t>(value), distance));
  }
  return value;
}
inline int32_t max_in_warp(int32_t value) {
  for (int distance = 1; distance < simt::kWarpLanes; distance *= 2) {
    const auto other =
        static_cast<int32_t>(shuffle_xor_bits(static_cast<uint32_t>(value), distance));
    value = other > value ? other : value;
  }
  return value;
}

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float exp2_fast(float x) {
  const float result = exp2f(x);
  return result < 0x1p-126f ? 0.0f : result;
}

inline float widen(BFloat16 value) {
  return bits_float(uint32_t{value.bits} << 16);
}
inline float widen(Float16 value) {
  _Float16 half;
  std::memcpy(&half, &value.bits, sizeof half);
  return static_cast<float>(half);
}
template <class T>
T narrow(float value);
template <>
inline float narrow<float>(float value) {
  return value;
}
template <>
inline BFloat16 narrow<BFloat16>(float value) {
  const uint32_t bits = float_bits(value);
  if (value != value) {
    return {0x7fff};
  }
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
inline Float16 narrow<Float16>(float value) {
  const auto half = static_cast<_Float16>(value);
  Float16 result;
  std::memcpy(&result.bits, &half, sizeof half);
  return result;
}
template <class T>
uint32_t pack(float low, float high) {
  return uint32_t{narrow<T>(low).bits} | uint32_t{narrow<T>(high).bits} << 16;
}

inline void copy_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0)) {
    simt::fail("cp.async: address is not a multiple of 16");
  }
  for (int i = 0; i < 16; ++i) {
    static_cast<unsigned char*>(shared)[i] = 0xff;
  }
  simt::queue_copy({shared, global, valid ? 16 : 0, valid ? 0 : 16});
}
inline void copy_async_commit() {
  simt::commit_copies();
}
template <int kGroupsLeft>
void copy_async_wait() {
  simt::Copy copy;
  while (simt::take_copy(kGroupsLeft, &copy)) {
    auto* target = static_cast<unsigned char*>(copy.target);
    for (int i = 0; i < copy.bytes; ++i) {
      target[i] = static_cast<const unsigned char*>(copy.source)[i];
    }
    for (int i = 0; i < copy.zeros; ++i) {
      target[copy.bytes + i] = 0;
    }
  }
}

template <bool kTransposed>
void load_matrices(uint32_t (&words)[4], const void* shared_row) {
  if (reinterpret_cast<uintptr_t>(shared_row) % 16 != 0) {
    simt::fail("ldmatrix: row address is not a multiple of 16");
  }
  simt::LaneOperands operands{};
  operands.row.address = shared_row;
  for (int i = 0; i < 8; ++i) {
    operands.row.elements[i] = static_cast<const uint16_t*>(shared_row)[i];
  }
  const auto result = simt::warp_instruction(
      kTransposed ? simt::WarpOp::kLoadMatrixTransposed : simt::WarpOp::kLoadMatrix, operands);
  for (int i = 0; i < 4; ++i) {
    words[i] = result.words[i];
  }
}

template <class T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::LaneOperands operands{};
  operands.mma = {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto result = simt::warp_instruction(
      T::kIsBFloat16 ? simt::WarpOp::kMmaBFloat16 : simt::WarpOp::kMmaFloat16, operands);
  for (int i = 0; i < 4; ++i) {
    c[i] = result.c[i];
  }
}

template <class Params>
int ptx_version(void (*)(Params)) {
  return 90;
}
template <class Params>
void launch(void (*kernel)(Params), const char*, int64_t grid, int threads, size_t shared_bytes,
            bool, Stream, const Params& params) {
  simt::launch(grid, threads, shared_bytes, [&] { kernel(params); });
}

}  // namespace vrga::gpu
