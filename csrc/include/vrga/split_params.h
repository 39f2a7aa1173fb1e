// What a split kernel hands to the merge kernel, and how blocks are numbered.
#pragma once

#include <cstdint>

#include "vrga/macros.h"
#include "vrga/params.h"
#include "vrga/softmax_state.h"

namespace vrga::gpu {

// Of one row in one split. 32 bytes.
struct PartialState {
  SoftmaxState softmax;
  int32_t has_weighted;  // the split saw a key that may have w != 1; else its two sums are equal
};

// One block works on `rows_per_block` query rows of one (batch, kv head) and on the key tiles
// split, split + splits, split + 2 splits, ...: with a key range that is masked beyond the length
// of a growing cache, every split still gets its share.
struct SplitParams {
  DecodeParams decode;  // row statistics: s_q = 1, and v, out, statistics are null

  // Row r of [B, Hq, Sq] is (b * Hq + h) * Sq + s.
  float* partial_sums = nullptr;           // [B * Hq * Sq, splits, 2, pitch]: sum p v, sum w p v
  PartialState* partial_states = nullptr;  // [B * Hq * Sq, splits]
  float* image_attention = nullptr;  // [B * Hq, N]; row statistics: dot products, then attention

  int32_t splits = 1;      // 1: a decode kernel writes the result itself
  int32_t row_blocks = 1;  // blocks for the group * Sq rows of a kv head
  int32_t pitch = 0;       // d_v rounded up to a multiple of 4
  bool weighted = false;   // some key may have w != 1
};

struct BlockPlace {
  int32_t b, h_kv, split, row_block;
};

// Row blocks vary fastest: blocks that read the same keys run at the same time and share the cache.
// Grids have fewer than 2^31 blocks; 64-bit divisions would take longer than a short key range.
VRGA_HOST_DEVICE BlockPlace place_of(const SplitParams& p, int32_t block) {
  const auto h_kv = static_cast<int32_t>(p.decode.h_kv);
  BlockPlace place;
  place.row_block = block % p.row_blocks;
  block /= p.row_blocks;
  place.split = block % p.splits;
  block /= p.splits;
  place.h_kv = block % h_kv;
  place.b = block / h_kv;
  return place;
}

struct RowPlace {
  int64_t h, s, row;  // query head, query position, row of [B, Hq, Sq]
  bool valid;
};

// `index` counts the group * Sq rows of a kv head.
VRGA_HOST_DEVICE RowPlace row_of(const DecodeParams& p, const BlockPlace& place, int32_t index) {
  const int32_t group = static_cast<int32_t>(p.h_q) / static_cast<int32_t>(p.h_kv);
  const auto rows = static_cast<int32_t>(p.s_q);
  RowPlace row;
  row.valid = index < group * rows;
  const int32_t head = !row.valid ? 0 : rows == 1 ? index : index / rows;
  row.h = int64_t{place.h_kv} * group + head;
  row.s = row.valid ? index - head * rows : 0;
  row.row = (place.b * p.h_q + row.h) * p.s_q + row.s;
  return row;
}

}  // namespace vrga::gpu
