// sums[r] += sum_j p[r][j] v_j for bf16 values, two keys per instruction: the dot product of bf16
// pairs multiplies (p_j, p_j') with (v_j, v_j') and adds both to an fp32 sum. Probabilities are
// rounded to bf16 for it, as in the flash attention of PyTorch; their sums Z are not.
#pragma once

#include "cpu/kernels/values.h"

namespace vrga::cpu::VRGA_ISA {

// Probabilities of the listed keys as pairs of bf16, in list order; a missing last key is 0.
struct PairedProbabilities {
  alignas(64) uint32_t pair[kMaxRows][kBlockKeys / 2];

  void pack(const ValueBlock<BFloat16>& block) {
    alignas(64) float row[kBlockKeys + 16];
    for (int r = 0; r < block.rows; ++r) {
      const float* from = block.p + r * kBlockKeys;
      if (block.index != nullptr) {
        int end = 0;
        for (int i = 0; i < kBlockKeys; i += 16) {
          const __mmask16 listed = static_cast<__mmask16>(block.keys >> i);
          _mm512_storeu_ps(row + end, _mm512_maskz_compress_ps(listed, _mm512_loadu_ps(from + i)));
          end += __builtin_popcount(listed);
        }
        _mm512_storeu_ps(row + end, _mm512_setzero_ps());
        from = row;
      }
      for (int t = 0; t < block.count; t += 16) {
        const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + t));
        _mm256_store_si256(reinterpret_cast<__m256i*>(pair[r] + t / 2), (__m256i)rounded);
      }
    }
  }
};

// Interleaving two keys splits every 8 columns of a register into 4 low and 4 high ones. Output
// sums keep that order within each 32 columns, low ones first, until finish_sums.

// R rows x the 32 columns from column c on; kPartial: only `width` of them exist.
template <int R, bool kPartial>
VRGA_HOST_DEVICE void paired_tile(const ValueBlock<BFloat16>& block,
                                  const PairedProbabilities& probabilities, int row, int64_t c,
                                  int width, int fetches, Ahead& stream) {
  Ahead ahead = stream;
  const uint32_t* pair = probabilities.pair[row];
  float* sums = block.sums + row * block.stride_sums + c;
  __m512 low[R], high[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    low[r] = _mm512_loadu_ps(sums + r * block.stride_sums);
    high[r] = _mm512_loadu_ps(sums + r * block.stride_sums + 16);
  }

  const auto columns = [&](int64_t j) {
    const BFloat16* v = block.v + j * block.stride_v + c;
    return kPartial ? _mm512_maskz_loadu_epi16((1u << width) - 1u, v) : _mm512_loadu_si512(v);
  };
  const auto add = [&](int t, __m512i one, __m512i two) __attribute__((always_inline)) {
    ahead.fetch(fetches);
    const __m512bh v_low = (__m512bh)_mm512_unpacklo_epi16(one, two);
    const __m512bh v_high = (__m512bh)_mm512_unpackhi_epi16(one, two);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512bh p =
          (__m512bh)_mm512_set1_epi32(static_cast<int>(pair[r * (kBlockKeys / 2) + t / 2]));
      low[r] = _mm512_dpbf16_ps(low[r], v_low, p);
      high[r] = _mm512_dpbf16_ps(high[r], v_high, p);
    }
  };
  const int even = block.count & ~1;
  if (block.index == nullptr) {
    for (int t = 0; t < even; t += 2) {
      add(t, columns(t), columns(t + 1));
    }
  } else {
    for (int t = 0; t < even; t += 2) {
      add(t, columns(block.index[t]), columns(block.index[t + 1]));
    }
  }
  if (even < block.count) {
    const int64_t last = block.index == nullptr ? even : block.index[even];
    add(even, columns(last), _mm512_setzero_si512());
  }

#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    _mm512_storeu_ps(sums + r * block.stride_sums, low[r]);
    _mm512_storeu_ps(sums + r * block.stride_sums + 16, high[r]);
  }
  stream = ahead;
}

// R rows over the whole value dimension.
template <int R>
__attribute__((noinline)) void paired_rows(const ValueBlock<BFloat16>& block,
                                           const PairedProbabilities& probabilities, int row,
                                           int fetches, Ahead& ahead) {
  const int64_t wide_end = block.d_v / 32 * 32;
  for (int64_t c = 0; c < wide_end; c += 32) {
    paired_tile<R, false>(block, probabilities, row, c, 32, fetches, ahead);
  }
  if (wide_end < block.d_v) {
    const int width = static_cast<int>(block.d_v - wide_end);
    paired_tile<R, true>(block, probabilities, row, wide_end, width, fetches, ahead);
  }
}

// `rows` is at most R: a chain of tests down to the tile of exactly that many rows.
template <int R>
VRGA_HOST_DEVICE void paired_rows_of(int rows, const ValueBlock<BFloat16>& block,
                                     const PairedProbabilities& probabilities, int row, int fetches,
                                     Ahead& ahead) {
  if (rows == R) {
    paired_rows<R>(block, probabilities, row, fetches, ahead);
  } else if constexpr (R > 1) {
    paired_rows_of<R - 1>(rows, block, probabilities, row, fetches, ahead);
  }
}

// Sums [rows, stride_sums] of paired columns -> columns in ascending order, in place.
template <>
inline void finish_sums<BFloat16>(float* sums, int rows, int64_t stride_sums) {
  for (float* at = sums; at < sums + rows * stride_sums; at += 32) {
    const __m512 low = _mm512_loadu_ps(at), high = _mm512_loadu_ps(at + 16);
    const __m512 a = _mm512_shuffle_f32x4(low, high, _MM_SHUFFLE(1, 0, 1, 0));
    const __m512 b = _mm512_shuffle_f32x4(low, high, _MM_SHUFFLE(3, 2, 3, 2));
    _mm512_storeu_ps(at, _mm512_shuffle_f32x4(a, a, _MM_SHUFFLE(3, 1, 2, 0)));
    _mm512_storeu_ps(at + 16, _mm512_shuffle_f32x4(b, b, _MM_SHUFFLE(3, 1, 2, 0)));
  }
}

constexpr int kPairedRows = 8;  // 16 sums: enough to hide the latency of the dot product

template <>
inline int64_t value_steps<BFloat16>(int rows, int n, int64_t d_v) {
  return ceil_div(rows, kPairedRows) * ceil_div(d_v, 32) * ceil_div(n, 2);
}

inline void accumulate(const ValueBlock<BFloat16>& block, int fetches, Ahead& ahead) {
  PairedProbabilities probabilities;
  probabilities.pack(block);
  const EvenTiles tiles(block.rows, kPairedRows);
  for (int tile = 0; tile < tiles.count; ++tile) {
    paired_rows_of<kPairedRows>(tiles.size(tile), block, probabilities, tiles.begin(tile), fetches,
                                ahead);
  }
}

}  // namespace vrga::cpu::VRGA_ISA
