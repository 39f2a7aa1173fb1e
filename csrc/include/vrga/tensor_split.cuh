// Split kernel on tensor cores: bf16 and fp16, D in {64, 80, 96, 128, 256}.
//
// A block has four warps and walks over tiles of 64 keys; each warp owns 16 keys of every tile,
// with its own ring of shared-memory slots and its own softmax state, so that warps never wait for
// each other before the end. The query rows of one kv head (group x Sq) are the M = 16 rows of
// mma.m16n8k16. Up to eight rows use rows 0-7 only: rows 8-15 then carry w p where rows 0-7 carry
// p, and sum p v and sum w p v come out of one instruction. More rows take all 16, and a second
// tile for the weighted sums.
#pragma once

#include "vrga/tensor_tile.cuh"

namespace vrga::gpu {

// kDecode: output and statistics. Otherwise row statistics: no V, and the dot products of image
// keys.
template <class T, int kDim, int kRowSlots, bool kDecode>
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kTensorThreads, kDim <= 128 ? 2 : 1)
    tensor_split(const VRGA_GRID_CONSTANT SplitParams p) {
  using Shape = TensorShape<kDim, kRowSlots>;
  constexpr int kTiles = kRowSlots;  // accumulator tiles: p and w p share one if eight rows suffice
  const DecodeParams& decode = p.decode;
  const BlockPlace place = place_of(p, block_index());
  const int lane = lane_index(), warp = warp_index();

  VRGA_SHARED(shared);
  unsigned char* ring = shared + warp * Shape::kSlots * Shape::kSlotBytes;
  auto* mask_rows = reinterpret_cast<int64_t*>(shared + Shape::kRowsOffset);
  if (thread_index() < Shape::kRows) {
    const RowPlace row = row_of(decode, place, place.row_block * Shape::kRows + thread_index());
    mask_rows[thread_index()] = mask_offset(decode.mask, place.b, row);
  }
  const TileList list =
      list_tiles<kTensorTile, kTensorWarps, Shape::kRows>(p, place, shared + Shape::kMarksOffset);

  const auto* k = static_cast<const uint16_t*>(decode.k) + place.b * decode.stride_k_b +
                  place.h_kv * decode.stride_k_h;
  const auto* v = static_cast<const uint16_t*>(decode.v) + place.b * decode.stride_v_b +
                  place.h_kv * decode.stride_v_h;
  const auto s_kv = static_cast<int>(decode.s_kv);
  const auto first_key = [&](int i) { return list.tile(i) * kTensorTile + warp * kWarpKeys; };

  // The producer runs kSlots - 1 copies ahead of the consumer, through K and V of tile after tile.
  int load_tile = list.skip(0);
  bool load_value = false;
  const auto start_copy = [&](int slot) {
    if (load_tile < list.count) {
      unsigned char* target = ring + slot * Shape::kSlotBytes;
      if (load_value) {
        copy_keys<kDim>(target, v, decode.stride_v_s, first_key(load_tile), s_kv);
      } else {
        copy_keys<kDim>(target, k, decode.stride_k_s, first_key(load_tile), s_kv);
      }
      load_tile = !kDecode || load_value ? list.skip(load_tile + 1) : load_tile;
      load_value = kDecode && !load_value;
    }
    copy_async_commit();  // empty at the end, so that the count of groups stays right
  };
  VRGA_UNROLL
  for (int slot = 0; slot < Shape::kSlots - 1; ++slot) {
    start_copy(slot);
  }
  int slot = 0;
  // Waits for the oldest copy and starts the next one, into the slot that every lane has left.
  const auto next_slot = [&] {
    copy_async_wait<Shape::kSlots - 2>();
    sync_warp();
    start_copy(slot == 0 ? Shape::kSlots - 1 : slot - 1);
    unsigned char* current = ring + slot * Shape::kSlotBytes;
    slot = slot == Shape::kSlots - 1 ? 0 : slot + 1;
    return current;
  };

  QueryFragments<kDim, kRowSlots> query;
  query.load(p, place, shared + Shape::kQueryOffset);
  const ScoreScale scale = score_scale(decode);
  const bool has_mask = decode.mask.kind != MaskKind::kNone;
  int64_t result_row[kRowSlots];
  bool row_valid[kRowSlots];
  VRGA_UNROLL
  for (int s = 0; s < kRowSlots; ++s) {
    const RowPlace row = row_of(decode, place, place.row_block * Shape::kRows + lane / 4 + 8 * s);
    result_row[s] = row.row;
    row_valid[s] = row.valid;
  }
  const auto load_flags = [&](int i) -> uint8_t {
    return i < list.count && lane < kWarpKeys ? read_flags(decode, place.b, first_key(i) + lane)
                                              : 0;
  };

  SoftmaxState state[kRowSlots];
  bool has_weighted = false;
  float sums[kTiles][kDim / 8][4] = {};
  int i = list.skip(0);
  uint8_t next_flags = load_flags(i);
  while (i < list.count) {
    const int key_0 = first_key(i);
    i = list.skip(i + 1);
    const FlagBits flags = collect_flags(next_flags);
    next_flags = load_flags(i);
    KeyGroup<4> keys[kRowSlots];
    VRGA_UNROLL
    for (int s = 0; s < kRowSlots; ++s) {
      VRGA_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = key_0 + 2 * (lane % 4) + e % 2 + e / 2 * 8;
        keys[s].attended[e] = row_valid[s] && key < s_kv;
        keys[s].bias[e] = 0.0f;
        if (has_mask && keys[s].attended[e]) {
          const KeyMask mask = read_mask(decode.mask, mask_rows[lane / 4 + 8 * s], key);
          keys[s].attended[e] = mask.attended;
          keys[s].bias[e] = mask.bias_bits;
        }
      }
    }
    const uint32_t used = has_mask                    ? used_keys(keys)
                          : key_0 + kWarpKeys <= s_kv ? 0xffffu
                          : key_0 < s_kv              ? (1u << (s_kv - key_0)) - 1u
                                                      : 0u;

    const unsigned char* key_slot = next_slot();
    const bool weighted = p.weighted && (flags.image | flags.focus) != 0;
    if (used != 0) {
      float dots[2][4] = {};
      multiply_keys<T>(dots, key_slot, query);
      bool grew = false;
      float peak[kRowSlots];
      VRGA_UNROLL
      for (int s = 0; s < kRowSlots; ++s) {
        VRGA_UNROLL
        for (int e = 0; e < 4; ++e) {
          keys[s].x[e] = scale.prepare(dots[e / 2][2 * s + e % 2]);
        }
        peak[s] = fmaxf(state[s].m, max_across_lanes(keys[s].peak(scale), 1, 4));
        grew = grew || peak[s] > state[s].m;
      }
      if (any_in_warp(grew)) {
        VRGA_UNROLL
        for (int s = 0; s < kRowSlots; ++s) {
          const float factor = rebase<Bits>(state[s], peak[s]);
          VRGA_UNROLL
          for (int n = 0; kDecode && n < kDim / 8; ++n) {
            VRGA_UNROLL
            for (int c = 0; c < 2; ++c) {
              sums[0][n][2 * s + c] *= factor;
              // Rows 8-15: the weighted sums of the same row, or another row in both tiles.
              sums[kTiles - 1][n][kRowSlots == 1 ? 2 + c : 2 * s + c] *= factor;
            }
          }
        }
      }
      bool image[4];
      float weights[4];
      VRGA_UNROLL
      for (int e = 0; e < 4; ++e) {
        const uint8_t own = flags.flags(2 * (lane % 4) + e % 2 + e / 2 * 8);
        image[e] = (own & kFlagImage) != 0;
        weights[e] = weighted ? key_weight(decode.gate, own) : 1.0f;
      }
      VRGA_UNROLL
      for (int s = 0; s < kRowSlots; ++s) {
        if constexpr (!kDecode) {
          VRGA_UNROLL
          for (int e = 0; e < 4; ++e) {
            if (keys[s].attended[e] && image[e]) {
              p.image_attention[result_row[s] * decode.n_flags + key_0 + 2 * (lane % 4) + e % 2 +
                                e / 2 * 8] = keys[s].x[e];
            }
          }
        }
        add_keys<Bits>(state[s], keys[s], scale, image, flags.image != 0, weights, weighted);
      }
      has_weighted = has_weighted || weighted;
      if constexpr (kDecode) {
        uint32_t probabilities[kTiles][4];
        VRGA_UNROLL
        for (int half = 0; half < 2; ++half) {
          VRGA_UNROLL
          for (int s = 0; s < 2; ++s) {
            const KeyGroup<4>& own = keys[kRowSlots == 1 ? 0 : s];
            const float p0 = own.p[2 * half], p1 = own.p[2 * half + 1];
            const uint32_t plain = pack<T>(p0, p1);
            const uint32_t other = pack<T>(weights[2 * half] * p0, weights[2 * half + 1] * p1);
            probabilities[0][2 * half + s] = kRowSlots == 1 && s == 1 ? other : plain;
            if (kRowSlots == 2) {
              probabilities[kTiles - 1][2 * half + s] = other;
            }
          }
        }
        unsigned char* value_slot = next_slot();
        if (has_mask && used != 0xffffu) {
          clear_unused<kDim>(value_slot, used);
        }
        multiply_values<T, kDim, kTiles>(sums, value_slot, probabilities, p.weighted ? kTiles : 1);
      }
    } else if (kDecode) {
      next_slot();
    }
  }
  copy_async_wait<0>();
  allow_next_kernel();

  // Results. The ring is free once every warp is here.
  sync_block();
  auto& scratch = *reinterpret_cast<typename Shape::Scratch*>(shared + Shape::kSumBytes);
  auto* sum_rows = reinterpret_cast<float*>(shared);
  const auto spill_sums = [&](const float (&tile)[kDim / 8][4]) {
    VRGA_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      VRGA_UNROLL
      for (int c = 0; c < 4; ++c) {
        sum_rows[(warp * 16 + lane / 4 + c / 2 * 8) * Shape::kSumStride + 8 * n + 2 * (lane % 4) +
                 c % 2] = tile[n][c];
      }
    }
  };
  VRGA_UNROLL
  for (int s = 0; s < kRowSlots; ++s) {
    add_across_lanes(state[s], 1, 4);
    if (lane % 4 == 0) {
      scratch.states[warp * Shape::kRows + lane / 4 + 8 * s] = {state[s], has_weighted ? 1 : 0};
    }
  }
  if constexpr (kDecode) {
    spill_sums(sums[0]);
  }
  sync_block();
  combine_states<kTensorWarps, Shape::kRows>(p, place, scratch);
  if constexpr (kDecode) {
    sync_block();
    store_sums<T, kTensorWarps, Shape::kRows>(p, place, scratch, sum_rows, Shape::kSumStride, kDim,
                                              0, kRowSlots == 1 ? 2 : 1);
    if constexpr (kRowSlots == 2) {
      if (p.weighted) {
        sync_block();
        spill_sums(sums[1]);
        sync_block();
        store_sums<T, kTensorWarps, Shape::kRows>(p, place, scratch, sum_rows, Shape::kSumStride,
                                                  kDim, 1, 1);
      }
    }
  }
}

}  // namespace vrga::gpu
