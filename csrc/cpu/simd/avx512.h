// Sixteen fp32 lanes. See simd/generic.h for what each function means.
#pragma once

#include <immintrin.h>

#include "cpu/element.h"
#include "cpu/simd/four_sums.h"

namespace vrga::cpu::VRGA_ISA {

constexpr int kWidth = 16;
// 28 of 32 registers hold sums of the value micro-kernel.
constexpr int kQkRows = 8;
constexpr int qk_keys(int) {
  return 2;
}
constexpr int kPvRows = 7;
constexpr int pv_vectors(int) {
  return 4;
}

struct Vec {
  __m512 v;
};

VRGA_HOST_DEVICE Vec splat(float x) {
  return {_mm512_set1_ps(x)};
}
VRGA_HOST_DEVICE Vec zero() {
  return {_mm512_setzero_ps()};
}

VRGA_HOST_DEVICE Vec widen(__m256i bf16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16))};
}

VRGA_HOST_DEVICE Vec load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
VRGA_HOST_DEVICE Vec load(const BFloat16* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
VRGA_HOST_DEVICE Vec load(const Half* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

VRGA_HOST_DEVICE __mmask16 first(int n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}

VRGA_HOST_DEVICE Vec load_partial(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first(n), p)};
}
VRGA_HOST_DEVICE Vec load_partial(const BFloat16* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(first(n), p));
}
VRGA_HOST_DEVICE Vec load_partial(const Half* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
}

VRGA_HOST_DEVICE __m256i narrow(Vec a, const BFloat16*) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
VRGA_HOST_DEVICE __m256i narrow(Vec a, const Half*) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

VRGA_HOST_DEVICE void store(float* p, Vec a) {
  _mm512_storeu_ps(p, a.v);
}
template <class T>
VRGA_HOST_DEVICE void store(T* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a, p));
}
VRGA_HOST_DEVICE void store_partial(float* p, Vec a, int n) {
  _mm512_mask_storeu_ps(p, first(n), a.v);
}
template <class T>
VRGA_HOST_DEVICE void store_partial(T* p, Vec a, int n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow(a, p));
}

// For a value of several uses: as a memory operand it would be loaded again for each.
VRGA_HOST_DEVICE Vec in_register(Vec a) {
  __asm__("" : "+v"(a.v));
  return a;
}

VRGA_HOST_DEVICE Vec operator+(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
VRGA_HOST_DEVICE Vec operator-(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
VRGA_HOST_DEVICE Vec operator*(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
VRGA_HOST_DEVICE Vec operator/(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
VRGA_HOST_DEVICE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}

// vmaxps returns its second operand when either is NaN.
VRGA_HOST_DEVICE Vec max_keep_second(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}

VRGA_HOST_DEVICE Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), yes.v)};
}
VRGA_HOST_DEVICE Vec absolute(Vec a) {
  return {_mm512_abs_ps(a.v)};
}
VRGA_HOST_DEVICE Vec copy_sign(Vec magnitude, Vec sign) {
  return {_mm512_or_ps(magnitude.v, _mm512_and_ps(sign.v, _mm512_set1_ps(-0.0f)))};
}
VRGA_HOST_DEVICE Vec round_nearest(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
VRGA_HOST_DEVICE Vec one_more_times_power_of_two(Vec a, Vec n) {
  return {_mm512_scalef_ps((a + splat(1.0f)).v, n.v)};
}

VRGA_HOST_DEVICE float reduce_max(Vec a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
VRGA_HOST_DEVICE float reduce_add(Vec a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

VRGA_HOST_DEVICE Sums lane_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512 sum = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                   _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
  return {_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1))};
}

VRGA_HOST_DEVICE uint64_t bytes_with(const uint8_t* bytes, int bit) {
  return _mm512_test_epi8_mask(_mm512_loadu_si512(bytes),
                               _mm512_set1_epi8(static_cast<char>(1 << bit)));
}

}  // namespace vrga::cpu::VRGA_ISA
