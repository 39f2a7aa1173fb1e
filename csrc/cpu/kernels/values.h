// sums[r] += sum_j p[r][j] v_j for the query rows and the keys of one block.
#pragma once

#include "cpu/kernels/ahead.h"
#include "cpu/kernels/keys.h"

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
    Vec value[C];
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) {
      value[i] = kPartial ? load_partial(row, width) : load(row + i * kWidth);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec weight = splat(p[r * kBlockKeys + j]);
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) {
        sum[r][i] = fma(weight, value[i], sum[r][i]);
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

// R rows over the whole value dimension.
template <class T, int R, bool kIndexed>
__attribute__((noinline)) void value_rows(const ValueBlock<T>& block, int first, int fetches,
                                          Ahead& ahead) {
  constexpr int64_t kWide = kPvVectors * kWidth;
  const int64_t wide_end = block.d_v / kWide * kWide, single_end = block.d_v / kWidth * kWidth;
  int64_t c = 0;
  for (; c < wide_end; c += kWide) {
    value_tile<T, R, kPvVectors, kIndexed, false>(block, first, c, 0, fetches, ahead);
  }
  for (; c < single_end; c += kWidth) {
    value_tile<T, R, 1, kIndexed, false>(block, first, c, 0, fetches, ahead);
  }
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
  constexpr int64_t kWide = kPvVectors * kWidth;
  const int64_t tiles = ceil_div(rows, kPvRows) * (d_v / kWide + ceil_div(d_v % kWide, kWidth));
  return tiles * ceil_div(n, kFetchKeys);
}

// What a task does to its sums [rows, stride_sums] before they are merged: nothing here.
template <class T>
void finish_sums(float*, int, int64_t) {}

template <class T>
void accumulate(const ValueBlock<T>& block, int fetches, Ahead& ahead) {
  // Even tiles: 8 rows are 4 + 4, not 7 + 1, where one row alone would wait for its loads.
  const int tiles = (block.rows + kPvRows - 1) / kPvRows;
  for (int tile = 0; tile < tiles; ++tile) {
    const int first = block.rows * tile / tiles;
    const int last = block.rows * (tile + 1) / tiles;
    value_rows_of<T, kPvRows>(last - first, block, first, fetches, ahead);
  }
}

}  // namespace vrga::cpu::VRGA_ISA
