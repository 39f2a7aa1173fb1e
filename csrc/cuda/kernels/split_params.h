// What a split kernel hands to the merge kernel, and how blocks are numbered.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/params.h"
#include "core/softmax_state.h"

namespace vrga::gpu {

// SoftmaxState of a row whose probabilities are multiplied with V in 16 bits. The sums that its
// output is divided by, z_output and z_weighted, are those of the rounded p and w p: so the
// rounding of a dominant key cancels. Statistics come from the exact ones.
struct RowState : SoftmaxState {
  float z_output = 0.0f;  // sum of p
};

template <class Unit>
VRGA_HOST_DEVICE float rebase(RowState& state, float m_new) {
  const float factor = rebase<Unit>(static_cast<SoftmaxState&>(state), m_new);
  state.z_output *= factor;
  return factor;
}
VRGA_HOST_DEVICE void add(RowState& left, const RowState& right) {
  vrga::add(static_cast<SoftmaxState&>(left), static_cast<const SoftmaxState&>(right));
  left.z_output += right.z_output;
}

// A row in one split.
struct alignas(16) PartialState {
  RowState row;
};

// n / value for 0 <= n < 2^31 without a division. With l = ceil(log2 value), the multiplier
// 2^(31 + l) / value is rounded up, by less than 2^l / value: too little to reach the next
// quotient.
struct Divisor {
  uint32_t value = 1, multiplier = 1u << 31, shift = 31;

  Divisor() = default;
  explicit Divisor(int64_t divisor) : value(static_cast<uint32_t>(divisor)) {
    while ((int64_t{1} << (shift - 31)) < divisor) {
      ++shift;
    }
    const uint64_t power = uint64_t{1} << shift;
    multiplier = static_cast<uint32_t>((power + value - 1) / value);
  }
  VRGA_HOST_DEVICE int32_t quotient(int32_t n) const {
    return static_cast<int32_t>(uint64_t{static_cast<uint32_t>(n)} * multiplier >> shift);
  }
  VRGA_HOST_DEVICE int32_t remainder(int32_t n, int32_t quotient) const {
    return n - quotient * static_cast<int32_t>(value);
  }
};

// Which sums a split hands on for a row.
enum class Planes : int32_t {
  kPlain,   // sum p v: no key has w != 1
  kByGate,  // a static gate: sum w p v where it is open, else sum p v
  kBoth,    // sum p v, sum w p v
};

// One block works on a few query rows of one (batch, kv head) and on the key tiles split, split +
// splits, split + 2 splits, ...: with a key range that is masked beyond the length of a growing
// cache, every split still gets its share.
struct SplitParams {
  AttentionParams attention;

  // Row r of [B, Hq, Sq] is (b * Hq + h) * Sq + s.
  float* partial_sums = nullptr;           // [B * Hq * Sq, splits, stored_planes, pitch]
  PartialState* partial_states = nullptr;  // [B * Hq * Sq, splits]

  int32_t splits = 1;         // 1: a decode kernel writes the result itself
  int32_t group = 1;          // query heads per kv head
  int32_t pitch = 0;          // d_v rounded up to a multiple of 4, at least 4; row statistics: 0
  int32_t stored_planes = 1;  // 2 with Planes::kBoth
  Planes planes = Planes::kPlain;
  Divisor by_row_blocks;  // blocks for the group * Sq rows of a kv head
  Divisor by_splits, by_h_kv, by_h_q, by_s_q;
  Divisor by_chunks;  // of merge_row_statistics, per row
};

// Of a tensor kernel: each warp owns 16 keys of every tile. Eight warps in one block took longer
// over a short key range.
constexpr int kWarpKeys = 16;
constexpr int kTensorWarps = 4;
constexpr int kTensorTile = kTensorWarps * kWarpKeys;

// Of a plain kernel: one key per thread.
constexpr int kPlainWarps = 4;
constexpr int kPlainTile = kPlainWarps * 32;

struct BlockPlace {
  int32_t b, h_kv, split, row_block;
};

// Row blocks vary fastest: blocks that read the same keys run at the same time and share the cache.
// Grids have fewer than 2^31 blocks.
VRGA_HOST_DEVICE BlockPlace place_of(const SplitParams& p, int32_t block) {
  BlockPlace place;
  const int32_t split = p.by_row_blocks.quotient(block), head = p.by_splits.quotient(split);
  place.row_block = p.by_row_blocks.remainder(block, split);
  place.split = p.by_splits.remainder(split, head);
  place.b = p.by_h_kv.quotient(head);
  place.h_kv = p.by_h_kv.remainder(head, place.b);
  return place;
}

// Of fewer than 2^31 rows of [B, Hq, Sq], and of partial results.
struct RowPlace {
  int32_t h, s, row;  // query head, query position, row
  bool valid;
};

// `index` counts the group * Sq rows of a kv head.
VRGA_HOST_DEVICE RowPlace row_of(const SplitParams& p, const BlockPlace& place, int32_t index) {
  const int32_t head = p.by_s_q.quotient(index);
  RowPlace row;
  row.valid = head < p.group;
  row.h = place.h_kv * p.group + (row.valid ? head : 0);
  row.s = row.valid ? p.by_s_q.remainder(index, head) : 0;
  row.row = (place.b * static_cast<int32_t>(p.attention.h_q) + row.h) *
                static_cast<int32_t>(p.attention.s_q) +
            row.s;
  return row;
}

// `head`: b * Hq + h.
VRGA_HOST_DEVICE bool head_enabled(const bool* heads, int64_t head) {
  return heads == nullptr || heads[head];
}

// Where among the stored sums of a row plane 0 (sum p v) or 1 (sum w p v) lies; -1: nowhere.
VRGA_HOST_DEVICE int32_t stored_plane(Planes planes, bool enabled, int32_t plane) {
  if (planes == Planes::kBoth) {
    return plane;
  }
  return plane == (planes == Planes::kByGate && enabled ? 1 : 0) ? 0 : -1;
}

}  // namespace vrga::gpu
