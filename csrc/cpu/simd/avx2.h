// Eight fp32 lanes, with FMA and F16C. See simd/generic.h for what each function means.
#pragma once

#include <immintrin.h>

#include "cpu/element.h"
#include "cpu/simd/four_sums.h"

namespace vrga::cpu::VRGA_ISA {

constexpr int kWidth = 8;
// Of 16 registers at most 12 hold sums: 8 would be enough for the latency of an FMA if nothing else
// delayed it.
constexpr int kQkRows = 6;
constexpr int qk_keys(int rows) {
  return rows <= 3 ? 4 : rows == 4 ? 3 : 2;
}
constexpr int kPvRows = 4;
constexpr int pv_vectors(int rows) {
  return rows <= 3 ? 4 : 3;
}

struct Vec {
  __m256 v;
};

VRGA_HOST_DEVICE Vec splat(float x) {
  return {_mm256_set1_ps(x)};
}
VRGA_HOST_DEVICE Vec zero() {
  return {_mm256_setzero_ps()};
}

VRGA_HOST_DEVICE Vec widen(__m128i bits, const BFloat16*) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
VRGA_HOST_DEVICE Vec widen(__m128i bits, const Half*) {
  return {_mm256_cvtph_ps(bits)};
}

VRGA_HOST_DEVICE Vec load(const float* p) {
  return {_mm256_loadu_ps(p)};
}
template <class T>
VRGA_HOST_DEVICE Vec load(const T* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), p);
}

VRGA_HOST_DEVICE __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

VRGA_HOST_DEVICE Vec load_partial(const float* p, int n) {
  return {_mm256_maskload_ps(p, first(n))};
}
template <class T>
VRGA_HOST_DEVICE Vec load_partial(const T* p, int n) {
  T copy[kWidth] = {};  // there is no masked load of 16-bit lanes
  memcpy(copy, p, static_cast<size_t>(n) * sizeof(T));
  return load(copy);
}

VRGA_HOST_DEVICE __m128i narrow(Vec a, const BFloat16*) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
}
VRGA_HOST_DEVICE __m128i narrow(Vec a, const Half*) {
  return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

VRGA_HOST_DEVICE void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.v);
}
template <class T>
VRGA_HOST_DEVICE void store(T* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a, p));
}
VRGA_HOST_DEVICE void store_partial(float* p, Vec a, int n) {
  _mm256_maskstore_ps(p, first(n), a.v);
}
template <class T>
VRGA_HOST_DEVICE void store_partial(T* p, Vec a, int n) {
  T copy[kWidth];
  store(copy, a);
  memcpy(p, copy, static_cast<size_t>(n) * sizeof(T));
}

// For a value of several uses: as a memory operand it would be loaded again for each.
VRGA_HOST_DEVICE Vec in_register(Vec a) {
  __asm__("" : "+x"(a.v));
  return a;
}

VRGA_HOST_DEVICE Vec operator+(Vec a, Vec b) {
  return {_mm256_add_ps(a.v, b.v)};
}
VRGA_HOST_DEVICE Vec operator-(Vec a, Vec b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
VRGA_HOST_DEVICE Vec operator*(Vec a, Vec b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
VRGA_HOST_DEVICE Vec operator/(Vec a, Vec b) {
  return {_mm256_div_ps(a.v, b.v)};
}
VRGA_HOST_DEVICE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}

// vmaxps returns its second operand when either is NaN.
VRGA_HOST_DEVICE Vec max_keep_second(Vec a, Vec b) {
  return {_mm256_max_ps(a.v, b.v)};
}

VRGA_HOST_DEVICE Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
VRGA_HOST_DEVICE Vec absolute(Vec a) {
  return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)};
}
VRGA_HOST_DEVICE Vec copy_sign(Vec magnitude, Vec sign) {
  return {_mm256_or_ps(magnitude.v, _mm256_and_ps(sign.v, _mm256_set1_ps(-0.0f)))};
}
VRGA_HOST_DEVICE Vec round_nearest(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
VRGA_HOST_DEVICE Vec one_more_times_power_of_two(Vec a, Vec n) {
  const Vec biased = n + splat(12582912.0f + 191.0f);
  const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(biased.v), 23);
  const Vec power{_mm256_castsi256_ps(bits)};
  return fma(a, power, power) * splat(0x1p-64f);
}

VRGA_HOST_DEVICE float reduce_max(Vec a) {
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
VRGA_HOST_DEVICE float reduce_add(Vec a) {
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

// With blends and shuffles: vhaddps is the same and takes longer.
VRGA_HOST_DEVICE __m256 half_sums(Vec a, Vec b) {
  return _mm256_add_ps(_mm256_blend_ps(a.v, b.v, 0xcc), _mm256_shuffle_ps(a.v, b.v, 0x4e));
}
VRGA_HOST_DEVICE Sums lane_sums(Vec a, Vec b, Vec c, Vec d) {
  const __m256 ab = half_sums(a, b), cd = half_sums(c, d);
  const __m256 sum =
      _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd));
  return {_mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1))};
}

VRGA_HOST_DEVICE uint64_t bytes_with(const uint8_t* bytes, int bit) {
  const auto half = [&](int i) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes) + i);
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi64(x, 7 - bit)));
  };
  return uint64_t{half(1)} << 32 | half(0);
}

}  // namespace vrga::cpu::VRGA_ISA
