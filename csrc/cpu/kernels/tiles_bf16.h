// q.k of bf16 on matrix tiles (AMX): 16 keys x 16 query rows of fp32 sums, 32 products each, per
// instruction. p.v is not: it would need pairs of keys interleaved in memory first, and passing V
// and the sums through L1 once more costs more than the vector units do.
#pragma once

#include "cpu/kernels/scores.h"

namespace vrga::cpu::VRGA_ISA {

constexpr int kTileRows = 16, kTileKeys = 16;

// GCC does not know which memory a tile is loaded from.
inline void before_tile_loads() {
  __asm__ volatile("" ::: "memory");
}

// Every tile is 16 rows of 64 bytes.
inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  for (int i = 0; i < 8; ++i) {
    shapes.row_bytes[i] = 64;
    shapes.rows[i] = kTileRows;
  }
  before_tile_loads();
  _tile_loadconfig(&shapes);
}

// 16 rows of 8 columns -> `columns` (at most 8) rows of 16.
VRGA_HOST_DEVICE void transpose16x8(const float* in, int64_t stride_in, int columns, float* out,
                                    int64_t stride_out) {
  __m512 row[8];  // rows i and i + 8
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    row[i] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(in + i * stride_in)),
                                _mm256_loadu_ps(in + (i + 8) * stride_in), 1);
  }
  __m512d four[2][4];  // [rows 0-3 or 4-7][column], with column + 4 in the odd 128-bit lanes
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(row[4 * i], row[4 * i + 1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(row[4 * i], row[4 * i + 1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(row[4 * i + 2], row[4 * i + 3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(row[4 * i + 2], row[4 * i + 3]));
    four[i][0] = _mm512_unpacklo_pd(a, c);
    four[i][1] = _mm512_unpackhi_pd(a, c);
    four[i][2] = _mm512_unpacklo_pd(b, d);
    four[i][3] = _mm512_unpackhi_pd(b, d);
  }
  const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    if (r < columns) {
      const __m512i lanes = r < 4 ? even : odd;
      const __m512d column = _mm512_permutex2var_pd(four[0][r % 4], lanes, four[1][r % 4]);
      _mm512_storeu_ps(out + r * stride_out, _mm512_castpd_ps(column));
    }
  }
}

// Query rows -> [tiles of 16 rows, d / 2 pairs, 16 rows] of pairs, bit for bit; 0 for missing rows.
inline void stage_query_tiles(const BFloat16* const* q, int rows, int64_t d, float* tiles) {
  const int64_t pairs = d / 2;
  for (int first = 0; first < rows; first += kTileRows) {
    for (int64_t i = 0; i < pairs; i += 8) {
      alignas(64) float eight[kTileRows][8] = {};
      for (int r = 0; r < kTileRows && first + r < rows; ++r) {
        memcpy(eight[r], q[first + r] + 2 * i, sizeof(eight[r]));
      }
      transpose16x8(eight[0], 8, 8, tiles + first * pairs + i * kTileRows, kTileRows);
    }
  }
}

// scores[r][j] = q_r . k_j for all rows and keys of a block of kBlockKeys.
inline void score_tiles(const ScoreBlock<BFloat16>& block, const float* query_tiles,
                        int64_t fetches, Ahead& ahead) {
  static_assert(kBlockKeys == 4 * kTileKeys, "four tiles of keys");
  alignas(64) float products[kBlockKeys][kTileRows];
  const int64_t row_bytes = block.stride_k * 2, pairs = block.d / 2;
  const int tiles = static_cast<int>(ceil_div(block.rows, kTileRows));
  const int per_step = pace(fetches, tiles * block.d / 8);
  before_tile_loads();
  for (int tile = 0; tile < tiles; ++tile) {
    const float* query = query_tiles + tile * pairs * kTileRows;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c < block.d; c += 32) {
      const BFloat16* k = block.k + c;
      const int64_t sixteen = kTileKeys * block.stride_k;
      _tile_loadd(4, query + c / 2 * kTileRows, 64);
      _tile_loadd(5, k, row_bytes);
      _tile_dpbf16ps(0, 5, 4);
      ahead.fetch(per_step);
      _tile_loadd(6, k + sixteen, row_bytes);
      _tile_dpbf16ps(1, 6, 4);
      ahead.fetch(per_step);
      _tile_loadd(5, k + 2 * sixteen, row_bytes);
      _tile_dpbf16ps(2, 5, 4);
      ahead.fetch(per_step);
      _tile_loadd(6, k + 3 * sixteen, row_bytes);
      _tile_dpbf16ps(3, 6, 4);
      ahead.fetch(per_step);
    }
    _tile_stored(0, products[0], 64);
    _tile_stored(1, products[16], 64);
    _tile_stored(2, products[32], 64);
    _tile_stored(3, products[48], 64);
    for (int r = tile * kTileRows; r < block.rows && r < (tile + 1) * kTileRows; r += 8) {
      for (int j = 0; j < kBlockKeys; j += kTileKeys) {
        transpose16x8(products[j] + r % kTileRows, kTileRows, block.rows - r,
                      block.scores + r * kBlockKeys + j, kBlockKeys);
      }
    }
  }
}

// Blocks whose scores matrix tiles compute.
template <>
class Tiles<BFloat16> {
 public:
  // The registers belong to a task: other libraries on the same thread set their own.
  Tiles(const AttentionJob& job, float* scratch)
      : d_(job.p.d), used_(job.p.d % 32 == 0 && job.p.s_kv >= kBlockKeys), query_(scratch) {
    if (used_) {
      configure_tiles();
    }
  }
  ~Tiles() {
    if (used_) {
      _tile_release();
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  void stage_queries(const BFloat16* const* q, int rows) {
    if (used_) {
      stage_query_tiles(q, rows, d_, query_);
    }
  }

  bool serve(int keys) const { return used_ && keys == kBlockKeys; }

  void score(const ScoreBlock<BFloat16>& block, int64_t fetches, Ahead& ahead) {
    score_tiles(block, query_, fetches, ahead);
  }

 private:
  int64_t d_;
  bool used_;
  float* query_;  // see stage_query_tiles
};

}  // namespace vrga::cpu::VRGA_ISA
