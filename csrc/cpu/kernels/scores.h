// q.k of query rows and a block of keys. K passes through L1 in panels, so that it is read once from
// L2 however many tiles of query rows there are.
#pragma once

#include "cpu/kernels/ahead.h"

namespace vrga::cpu::VRGA_ISA {

// How a dot product over the head dimension runs: query elements are stored as Query, one step
// takes kStep of them. The query row is zero-padded to a whole number of steps.
template <class T>
struct Dot {
  using Query = float;
  using Operand = Vec;
  static constexpr int kStep = kWidth;
  static VRGA_HOST_DEVICE Operand query(const Query* p) { return load(p); }
  static VRGA_HOST_DEVICE Operand key(const T* p) { return load(p); }
  static VRGA_HOST_DEVICE Operand key_partial(const T* p, int n) { return load_partial(p, n); }
  static VRGA_HOST_DEVICE Vec step(Operand a, Operand b, Vec sum) { return fma(a, b, sum); }
};

#ifdef VRGA_BF16_DOT
// Pairs of bf16 products are summed in fp32 by one instruction.
template <>
struct Dot<BFloat16> {
  using Query = BFloat16;
  using Operand = __m512bh;
  static constexpr int kStep = 32;
  static VRGA_HOST_DEVICE Operand query(const Query* p) {
    return as_operand(_mm512_loadu_si512(p));
  }
  static VRGA_HOST_DEVICE Operand key(const BFloat16* p) {
    return as_operand(_mm512_loadu_si512(p));
  }
  static VRGA_HOST_DEVICE Operand key_partial(const BFloat16* p, int n) {
    return as_operand(_mm512_maskz_loadu_epi16((1u << n) - 1u, p));
  }
  static VRGA_HOST_DEVICE Vec step(Operand a, Operand b, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, a, b)};
  }
  static VRGA_HOST_DEVICE Operand as_operand(__m512i bits) { return (__m512bh)bits; }
};
#endif

template <class T>
VRGA_HOST_DEVICE int64_t query_stride(int64_t d) {
  return ceil_div(d, Dot<T>::kStep) * Dot<T>::kStep;
}

// Copies one query row into scratch, zero-padded.
template <class T>
void stage_query(const T* q, int64_t d, typename Dot<T>::Query* out) {
  const int64_t end = query_stride<T>(d);
  for (int64_t i = 0; i < end; ++i) {
    from_float(i < d ? to_float(q[i]) : 0.0f, out + i);
  }
}

constexpr int64_t kPanelBytes = 16384;

template <class T>
struct ScoreBlock {
  const typename Dot<T>::Query* q;  // [rows, query_stride(D)]
  const T* k;                       // [n, D], row stride stride_k
  float* scores;  // [rows, kBlockKeys]; up to 3 columns beyond n get copies of the last key's
  int rows, n;
  int64_t d, stride_q, stride_k;
};

struct ScoreTile {
  int row;         // the first
  int begin, end;  // keys
};

// scores[r][j] = q_r . k_j for R rows and the keys of a panel.
template <class T, int R>
__attribute__((noinline)) void score_tile(const ScoreBlock<T>& block, const ScoreTile& tile,
                                          const Pace& pace, Ahead& stream) {
  using D = Dot<T>;
  Ahead ahead = stream;
  const typename D::Query* q = block.q + tile.row * block.stride_q;
  const int64_t stride_q = block.stride_q;
  const int64_t whole = block.d / D::kStep * D::kStep;
  const int rest = static_cast<int>(block.d - whole);
  for (int j = tile.begin; j < tile.end; j += 4) {
    const T* key[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      key[i] = block.k + (j + i < block.n ? j + i : block.n - 1) * block.stride_k;
    }
    Vec sum[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        sum[r][i] = zero();
      }
    }
    const auto multiply = [&](const typename D::Query* at, const typename D::Operand(&keys)[4])
                              __attribute__((always_inline)) {
#pragma GCC unroll 8
                                for (int r = 0; r < R; ++r) {
                                  const typename D::Operand query = D::query(at + r * stride_q);
#pragma GCC unroll 4
                                  for (int i = 0; i < 4; ++i) {
                                    sum[r][i] = D::step(query, keys[i], sum[r][i]);
                                  }
                                }
                              };
    for (int64_t c = 0; c < whole; c += D::kStep) {
      if ((c / D::kStep & pace.mask) == 0) {
        ahead.fetch(pace.batches);
      }
      const typename D::Operand keys[4] = {D::key(key[0] + c), D::key(key[1] + c),
                                           D::key(key[2] + c), D::key(key[3] + c)};
      multiply(q + c, keys);
    }
    if (rest > 0) {
      const typename D::Operand keys[4] = {
          D::key_partial(key[0] + whole, rest), D::key_partial(key[1] + whole, rest),
          D::key_partial(key[2] + whole, rest), D::key_partial(key[3] + whole, rest)};
      multiply(q + whole, keys);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      reduce4(sum[r][0], sum[r][1], sum[r][2], sum[r][3],
              block.scores + (tile.row + r) * kBlockKeys + j);
    }
  }
  stream = ahead;
}

// `rows` is at most R: a chain of tests down to the tile of exactly that many rows.
template <class T, int R>
VRGA_HOST_DEVICE void score_tile_of(int rows, const ScoreBlock<T>& block, const ScoreTile& tile,
                                    const Pace& pace, Ahead& ahead) {
  if (rows == R) {
    score_tile<T, R>(block, tile, pace, ahead);
  } else if constexpr (R > 1) {
    score_tile_of<T, R - 1>(rows, block, tile, pace, ahead);
  }
}

template <class T>
void score(const ScoreBlock<T>& block, int64_t fetches, Ahead& ahead) {
  const int tiles = (block.rows + kQkRows - 1) / kQkRows;
  const int64_t row_bytes = block.d * static_cast<int64_t>(sizeof(T));
  const int fits = static_cast<int>(kPanelBytes / row_bytes) & ~3;
  const int panel = fits < 4 ? 4 : fits;
  const Pace pace(fetches, tiles * ceil_div(block.n, 4) * (block.d / Dot<T>::kStep));
  for (int begin = 0; begin < block.n; begin += panel) {
    const int end = begin + panel < block.n ? begin + panel : block.n;
    for (int tile = 0; tile < tiles; ++tile) {
      const int first = block.rows * tile / tiles;
      const int last = block.rows * (tile + 1) / tiles;
      score_tile_of<T, kQkRows>(last - first, block, {first, begin, end}, pace, ahead);
    }
  }
}

// Blocks whose scores matrix tiles compute: none for this element type.
template <class T>
struct Tiles {
  Tiles(const AttentionJob&, float*) {}
  void stage_queries(const typename Dot<T>::Query*, int) {}
  bool serve(int) const { return false; }
  void score(const ScoreBlock<T>&, int64_t, Ahead&) {}
};

}  // namespace vrga::cpu::VRGA_ISA
