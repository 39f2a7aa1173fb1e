// Which keys a row attends to, their flags, and the tiles worth loading.
#pragma once

#include "vrga/primitives.cuh"
#include "vrga/split_params.h"

namespace vrga::gpu {

VRGA_DEVICE int64_t mask_offset(const MaskView& mask, int64_t b, const RowPlace& row) {
  return b * mask.stride_b + row.h * mask.stride_h + row.s * mask.stride_s;
}

// All rows of a sample have the same mask.
VRGA_DEVICE bool one_mask_row(const DecodeParams& p) {
  return p.mask.stride_h == 0 && (p.mask.stride_s == 0 || p.s_q == 1);
}

struct KeyMask {
  bool attended;
  float bias_bits;  // additive mask times log2(e)
};

VRGA_DEVICE KeyMask additive(float value, float lowest) {
  // A NaN is attended, and shows.
  return {!(value <= lowest), value * kLog2e};
}

// `offset`: mask_offset of the row.
VRGA_DEVICE KeyMask read_mask(const MaskView& mask, int64_t offset, int64_t key) {
  const int64_t i = offset + key * mask.stride_k;
  switch (mask.kind) {
    case MaskKind::kBool:
      return {static_cast<const uint8_t*>(mask.data)[i] != 0, 0.0f};
    case MaskKind::kFloat32:
      return additive(static_cast<const float*>(mask.data)[i], -3.40282346638528860e38f);
    case MaskKind::kBFloat16:
      return additive(widen(static_cast<const BFloat16*>(mask.data)[i]), -3.38953138925153547e38f);
    case MaskKind::kFloat16:
      return additive(widen(static_cast<const Float16*>(mask.data)[i]), -65504.0f);
    default:
      return {true, 0.0f};
  }
}

VRGA_DEVICE uint8_t read_flags(const DecodeParams& p, int64_t b, int64_t key) {
  return key < p.n_flags ? p.key_flags[b * p.stride_flags_b + key] : 0;
}

// The tiles of one split, in ascending order. A tile that no row of the block attends to is never
// loaded: the unused end of a static cache costs its mask, not its keys.
struct TileList {
  // Tiles beyond that many are always loaded. 128 more, and two blocks of D = 128 no longer fit
  // into the shared memory of a multiprocessor of sm_86, sm_89 and sm_120.
  static constexpr int kMarked = 640;

  const uint8_t* marks;  // shared [kMarked]
  bool marked;           // otherwise every tile is loaded
  int32_t first, step, count;

  VRGA_DEVICE_MEMBER int32_t skip(int32_t i) const {
    if (marked) {
      while (i < count && i < kMarked && marks[i] == 0) {
        ++i;
      }
    }
    return i;
  }
  VRGA_DEVICE_MEMBER int32_t tile(int32_t i) const { return first + i * step; }
};

// `marks`: shared memory. Ends with a block barrier if there is a mask.
template <int kTileKeys, int kWarps, int kRows>
VRGA_DEVICE TileList list_tiles(const SplitParams& p, const BlockPlace& place, uint8_t* marks) {
  const DecodeParams& decode = p.decode;
  const auto tiles = static_cast<int32_t>((decode.s_kv + kTileKeys - 1) / kTileKeys);
  const int32_t count = tiles > place.split ? (tiles - place.split + p.splits - 1) / p.splits : 0;
  if (decode.mask.kind == MaskKind::kNone) {
    return {marks, false, place.split, p.splits, count};
  }
  const TileList list{marks, true, place.split, p.splits, count};
  const bool shared_row = one_mask_row(decode);
  for (int i = warp_index(); i < count && i < TileList::kMarked; i += kWarps) {
    bool attended = false;
    for (int key = lane_index(); key < kTileKeys; key += kWarpSize) {
      const int64_t index = int64_t{list.tile(i)} * kTileKeys + key;
      for (int r = 0; r < (shared_row ? 1 : kRows) && index < decode.s_kv && !attended; ++r) {
        const RowPlace row = row_of(p, place, place.row_block * kRows + r);
        attended = row.valid &&
                   read_mask(decode.mask, mask_offset(decode.mask, place.b, row), index).attended;
      }
    }
    const bool any = any_in_warp(attended);
    if (lane_index() == 0) {
      marks[i] = any;
    }
  }
  sync_block();
  return list;
}

}  // namespace vrga::gpu
