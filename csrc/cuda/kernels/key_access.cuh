// Which keys a row attends to, their flags, and the tiles worth loading.
#pragma once

#include "cuda/kernels/primitives.cuh"
#include "cuda/kernels/split_params.h"

namespace vrga::gpu {

VRGA_DEVICE int64_t mask_offset(const MaskView& mask, int64_t b, const RowPlace& row) {
  return b * mask.stride_b + row.h * mask.stride_h + row.s * mask.stride_s;
}

// All rows of a sample have the same mask.
VRGA_DEVICE bool one_mask_row(const AttentionParams& p) {
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

VRGA_DEVICE uint8_t read_flags(const AttentionParams& p, int64_t b, int64_t key) {
  return key < p.n_flags ? p.key_flags[b * p.stride_flags_b + key] : 0;
}

// The tiles of one split, in ascending order. A tile that no row of the block attends to is not
// loaded: the unused end of a static cache costs its mask, and hardly any of its keys.
struct TileList {
  // Tiles beyond that many are always loaded. A few more, and two blocks of D = 128 no longer fit
  // into the shared memory of a multiprocessor of sm_86, sm_89 and sm_120.
  static constexpr int kMarked = 624;

  uint8_t* marks;  // shared [kMarked], by mark_tiles
  bool marked;     // otherwise every tile is loaded
  int32_t first, step, count;

  VRGA_DEVICE_MEMBER TileList(const SplitParams& p, const BlockPlace& place, int32_t tile_keys,
                              uint8_t* shared_marks)
      : marks(shared_marks),
        marked(p.attention.mask.kind != MaskKind::kNone),
        first(place.split),
        step(p.splits) {
    const auto tiles = static_cast<int32_t>((p.attention.s_kv + tile_keys - 1) / tile_keys);
    count = tiles > first ? p.by_splits.quotient(tiles - first + step - 1) : 0;
  }

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

struct alignas(16) MaskBytes {
  uint32_t words[4];
};

// Whether a row attends to any of the kTileKeys keys whose mask begins at `mask`, or to one of the
// 16 around them: whole words are read, wherever they begin.
template <int kTileKeys>
VRGA_DEVICE bool attends_near(const uint8_t* mask) {
  const auto* source =
      reinterpret_cast<const MaskBytes*>(mask - reinterpret_cast<uintptr_t>(mask) % 16);
  uint32_t any = 0;
  VRGA_UNROLL
  for (int i = 0; i <= kTileKeys / 16; ++i) {
    const MaskBytes bytes = source[i];
    any |= bytes.words[0] | bytes.words[1] | bytes.words[2] | bytes.words[3];
  }
  return any != 0;
}

// Ends with a block barrier if there is a mask.
template <int kTileKeys, int kWarps, int kRows>
VRGA_DEVICE void mark_tiles(const SplitParams& p, const BlockPlace& place, const TileList& list) {
  if (!list.marked) {
    return;
  }
  const MaskView& mask = p.attention.mask;
  const int32_t end = list.count < TileList::kMarked ? list.count : TileList::kMarked;
  const int rows = one_mask_row(p.attention) ? 1 : kRows;
  const auto row_at = [&](int r) { return row_of(p, place, place.row_block * kRows + r); };
  if (mask.kind == MaskKind::kBool && mask.stride_k == 1) {
    // A tile per lane: all of a warp's loads are under way together.
    for (int32_t i = thread_index(); i < end; i += kWarps * kWarpSize) {
      const int64_t key = int64_t{list.tile(i)} * kTileKeys;
      // Marked unread where what attends_near reads may not be the row's.
      bool attended = key == 0 || key + kTileKeys + 16 > p.attention.s_kv;
      for (int r = 0; r < rows && !attended; ++r) {
        const RowPlace row = row_at(r);
        attended = row.valid && attends_near<kTileKeys>(static_cast<const uint8_t*>(mask.data) +
                                                        mask_offset(mask, place.b, row) + key);
      }
      list.marks[i] = attended;
    }
  } else {
    for (int32_t i = warp_index(); i < end; i += kWarps) {
      bool attended = false;
      for (int part = lane_index(); part < kTileKeys; part += kWarpSize) {
        const int64_t key = int64_t{list.tile(i)} * kTileKeys + part;
        for (int r = 0; r < rows && key < p.attention.s_kv && !attended; ++r) {
          const RowPlace row = row_at(r);
          attended = row.valid && read_mask(mask, mask_offset(mask, place.b, row), key).attended;
        }
      }
      const bool any = any_in_warp(attended);
      if (lane_index() == 0) {
        list.marks[i] = any;
      }
    }
  }
  sync_block();
}

}  // namespace vrga::gpu
