// sums[r] += sum_j p[r][j] v_j for a tile of query rows and the keys of one block.
#pragma once

#include "cpu/kernels/ahead.h"

namespace vrga::cpu::VRGA_ISA {

// R rows x C vectors of the value dimension stay in registers while the keys stream by. `index`
// lists the keys (null: 0 .. count - 1). kPartial: the one vector is only `width` lanes wide.
template <class T, int R, int C, bool kIndexed, bool kPartial>
VRGA_HOST_DEVICE void value_tile(const T* v, int64_t stride_v, const int32_t* index, int count,
                                 int width, const float* p, float* sums, int64_t stride_sums,
                                 const Ahead& ahead) {
  static_assert(!kPartial || C == 1, "a partial tile is one vector");
  Vec sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      sum[r][c] = load(sums + r * stride_sums + c * kWidth);
    }
  }
  for (int t = 0; t < count; ++t) {
    const int64_t j = kIndexed ? index[t] : t;
    const T* row = v + j * stride_v;
    ahead.fetch(j);
    Vec value[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      value[c] = kPartial ? load_partial(row, width) : load(row + c * kWidth);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec weight = splat(p[r * kBlockKeys + j]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        sum[r][c] = fma(weight, value[c], sum[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      store(sums + r * stride_sums + c * kWidth, sum[r][c]);
    }
  }
}

template <class T, int R, bool kIndexed>
__attribute__((noinline)) void value_rows(const T* v, int64_t stride_v, const int32_t* index,
                                          int count, int64_t d_v, const float* p, float* sums,
                                          int64_t stride_sums, const Ahead& ahead) {
  int64_t c = 0;
  for (; c + kPvVectors * kWidth <= d_v; c += kPvVectors * kWidth) {
    value_tile<T, R, kPvVectors, kIndexed, false>(v + c, stride_v, index, count, 0, p, sums + c,
                                                  stride_sums, c == 0 ? ahead : Ahead{});
  }
  for (; c + kWidth <= d_v; c += kWidth) {
    value_tile<T, R, 1, kIndexed, false>(v + c, stride_v, index, count, 0, p, sums + c, stride_sums,
                                         c == 0 ? ahead : Ahead{});
  }
  if (c < d_v) {
    value_tile<T, R, 1, kIndexed, true>(v + c, stride_v, index, count, static_cast<int>(d_v - c), p,
                                        sums + c, stride_sums, c == 0 ? ahead : Ahead{});
  }
}

// `rows` is at most R: a chain of tests down to the tile of exactly that many rows.
template <class T, int R>
VRGA_HOST_DEVICE void value_tile_of(int rows, const T* v, int64_t stride_v, const int32_t* index,
                                    int count, int64_t d_v, const float* p, float* sums,
                                    int64_t stride_sums, const Ahead& ahead) {
  if (rows == R) {
    if (index == nullptr) {
      value_rows<T, R, false>(v, stride_v, index, count, d_v, p, sums, stride_sums, ahead);
    } else {
      value_rows<T, R, true>(v, stride_v, index, count, d_v, p, sums, stride_sums, ahead);
    }
  } else if constexpr (R > 1) {
    value_tile_of<T, R - 1>(rows, v, stride_v, index, count, d_v, p, sums, stride_sums, ahead);
  }
}

// All rows; `p` has row stride kBlockKeys.
template <class T>
void value_block(const T* v, int64_t stride_v, const int32_t* index, int count, int64_t d_v,
                 const float* p, int rows, float* sums, int64_t stride_sums, const Ahead& ahead) {
  // Even tiles: 8 rows are 4 + 4, not 7 + 1, where one row alone would wait for its loads.
  const int tiles = (rows + kPvRows - 1) / kPvRows;
  for (int tile = 0; tile < tiles; ++tile) {
    const int begin = rows * tile / tiles;
    const int end = rows * (tile + 1) / tiles;
    value_tile_of<T, kPvRows>(end - begin, v, stride_v, index, count, d_v, p + begin * kBlockKeys,
                              sums + begin * stride_sums, stride_sums, tile == 0 ? ahead : Ahead{});
  }
}

}  // namespace vrga::cpu::VRGA_ISA
