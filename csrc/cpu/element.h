// Storage types of the tensors and their scalar conversions; all arithmetic is fp32.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace vrga::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

VRGA_HOST_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

VRGA_HOST_DEVICE float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

VRGA_HOST_DEVICE float to_float(float x) {
  return x;
}

VRGA_HOST_DEVICE float to_float(BFloat16 x) {
  return from_bits(static_cast<uint32_t>(x.bits) << 16);
}

VRGA_HOST_DEVICE float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x7c00u << 13) {  // infinity and NaN
    return from_bits(sign | 0x7f800000u | (magnitude & 0x7fffffu));
  }
  // 2^112 moves the exponent bias from 15 to 127; multiplying also normalises subnormal halves.
  return from_bits(sign | bits_of(from_bits(magnitude) * 0x1p112f));
}

VRGA_HOST_DEVICE void from_float(float x, float* out) {
  *out = x;
}

// Round to nearest even. A NaN keeps its sign and becomes quiet.
VRGA_HOST_DEVICE void from_float(float x, BFloat16* out) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

VRGA_HOST_DEVICE void from_float(float x, Half* out) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude <
             0x38800000u) {  // below 2^-14: adding 0.5 rounds at the subnormal's last bit
    half = bits_of(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace vrga::cpu
