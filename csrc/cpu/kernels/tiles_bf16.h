// q.k of bf16 on matrix tiles (AMX): 16 keys x 16 query rows of fp32 sums, 32 products each, per
// instruction. p.v is not: it would need pairs of keys interleaved in memory first, and passing V
// and the sums through L1 once more costs more than the vector units do.
#pragma once

#include "cpu/kernels/scores.h"

namespace vrga::cpu::VRGA_ISA {

constexpr int kTileKeys = 16, kTilePairs = 16;  // rows of a tile: keys, or pairs of bf16

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

// Staged query rows [rows, query_stride] -> [tiles of rows, d / 2 pairs, 16 rows] of pairs.
inline void stage_query_tiles(const BFloat16* q, int rows, int64_t d, uint32_t* tiles) {
  const int64_t pairs = d / 2, stride = query_stride<BFloat16>(d);
  for (int r = 0; r < ceil_div(rows, kTileRows) * kTileRows; ++r) {
    uint32_t* column = tiles + r / kTileRows * pairs * kTileRows + r % kTileRows;
    for (int64_t i = 0; i < pairs; ++i) {
      uint32_t pair = 0;
      if (r < rows) {
        memcpy(&pair, q + r * stride + 2 * i, sizeof(pair));
      }
      column[i * kTileRows] = pair;
    }
  }
}

// 16 keys x the 8 query rows from column `first` on -> `rows` (at most 8) rows of scores.
VRGA_HOST_DEVICE void transpose_scores(const float (*tile)[kTileRows], int first, int rows,
                                       float* scores) {
  __m512 key[8];  // rows of key i and of key i + 8
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    key[i] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(tile[i] + first)),
                                _mm256_loadu_ps(tile[i + 8] + first), 1);
  }
  __m512 four[2][4];  // [keys 0-3 or 4-7][row], with row + 4 in the odd 128-bit lanes
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(key[4 * i], key[4 * i + 1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(key[4 * i], key[4 * i + 1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(key[4 * i + 2], key[4 * i + 3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(key[4 * i + 2], key[4 * i + 3]));
    four[i][0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    four[i][1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    four[i][2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    four[i][3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    if (r < rows) {
      const __m512d a = _mm512_castps_pd(four[0][r % 4]), b = _mm512_castps_pd(four[1][r % 4]);
      const __m512d row = _mm512_permutex2var_pd(a, r < 4 ? even : odd, b);
      _mm512_storeu_ps(scores + r * kBlockKeys, _mm512_castpd_ps(row));
    }
  }
}

// scores[r][j] = q_r . k_j for all rows and keys of a block of kBlockKeys.
inline void score_tiles(const ScoreBlock<BFloat16>& block, const uint32_t* query_tiles,
                        int64_t fetches, Ahead& ahead) {
  static_assert(kBlockKeys == 4 * kTileKeys, "four tiles of keys");
  alignas(64) float products[kBlockKeys][kTileRows];
  const int64_t row_bytes = block.stride_k * 2, pairs = block.d / 2;
  const int tiles = static_cast<int>(ceil_div(block.rows, kTileRows));
  const Pace pace(fetches, tiles * block.d / 8);
  before_tile_loads();
  for (int tile = 0; tile < tiles; ++tile) {
    const uint32_t* query = query_tiles + tile * pairs * kTileRows;
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
      ahead.fetch(pace.batches);
      _tile_loadd(6, k + sixteen, row_bytes);
      _tile_dpbf16ps(1, 6, 4);
      ahead.fetch(pace.batches);
      _tile_loadd(5, k + 2 * sixteen, row_bytes);
      _tile_dpbf16ps(2, 5, 4);
      ahead.fetch(pace.batches);
      _tile_loadd(6, k + 3 * sixteen, row_bytes);
      _tile_dpbf16ps(3, 6, 4);
      ahead.fetch(pace.batches);
    }
    _tile_stored(0, products[0], 64);
    _tile_stored(1, products[16], 64);
    _tile_stored(2, products[32], 64);
    _tile_stored(3, products[48], 64);
    for (int r = tile * kTileRows; r < block.rows && r < (tile + 1) * kTileRows; r += 8) {
      for (int j = 0; j < kBlockKeys; j += kTileKeys) {
        transpose_scores(products + j, r % kTileRows, block.rows - r,
                         block.scores + r * kBlockKeys + j);
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
      : d_(job.p.d),
        used_(job.p.d % 32 == 0 && job.p.s_kv >= kBlockKeys),
        query_(reinterpret_cast<uint32_t*>(scratch)) {
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

  void stage_queries(const BFloat16* q, int rows) {
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
  uint32_t* query_;  // see stage_query_tiles
};

}  // namespace vrga::cpu::VRGA_ISA
