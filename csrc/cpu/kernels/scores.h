// q.k of query rows and a block of keys. K passes through L1 in panels, so that it is read once
// from L2 however many tiles of query rows there are.
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
  static VRGA_HOST_DEVICE Operand query(const Query* p) { return in_register(load(p)); }
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
    __m512i x = _mm512_loadu_si512(p);
    __asm__("" : "+v"(x));  // see in_register
    return as_operand(x);
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

// Query rows are worked on in tiles of at most kQkRows, as equal as can be.
VRGA_HOST_DEVICE int tile_count(int rows) {
  return (rows + kQkRows - 1) / kQkRows;
}
VRGA_HOST_DEVICE int first_of_tile(int tile, int rows) {
  return rows * tile / tile_count(rows);
}

// Copies query rows into scratch, a tile of R rows as [query_stride / kStep, R, kStep], padded with
// zeros: the loop over the head dimension then walks through it with one pointer.
template <class T>
void pack_queries(const T* const* q, int rows, int64_t d, typename Dot<T>::Query* out) {
  constexpr int64_t kStep = Dot<T>::kStep;
  for (int tile = 0; tile < tile_count(rows); ++tile) {
    const int first = first_of_tile(tile, rows), last = first_of_tile(tile + 1, rows);
    for (int64_t c = 0; c < d; c += kStep) {
      const int64_t n = c + kStep < d ? kStep : d - c;
      for (int r = first; r < last; ++r, out += kStep) {
        if constexpr (std::is_same_v<T, typename Dot<T>::Query>) {
          memcpy(out, q[r] + c, sizeof(T) * static_cast<size_t>(n));
          memset(out + n, 0, sizeof(T) * static_cast<size_t>(kStep - n));
        } else {
          store(out, n == kStep ? load(q[r] + c) : load_partial(q[r] + c, static_cast<int>(n)));
        }
      }
    }
  }
}

constexpr int64_t kPanelBytes = 16384;

template <class T>
struct ScoreBlock {
  const typename Dot<T>::Query* q;  // from pack_queries
  const T* k;                       // [n, D], row stride stride_k
  float* scores;  // [rows, kBlockKeys]; a column beyond an odd n gets a copy of the last key's
  int rows, n;
  int64_t d, stride_k;
};

struct ScoreTile {
  int row;         // the first
  int begin, end;  // keys
};

// scores[r][j] = q_r . k_j for R rows and the keys of a panel.
template <class T, int R>
__attribute__((noinline)) void score_tile(const ScoreBlock<T>& block, const ScoreTile& tile,
                                          int fetches, Ahead& stream) {
  using D = Dot<T>;
  Ahead ahead = stream;
  const typename D::Query* const q = block.q + tile.row * query_stride<T>(block.d);
  const int64_t whole = block.d / D::kStep * D::kStep;
  const int rest = static_cast<int>(block.d - whole);
  for (int j = tile.begin; j < tile.end; j += 2) {
    const T* one = block.k + j * block.stride_k;
    const T* two = j + 1 < tile.end ? one + block.stride_k : one;
    Vec sum[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      sum[r][0] = sum[r][1] = zero();
    }
    const typename D::Query* at = q;
    const auto multiply = [&](typename D::Operand key_one, typename D::Operand key_two)
                              __attribute__((always_inline)) {
#pragma GCC unroll 8
                                for (int r = 0; r < R; ++r) {
                                  const auto query = D::query(at + r * D::kStep);
                                  sum[r][0] = D::step(query, key_one, sum[r][0]);
                                  sum[r][1] = D::step(query, key_two, sum[r][1]);
                                }
                                at += R * D::kStep;
                              };
    ahead.fetch(fetches);
    for (int64_t c = 0; c < whole; c += D::kStep) {
      multiply(D::key(one + c), D::key(two + c));
    }
    if (rest > 0) {
      multiply(D::key_partial(one + whole, rest), D::key_partial(two + whole, rest));
    }
    float* scores = block.scores + tile.row * kBlockKeys + j;
    float spare[2];
#pragma GCC unroll 4
    for (int r = 0; r < R; r += 2) {
      const int next = r + 1 < R ? r + 1 : r;
      reduce2x2(sum[r][0], sum[r][1], sum[next][0], sum[next][1], scores + r * kBlockKeys,
                r + 1 < R ? scores + next * kBlockKeys : spare);
    }
  }
  stream = ahead;
}

// `rows` is at most R: a chain of tests down to the tile of exactly that many rows.
template <class T, int R>
VRGA_HOST_DEVICE void score_tile_of(int rows, const ScoreBlock<T>& block, const ScoreTile& tile,
                                    int fetches, Ahead& ahead) {
  if (rows == R) {
    score_tile<T, R>(block, tile, fetches, ahead);
  } else if constexpr (R > 1) {
    score_tile_of<T, R - 1>(rows, block, tile, fetches, ahead);
  }
}

template <class T>
void score(const ScoreBlock<T>& block, int64_t fetches, Ahead& ahead) {
  const int tiles = tile_count(block.rows);
  const int64_t row_bytes = block.d * static_cast<int64_t>(sizeof(T));
  const int fits = static_cast<int>(kPanelBytes / row_bytes) & ~1;
  const int panel = fits < 2 ? 2 : fits;
  const int64_t steps = tiles * ceil_div(block.n, 2);
  const int per_step = pace(fetches, steps);
  for (int begin = 0; begin < block.n; begin += panel) {
    const int end = begin + panel < block.n ? begin + panel : block.n;
    for (int tile = 0; tile < tiles; ++tile) {
      const int first = first_of_tile(tile, block.rows);
      const int last = first_of_tile(tile + 1, block.rows);
      score_tile_of<T, kQkRows>(last - first, block, {first, begin, end}, per_step, ahead);
    }
  }
}

// Blocks whose scores matrix tiles compute: none for this element type.
template <class T>
struct Tiles {
  Tiles(const AttentionJob&, float*) {}
  void stage_queries(const T* const*, int) {}
  bool serve(int) const { return false; }
  void score(const ScoreBlock<T>&, int64_t, Ahead&) {}
};

}  // namespace vrga::cpu::VRGA_ISA
