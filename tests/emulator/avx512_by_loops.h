// The AVX-512 and AMX instructions that csrc/cpu uses, lane by lane, for machines that lack them.
// Included before anything else (-include): each name of an intrinsic becomes that of a loop here.
// What the compiler's own header says of a vector's type stays; AVX2, FMA and F16C are the
// machine's.
#pragma once

#include <immintrin.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace by_loops {

// What no loop here does, or a real machine refuses.
inline void wanted(bool condition) {
  if (!condition) {
    __builtin_trap();
  }
}

template <class T, class V>
std::array<T, sizeof(V) / sizeof(T)> lanes(V v) {
  return std::bit_cast<std::array<T, sizeof(V) / sizeof(T)>>(v);
}

// Lane i of the result is f(i).
template <class V, class T, class F>
V make(F f) {
  std::array<T, sizeof(V) / sizeof(T)> result;
  for (int i = 0; i < static_cast<int>(result.size()); ++i) {
    result[i] = f(i);
  }
  return std::bit_cast<V>(result);
}

template <class F>
__m512 floats(F f) {
  return make<__m512, float>(f);
}
template <class F>
__m512i words(F f) {
  return make<__m512i, uint32_t>(f);
}

template <class V>
V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// Only the lanes that the mask names are read or written.
template <class V, class T>
V load_masked(uint64_t mask, const void* p) {
  return make<V, T>([&](int i) { return mask >> i & 1 ? static_cast<const T*>(p)[i] : T{}; });
}
template <class T, class V>
void store_masked(void* p, uint64_t mask, V v) {
  const auto x = lanes<T>(v);
  for (size_t i = 0; i < x.size(); ++i) {
    if (mask >> i & 1) {
      static_cast<T*>(p)[i] = x[i];
    }
  }
}

template <class F>
__m512 map(__m512 a, __m512 b, F f) {
  const auto x = lanes<float>(a), y = lanes<float>(b);
  return floats([&](int i) { return f(x[i], y[i]); });
}
template <class F>
__m512i map_words(__m512i a, __m512i b, F f) {
  const auto x = lanes<uint32_t>(a), y = lanes<uint32_t>(b);
  return words([&](int i) { return f(x[i], y[i]); });
}

inline __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  const auto x = lanes<float>(a), y = lanes<float>(b), z = lanes<float>(c);
  return floats([&](int i) { return std::fma(x[i], y[i], z[i]); });
}
inline float scale(float a, float exponent) {
  if (std::isnan(a) || std::isnan(exponent)) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  const double limited = std::fmax(std::fmin(std::floor(exponent), 1000.0), -1000.0);
  return static_cast<float>(std::ldexp(static_cast<double>(a), static_cast<int>(limited)));
}
inline __m512 round_nearest(__m512 a, int mode) {
  wanted(mode == (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  return map(a, a, [](float x, float) { return std::nearbyint(x); });
}
inline uint32_t compare(__m512 a, __m512 b, int predicate) {
  wanted(predicate == _CMP_UNORD_Q || predicate == _CMP_LT_OQ);
  const auto x = lanes<float>(a), y = lanes<float>(b);
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) {
    const bool unordered = std::isnan(x[i]) || std::isnan(y[i]);
    mask |= uint32_t{predicate == _CMP_UNORD_Q ? unordered : x[i] < y[i]} << i;
  }
  return mask;
}
template <class V, class T>
V blend(V no, uint64_t mask, V yes) {
  const auto x = lanes<T>(no), y = lanes<T>(yes);
  return make<V, T>([&](int i) { return mask >> i & 1 ? y[i] : x[i]; });
}
inline __m512 compress(uint32_t mask, __m512 a) {
  const auto x = lanes<float>(a);
  std::array<float, 16> result{};
  int end = 0;
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) {
      result[end++] = x[i];
    }
  }
  return std::bit_cast<__m512>(result);
}
inline uint64_t bytes_with(__m512i a, __m512i b) {
  const auto x = lanes<uint8_t>(a), y = lanes<uint8_t>(b);
  uint64_t mask = 0;
  for (int i = 0; i < 64; ++i) {
    mask |= uint64_t{(x[i] & y[i]) != 0} << i;
  }
  return mask;
}

// Lanes of T are interleaved within each 128 bits, of the low (half 0) or high ones.
template <class T, class V>
V unpack(V a, V b, int half) {
  constexpr int kLanes = 16 / sizeof(T);
  const auto x = lanes<T>(a), y = lanes<T>(b);
  return make<V, T>([&](int i) {
    const int from = i / kLanes * kLanes + half * kLanes / 2 + i % kLanes / 2;
    return i % 2 == 0 ? x[from] : y[from];
  });
}
inline __m512 shuffle(__m512 a, __m512 b, int choice) {
  const auto x = lanes<float>(a), y = lanes<float>(b);
  return floats([&](int i) {
    const int from = i / 4 * 4 + (choice >> 2 * (i % 4) & 3);
    return i % 4 < 2 ? x[from] : y[from];
  });
}
inline __m512 shuffle_quarters(__m512 a, __m512 b, int choice) {
  const auto x = lanes<float>(a), y = lanes<float>(b);
  return floats([&](int i) {
    const int from = (choice >> 2 * (i / 4) & 3) * 4 + i % 4;
    return i < 8 ? x[from] : y[from];
  });
}
inline __m512d permute2(__m512d a, __m512i index, __m512d b) {
  const auto x = lanes<double>(a), y = lanes<double>(b);
  const auto at = lanes<uint64_t>(index);
  return make<__m512d, double>([&](int i) { return at[i] & 8 ? y[at[i] & 7] : x[at[i] & 7]; });
}
inline __m256 half(__m512 a, int i) {
  return lanes<__m256>(a)[i];
}
inline __m512 insert_half(__m512 a, __m256 b, int i) {
  auto halves = lanes<__m256>(a);
  halves[i] = b;
  return std::bit_cast<__m512>(halves);
}

inline __m512 widen_half(__m256i a) {
  const auto x = lanes<__m128i>(a);
  return std::bit_cast<__m512>(std::array{_mm256_cvtph_ps(x[0]), _mm256_cvtph_ps(x[1])});
}
inline __m256i narrow_half(__m512 a, int mode) {
  wanted(mode == (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  return std::bit_cast<__m256i>(std::array{_mm256_cvtps_ph(half(a, 0), _MM_FROUND_TO_NEAREST_INT),
                                           _mm256_cvtps_ph(half(a, 1), _MM_FROUND_TO_NEAREST_INT)});
}

// The bf16 instructions take subnormal numbers for 0 and leave none behind.
inline float flushed(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}
inline uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(flushed(x));
  const uint32_t rounded = std::isnan(x) ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
  return static_cast<uint16_t>(rounded >> 16);
}
inline float from_bf16(uint16_t x) {
  return flushed(std::bit_cast<float>(uint32_t{x} << 16));
}
inline float add_pair(float sum, const uint16_t* a, const uint16_t* b) {
  sum = flushed(sum);
  for (int i = 1; i >= 0; --i) {
    sum = flushed(std::fma(from_bf16(a[i]), from_bf16(b[i]), sum));
  }
  return sum;
}
inline __m512 add_pairs(__m512 sum, __m512bh a, __m512bh b) {
  const auto x = lanes<float>(sum);
  const auto y = lanes<uint16_t>(a), z = lanes<uint16_t>(b);
  return floats([&](int i) { return add_pair(x[i], &y[2 * i], &z[2 * i]); });
}
inline __m256bh narrow_bf16(__m512 a) {
  const auto x = lanes<float>(a);
  return make<__m256bh, uint16_t>([&](int i) { return to_bf16(x[i]); });
}

// Matrix tiles: 16 rows of 64 bytes, of which a configuration may use fewer.
struct Tile {
  uint8_t rows = 0;
  uint16_t row_bytes = 0;
  alignas(64) uint8_t row[16][64] = {};
};
struct Tiles {
  bool configured = false;
  Tile tile[8];
};
inline Tiles& tiles() {
  static thread_local Tiles instance;
  return instance;
}
inline Tile& tile(int i) {
  wanted(tiles().configured);
  return tiles().tile[i];
}
inline void configure(const void* config) {
  std::array<uint8_t, 64> bytes;
  std::memcpy(bytes.data(), config, 64);
  wanted(bytes[0] == 1);  // the palette
  tiles() = Tiles{};
  tiles().configured = true;
  for (int i = 0; i < 64; ++i) {
    const bool reserved = (i >= 2 && i < 16) || (i >= 32 && i < 48) || i >= 56;
    wanted(!reserved || bytes[i] == 0);
  }
  for (int i = 0; i < 8; ++i) {
    Tile& shape = tiles().tile[i];
    std::memcpy(&shape.row_bytes, &bytes[16 + 2 * i], 2);
    shape.rows = bytes[48 + i];
    wanted(shape.rows <= 16 && shape.row_bytes <= 64);
  }
}
inline void release() {
  tiles() = Tiles{};
}
inline void clear_tile(int i) {
  std::memset(tile(i).row, 0, sizeof tile(i).row);
}
inline void load_tile(int i, const void* from, int64_t stride) {
  clear_tile(i);
  for (int r = 0; r < tile(i).rows; ++r) {
    std::memcpy(tile(i).row[r], static_cast<const char*>(from) + r * stride, tile(i).row_bytes);
  }
}
inline void store_tile(int i, void* to, int64_t stride) {
  for (int r = 0; r < tile(i).rows; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, tile(i).row[r], tile(i).row_bytes);
  }
}
// sums[r][c] += the products of the pairs a[r][k] and b[k][c].
inline void multiply_tiles(int sums, int a, int b) {
  wanted(tile(a).rows == tile(sums).rows && tile(b).row_bytes == tile(sums).row_bytes &&
         tile(a).row_bytes == 4 * tile(b).rows);
  for (int r = 0; r < tile(sums).rows; ++r) {
    for (int k = 0; k < tile(a).row_bytes / 4; ++k) {
      for (int c = 0; c < tile(sums).row_bytes / 4; ++c) {
        uint16_t x[2], y[2];
        float sum;
        std::memcpy(x, tile(a).row[r] + 4 * k, 4);
        std::memcpy(y, tile(b).row[k] + 4 * c, 4);
        std::memcpy(&sum, tile(sums).row[r] + 4 * c, 4);
        sum = add_pair(sum, x, y);
        std::memcpy(tile(sums).row[r] + 4 * c, &sum, 4);
      }
    }
  }
}

}  // namespace by_loops

#define _mm512_setzero_ps() (__m512{})
#define _mm512_setzero_si512() (__m512i{})
#define _mm512_set1_ps(x) by_loops::floats([&](int) { return float(x); })
#define _mm512_set1_epi32(x) by_loops::words([&](int) { return uint32_t(x); })
#define _mm512_set1_epi8(x) \
  by_loops::make<__m512i, uint8_t>([&](int) { return static_cast<uint8_t>(x); })
#undef _mm512_setr_epi64
#define _mm512_setr_epi64(...) std::bit_cast<__m512i>(std::array<int64_t, 8>{__VA_ARGS__})

#define _mm512_loadu_ps(p) by_loops::load<__m512>(p)
#define _mm512_loadu_si512(p) by_loops::load<__m512i>(p)
#define _mm512_maskz_loadu_ps(k, p) by_loops::load_masked<__m512, float>(k, p)
#define _mm512_maskz_loadu_epi16(k, p) by_loops::load_masked<__m512i, uint16_t>(k, p)
#define _mm256_maskz_loadu_epi16(k, p) by_loops::load_masked<__m256i, uint16_t>(k, p)
#define _mm512_storeu_ps(p, a) by_loops::store(p, a)
#define _mm512_mask_storeu_ps(p, k, a) by_loops::store_masked<float>(p, k, a)
#define _mm256_mask_storeu_epi16(p, k, a) by_loops::store_masked<uint16_t>(p, k, a)

#define _mm512_add_ps(a, b) by_loops::map(a, b, [](float x, float y) { return x + y; })
#define _mm512_sub_ps(a, b) by_loops::map(a, b, [](float x, float y) { return x - y; })
#define _mm512_mul_ps(a, b) by_loops::map(a, b, [](float x, float y) { return x * y; })
#define _mm512_div_ps(a, b) by_loops::map(a, b, [](float x, float y) { return x / y; })
#define _mm512_max_ps(a, b) by_loops::map(a, b, [](float x, float y) { return x > y ? x : y; })
#define _mm512_fmadd_ps(a, b, c) by_loops::fmadd(a, b, c)
#define _mm512_scalef_ps(a, b) by_loops::map(a, b, by_loops::scale)
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(a, mode) by_loops::round_nearest(a, mode)
#define _mm512_abs_ps(a) by_loops::map(a, a, [](float x, float) { return std::fabs(x); })
#define _mm512_and_ps(a, b) _mm512_castsi512_ps(_mm512_and_si512((__m512i)(a), (__m512i)(b)))
#define _mm512_or_ps(a, b) _mm512_castsi512_ps(_mm512_or_si512((__m512i)(a), (__m512i)(b)))

#define _mm512_and_si512(a, b) \
  by_loops::map_words(a, b, [](uint32_t x, uint32_t y) { return x & y; })
#define _mm512_or_si512(a, b) \
  by_loops::map_words(a, b, [](uint32_t x, uint32_t y) { return x | y; })
#define _mm512_add_epi32(a, b) \
  by_loops::map_words(a, b, [](uint32_t x, uint32_t y) { return x + y; })
#define _mm512_slli_epi32(a, n) \
  by_loops::map_words(a, a, [](uint32_t x, uint32_t) { return x << (n); })
#define _mm512_srli_epi32(a, n) \
  by_loops::map_words(a, a, [](uint32_t x, uint32_t) { return x >> (n); })

#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, predicate) \
  static_cast<__mmask16>(by_loops::compare(a, b, predicate))
#define _mm512_mask_mov_ps(a, k, b) by_loops::blend<__m512, float>(a, k, b)
#define _mm512_mask_mov_epi32(a, k, b) by_loops::blend<__m512i, uint32_t>(a, k, b)
#define _mm512_maskz_compress_ps(k, a) by_loops::compress(k, a)
#define _mm512_test_epi8_mask(a, b) by_loops::bytes_with(a, b)

#define _mm512_castps_si512(a) std::bit_cast<__m512i>(a)
#define _mm512_castsi512_ps(a) std::bit_cast<__m512>(a)
#define _mm512_castps_pd(a) std::bit_cast<__m512d>(a)
#define _mm512_castpd_ps(a) std::bit_cast<__m512>(a)
#define _mm512_castps512_ps256(a) by_loops::half(a, 0)
#define _mm512_castps256_ps512(a) by_loops::insert_half(__m512{}, a, 0)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(a, i) by_loops::half(a, i)
#undef _mm512_insertf32x8
#define _mm512_insertf32x8(a, b, i) by_loops::insert_half(a, b, i)

#define _mm512_unpacklo_ps(a, b) by_loops::unpack<float>(a, b, 0)
#define _mm512_unpackhi_ps(a, b) by_loops::unpack<float>(a, b, 1)
#define _mm512_unpacklo_pd(a, b) by_loops::unpack<double>(a, b, 0)
#define _mm512_unpackhi_pd(a, b) by_loops::unpack<double>(a, b, 1)
#define _mm512_unpacklo_epi16(a, b) by_loops::unpack<uint16_t>(a, b, 0)
#define _mm512_unpackhi_epi16(a, b) by_loops::unpack<uint16_t>(a, b, 1)
#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps(a, b, choice) by_loops::shuffle(a, b, choice)
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4(a, b, choice) by_loops::shuffle_quarters(a, b, choice)
#define _mm512_permutex2var_pd(a, index, b) by_loops::permute2(a, index, b)

#define _mm512_cvtepu16_epi32(a) \
  by_loops::words([x = by_loops::lanes<uint16_t>(a)](int i) { return uint32_t{x[i]}; })
#define _mm512_cvtepi32_epi16(a)     \
  by_loops::make<__m256i, uint16_t>( \
      [x = by_loops::lanes<uint32_t>(a)](int i) { return static_cast<uint16_t>(x[i]); })
#define _mm512_cvtph_ps(a) by_loops::widen_half(a)
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(a, mode) by_loops::narrow_half(a, mode)
#define _mm512_cvtneps_pbh(a) by_loops::narrow_bf16(a)
#define _mm512_dpbf16_ps(sum, a, b) by_loops::add_pairs(sum, a, b)

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) by_loops::configure(config)
#define _tile_release() by_loops::release()
#define _tile_zero(i) by_loops::clear_tile(i)
#define _tile_loadd(i, from, stride) by_loops::load_tile(i, from, stride)
#define _tile_stored(i, to, stride) by_loops::store_tile(i, to, stride)
#define _tile_dpbf16ps(sums, a, b) by_loops::multiply_tiles(sums, a, b)
