// q.k of query rows and a block of keys. K passes through L1 in panels, so that it is read once
// from L2 however many tiles of query rows there are.
#pragma once

#include "cpu/kernels/even_tiles.h"
#include "cpu/kernels/prefetch.h"

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
  static VRGA_HOST_DEVICE Vec first(Operand a, Operand b) { return a * b; }
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
  static VRGA_HOST_DEVICE Vec first(Operand a, Operand b) { return step(a, b, zero()); }
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

// Copies query rows into scratch, a tile of R rows as [query_stride / kStep, R, kStep], padded with
// zeros: the loop over the head dimension then walks through it with one pointer.
template <class T>
void pack_queries(const T* const* q, int rows, int64_t d, typename Dot<T>::Query* out) {
  constexpr int64_t kStep = Dot<T>::kStep;
  const EvenTiles tiles(rows, kQkRows);
  for (int tile = 0; tile < tiles.count; ++tile) {
    const int first = tiles.begin(tile), last = tiles.end(tile);
    for (int64_t c = 0; c < d; c += kStep) {
      const int64_t n = c + kStep < d ? kStep : d - c;
      for (int r = first; r < last; ++r, out += kStep) {
        if constexpr (!std::is_same_v<T, typename Dot<T>::Query>) {
          store(out, n == kStep ? load(q[r] + c) : load_partial(q[r] + c, static_cast<int>(n)));
        } else if (n == kStep) {  // a size that the compiler knows: no call
          memcpy(out, q[r] + c, sizeof(T) * kStep);
        } else {
          memcpy(out, q[r] + c, sizeof(T) * static_cast<size_t>(n));
          memset(out + n, 0, sizeof(T) * static_cast<size_t>(kStep - n));
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
  float* scores;  // [rows, kBlockKeys]; columns beyond an n < 4 may get copies of the last key's
  int rows, n;
  int64_t d, stride_k;
};

struct ScoreTile {
  int row;         // the first
  int begin, end;  // keys
};

// Lane sums of R rows x kKeys keys -> scores[r][j], four at a time.
template <int R, int kKeys>
VRGA_HOST_DEVICE void store_scores(const Vec (&sum)[R][kKeys], float* scores) {
  static_assert(kKeys == 2 || kKeys == 4 || (kKeys == 3 && R == 4), "what qk_keys may return");
  if constexpr (kKeys == 4) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      store(scores + r * kBlockKeys, lane_sums(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; r += 2) {
      const int other = r + 1 < R ? r + 1 : r;
      const Sums sums = lane_sums(sum[r][0], sum[r][1], sum[other][0], sum[other][1]);
      store_first2(scores + r * kBlockKeys, sums);
      store_last2(scores + other * kBlockKeys, sums);
    }
    if constexpr (kKeys == 3) {
      scatter(scores + 2, kBlockKeys, lane_sums(sum[0][2], sum[1][2], sum[2][2], sum[3][2]));
    }
  }
}

// scores[r][j] = q_r . k_j for R rows and the keys of a panel.
template <class T, int R>
__attribute__((noinline)) void score_tile(const ScoreBlock<T>& block, const ScoreTile& tile,
                                          int fetches, Ahead& stream) {
  using D = Dot<T>;
  constexpr int kKeys = qk_keys(R);
  Ahead ahead = stream;
  const typename D::Query* const q = block.q + tile.row * query_stride<T>(block.d);
  const int64_t whole = block.d / D::kStep * D::kStep;
  const int rest = static_cast<int>(block.d - whole);
  // Fewer keys than a step has are all of a block: the last of them stands for the rest.
  int64_t offset[kKeys];
  for (int i = 0; i < kKeys; ++i) {
    offset[i] = (i < tile.end ? i : tile.end - 1) * block.stride_k;
  }
  const int last = tile.end > kKeys ? tile.end - kKeys : 0;
  for (int next = tile.begin; next < tile.end; next += kKeys) {
    const int j = next < last ? next : last;  // the last step may multiply some keys again
    const T* const base = block.k + j * block.stride_k;
    const T* key[kKeys];
    Vec sum[R][kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) {
      key[i] = base + offset[i];
    }
    const typename D::Query* at = q;
    // Of queries and keys, the fewer are held in registers while the others pass by.
    const auto multiply = [&](auto load_key, auto add) __attribute__((always_inline)) {
      typename D::Operand held[R < kKeys ? R : kKeys];
      if constexpr (R < kKeys) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          held[r] = D::query(at + r * D::kStep);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
          const auto passing = load_key(key[i]);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            sum[r][i] = add(held[r], passing, sum[r][i]);
          }
        }
      } else {
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
          held[i] = load_key(key[i]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const auto passing = D::query(at + r * D::kStep);
#pragma GCC unroll 8
          for (int i = 0; i < kKeys; ++i) {
            sum[r][i] = add(passing, held[i], sum[r][i]);
          }
        }
      }
      at += R * D::kStep;
    };
    ahead.fetch(fetches);
    int64_t c = 0;
    if (whole > 0) {
      multiply([c](const T* row) { return D::key(row + c); },
               [](auto a, auto b, const Vec&) { return D::first(a, b); });
      c += D::kStep;
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
          sum[r][i] = zero();
        }
      }
    }
#pragma GCC unroll 2
    for (; c < whole; c += D::kStep) {
      multiply([c](const T* row) { return D::key(row + c); }, D::step);
    }
    if (rest > 0) {
      multiply([whole, rest](const T* row) { return D::key_partial(row + whole, rest); }, D::step);
    }
    store_scores(sum, block.scores + tile.row * kBlockKeys + j);
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
  const EvenTiles tiles(block.rows, kQkRows);
  const int64_t row_bytes = block.d * static_cast<int64_t>(sizeof(T));
  const int fits = static_cast<int>(kPanelBytes / (row_bytes > 0 ? row_bytes : 1)) & ~3;
  const int panel = fits < 4 ? 4 : fits;
  int64_t steps = 0;
  for (int tile = 0; tile < tiles.count; ++tile) {
    steps += ceil_div(block.n, qk_keys(tiles.size(tile)));
  }
  const int per_step = pace(fetches, steps);
  for (int begin = 0; begin < block.n; begin += panel) {
    const int end = begin + panel < block.n ? begin + panel : block.n;
    for (int tile = 0; tile < tiles.count; ++tile) {
      score_tile_of<T, kQkRows>(tiles.size(tile), block, {tiles.begin(tile), begin, end}, per_step,
                                ahead);
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
