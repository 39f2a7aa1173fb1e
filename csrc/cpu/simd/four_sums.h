// Four fp32 sums in an SSE register, for the instruction sets of x86. See simd/generic.h.
#pragma once

#include <immintrin.h>

#include "cpu/element.h"

namespace vrga::cpu::VRGA_ISA {

struct Sums {
  __m128 v;
};

VRGA_HOST_DEVICE void store(float* p, Sums a) {
  _mm_storeu_ps(p, a.v);
}
VRGA_HOST_DEVICE void store_first2(float* p, Sums a) {
  _mm_storel_pi(reinterpret_cast<__m64*>(p), a.v);
}
VRGA_HOST_DEVICE void store_last2(float* p, Sums a) {
  _mm_storeh_pi(reinterpret_cast<__m64*>(p), a.v);
}

// p[0], p[stride], ...
VRGA_HOST_DEVICE void scatter(float* p, int64_t stride, Sums a) {
  _mm_store_ss(p, a.v);
  _mm_store_ss(p + stride, _mm_movehdup_ps(a.v));
  _mm_store_ss(p + 2 * stride, _mm_movehl_ps(a.v, a.v));
  _mm_store_ss(p + 3 * stride, _mm_shuffle_ps(a.v, a.v, 0xff));
}

}  // namespace vrga::cpu::VRGA_ISA
