// sums[r] += sum_j p[r][j] v_j for the query rows and the keys of one block.
#pragma once

#include "cpu/kernels/even_tiles.h"
#include "cpu/kernels/keys.h"
#include "cpu/kernels/prefetch.h"

namespace vrga::cpu::VRGA_ISA {

constexpr int kFetchKeys = 8;  // keys between two requests for memory

template <class T>
struct ValueBlock {
  const T* v;            // [kBlockKeys, Dv], row stride stride_v
  const int32_t* index;  // [count] keys to sum; null: 0 ... count - 1
  KeySet keys;           // the same as a set
  int count;
  const float* p;  // [rows, kBlockKeys]
  float* sums;     // [rows, stride_sums]
  int rows;
  int64_t d_v, stride_v, stride_sums;
};

// Query rows [first, first + R) x C vectors of the value dimension from column c on stay in
// registers while the keys stream by. kPartial: the one vector is only `width` lanes wide.
template <class T, int R, int C, bool kIndexed, bool kPartial>
VRGA_HOST_DEVICE void value_tile(const ValueBlock<T>& block, int first, int64_t c, int width,
                                 int fetches, Ahead& stream) {
  static_assert(!kPartial || C == 1, "a partial tile is one vector");
  Ahead ahead = stream;
  float* sums = block.sums + first * block.stride_sums + c;
  const float* p = block.p + first * kBlockKeys;
  Vec sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) {
      sum[r][i] = load(sums + r * block.stride_sums + i * kWidth);
    }
  }
  const int count = block.count;
  for (int t = 0; t < count; ++t) {
    const int64_t j = kIndexed ? block.index[t] : t;
    const T* row = block.v + j * block.stride_v + c;
    if (t % kFetchKeys == 0) {
      ahead.fetch(fetches);
    }
    const auto value = [&](int i) {
      return kPartial ? load_partial(row, width) : load(row + i * kWidth);
    };
    const auto weight = [&](int r) { return splat(p[r * kBlockKeys + j]); };
    // Of weights and values, the fewer are held in registers while the others pass by.
    Vec held[R < C ? R : C];
    if constexpr (R < C) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        held[r] = weight(r);
      }
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) {
        const Vec passing = in_register(value(i));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          sum[r][i] = fma(held[r], passing, sum[r][i]);
        }
      }
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) {
        held[i] = value(i);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec passing = weight(r);
#pragma GCC unroll 4
        for (int i = 0; i < C; ++i) {
          sum[r][i] = fma(passing, held[i], sum[r][i]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) {
      store(sums + r * block.stride_sums + i * kWidth, sum[r][i]);
    }
  }
  stream = ahead;
}

// `vectors` is at most C: a chain of tests down to the tile of exactly that many.
template <class T, int R, int C, bool kIndexed>
VRGA_HOST_DEVICE void value_tile_of(int vectors, const ValueBlock<T>& block, int first, int64_t c,
                                    int fetches, Ahead& ahead) {
  if (vectors == C) {
    value_tile<T, R, C, kIndexed, false>(block, first, c, 0, fetches, ahead);
  } else if constexpr (C > 1) {
    value_tile_of<T, R, C - 1, kIndexed>(vectors, block, first, c, fetches, ahead);
  }
}

// R rows over the whole value dimension.
template <class T, int R, bool kIndexed>
__attribute__((noinline)) void value_rows(const ValueBlock<T>& block, int first, int fetches,
                                          Ahead& ahead) {
  constexpr int kMost = pv_vectors(R);
  const EvenTiles vectors(static_cast<int>(block.d_v / kWidth), kMost);
  for (int tile = 0; tile < vectors.count; ++tile) {
    value_tile_of<T, R, kMost, kIndexed>(vectors.size(tile), block, first,
                                         vectors.begin(tile) * kWidth, fetches, ahead);
  }
  const int64_t c = int64_t{vectors.n} * kWidth;
  if (c < block.d_v) {
    const int width = static_cast<int>(block.d_v - c);
    value_tile<T, R, 1, kIndexed, true>(block, first, c, width, fetches, ahead);
  }
}

// `rows` is at most R: a chain of tests down to the tile of exactly that many rows.
template <class T, int R>
VRGA_HOST_DEVICE void value_rows_of(int rows, const ValueBlock<T>& block, int first, int fetches,
                                    Ahead& ahead) {
  if (rows == R) {
    if (block.index == nullptr) {
      value_rows<T, R, false>(block, first, fetches, ahead);
    } else {
      value_rows<T, R, true>(block, first, fetches, ahead);
    }
  } else if constexpr (R > 1) {
    value_rows_of<T, R - 1>(rows, block, first, fetches, ahead);
  }
}

// How many steps the innermost loops take for n keys: the pace of what is fetched meanwhile.
template <class T>
int64_t value_steps(int rows, int n, int64_t d_v) {
  const EvenTiles tiles(rows, kPvRows);
  int64_t passes = 0;
  for (int tile = 0; tile < tiles.count; ++tile) {
    passes += ceil_div(d_v / kWidth, pv_vectors(tiles.size(tile))) + (d_v % kWidth > 0);
  }
  return passes * ceil_div(n, kFetchKeys);
}

// What a task does to its sums [rows, stride_sums] before they are merged: nothing here.
template <class T>
void finish_sums(float*, int, int64_t) {}

template <class T>
void accumulate(const ValueBlock<T>& block, int fetches, Ahead& ahead) {
  const EvenTiles tiles(block.rows, kPvRows);
  for (int tile = 0; tile < tiles.count; ++tile) {
    value_rows_of<T, kPvRows>(tiles.size(tile), block, tiles.begin(tile), fetches, ahead);
  }
}

}  // namespace vrga::cpu::VRGA_ISA
