// Four fp32 lanes through the vector extension of GCC and Clang: SSE2 on x86-64, NEON on aarch64.
// The other headers of this folder implement the same functions for their instruction set, and
// scatter where qk_keys may be 3.
#pragma once

#include <cmath>

#include "cpu/element.h"

namespace vrga::cpu::VRGA_ISA {

constexpr int kWidth = 4;
// Tiles of the micro-kernels: at most kQkRows query rows x qk_keys (2, 3 or 4) keys of the scores,
// at most kPvRows query rows x pv_vectors of the value dimension.
constexpr int kQkRows = 4;
constexpr int qk_keys(int) {
  return 2;
}
constexpr int kPvRows = 4;
constexpr int pv_vectors(int) {
  return 2;
}

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct Vec {
  Float4 v;
};

VRGA_HOST_DEVICE Vec splat(float x) {
  return {Float4{x, x, x, x}};
}
VRGA_HOST_DEVICE Vec zero() {
  return {Float4{}};
}

VRGA_HOST_DEVICE Vec load(const float* p) {
  Vec a;
  memcpy(&a.v, p, sizeof a.v);
  return a;
}
template <class T>
VRGA_HOST_DEVICE Vec load(const T* p) {
  return {Float4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
}

// The first n < kWidth lanes; the others are 0, and their memory is not touched.
template <class T>
VRGA_HOST_DEVICE Vec load_partial(const T* p, int n) {
  T copy[kWidth] = {};
  memcpy(copy, p, static_cast<size_t>(n) * sizeof(T));
  return load(copy);
}

VRGA_HOST_DEVICE void store(float* p, Vec a) {
  memcpy(p, &a.v, sizeof a.v);
}
template <class T>
VRGA_HOST_DEVICE void store(T* p, Vec a) {
  for (int i = 0; i < kWidth; ++i) {
    from_float(a.v[i], p + i);
  }
}
template <class T>
VRGA_HOST_DEVICE void store_partial(T* p, Vec a, int n) {
  T copy[kWidth];
  store(copy, a);
  memcpy(p, copy, static_cast<size_t>(n) * sizeof(T));
}

// For a value of several uses: as a memory operand it would be loaded again for each.
VRGA_HOST_DEVICE Vec in_register(Vec a) {
  return a;
}

VRGA_HOST_DEVICE Vec operator+(Vec a, Vec b) {
  return {a.v + b.v};
}
VRGA_HOST_DEVICE Vec operator-(Vec a, Vec b) {
  return {a.v - b.v};
}
VRGA_HOST_DEVICE Vec operator*(Vec a, Vec b) {
  return {a.v * b.v};
}
VRGA_HOST_DEVICE Vec operator/(Vec a, Vec b) {
  return {a.v / b.v};
}
VRGA_HOST_DEVICE Vec fma(Vec a, Vec b, Vec c) {
  return {a.v * b.v + c.v};
}

VRGA_HOST_DEVICE Vec select(Int4 condition, Vec yes, Vec no) {
  const Int4 bits =
      (condition & reinterpret_cast<Int4>(yes.v)) | (~condition & reinterpret_cast<Int4>(no.v));
  return {reinterpret_cast<Float4>(bits)};
}

// The larger lane; the lane of b where either is NaN.
VRGA_HOST_DEVICE Vec max_keep_second(Vec a, Vec b) {
  return select(Int4(a.v > b.v), a, b);
}

// a < b ? yes : no; `no` where either is NaN.
VRGA_HOST_DEVICE Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return select(Int4(a.v < b.v), yes, no);
}
VRGA_HOST_DEVICE Vec absolute(Vec a) {
  return {reinterpret_cast<Float4>(reinterpret_cast<Int4>(a.v) & 0x7fffffff)};
}
VRGA_HOST_DEVICE Vec copy_sign(Vec magnitude, Vec sign) {
  const Int4 sign_bit = reinterpret_cast<Int4>(sign.v) & static_cast<int32_t>(0x80000000u);
  return {reinterpret_cast<Float4>(reinterpret_cast<Int4>(magnitude.v) | sign_bit)};
}
// For |a| < 2^22: adding and subtracting 1.5 * 2^23 leaves the nearest integer.
VRGA_HOST_DEVICE Vec round_nearest(Vec a) {
  const Vec magic = splat(12582912.0f);
  return (a + magic) - magic;
}
// (1 + a) * 2^n for an integral n in [-190, 64]: by 2^(n + 64), whose bits are those of n + 191
// shifted up, and then by 2^-64, so that results below 2^-126 come out subnormal or 0. A float that
// adds 1.5 * 2^23 to an integer ends in the bits of that integer. Of a NaN any power is NaN.
VRGA_HOST_DEVICE Vec one_more_times_power_of_two(Vec a, Vec n) {
  const Vec biased = n + splat(12582912.0f + 191.0f);
  const Vec power = {reinterpret_cast<Float4>(reinterpret_cast<Int4>(biased.v) << 23)};
  return fma(a, power, power) * splat(0x1p-64f);
}

VRGA_HOST_DEVICE float reduce_max(Vec a) {
  const float left = a.v[0] > a.v[1] ? a.v[0] : a.v[1];
  const float right = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return left > right ? left : right;
}
VRGA_HOST_DEVICE float reduce_add(Vec a) {
  return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
}

struct Sums {
  Float4 v;
};

// The sums of the lanes of a, of b, of c and of d.
VRGA_HOST_DEVICE Sums lane_sums(Vec a, Vec b, Vec c, Vec d) {
  return {Float4{reduce_add(a), reduce_add(b), reduce_add(c), reduce_add(d)}};
}
VRGA_HOST_DEVICE void store(float* p, Sums a) {
  memcpy(p, &a.v, sizeof a.v);
}
VRGA_HOST_DEVICE void store_first2(float* p, Sums a) {
  p[0] = a.v[0];
  p[1] = a.v[1];
}
VRGA_HOST_DEVICE void store_last2(float* p, Sums a) {
  p[0] = a.v[2];
  p[1] = a.v[3];
}

// Which of 64 bytes have the given bit. Multiplying moves the lowest bits of 8 bytes into the top
// one.
VRGA_HOST_DEVICE uint64_t bytes_with(const uint8_t* bytes, int bit) {
  uint64_t found = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    memcpy(&eight, bytes + i * 8, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    eight = eight >> bit & 0x0101010101010101u;
    found |= (eight * 0x0102040810204080u >> 56) << (i * 8);
  }
  return found;
}

}  // namespace vrga::cpu::VRGA_ISA
