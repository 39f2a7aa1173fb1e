// Split kernel on tensor cores: bf16 and fp16, D in {64, 80, 96, 128, 256}.
//
// A block has four warps and walks over tiles of 64 keys; each warp owns 16 keys of every tile,
// with its own ring of shared-memory slots and its own softmax state, so that warps never wait for
// each other before the end. The query rows of one kv head (group x Sq) are the M = 16 rows of
// mma.m16n8k16. Up to eight rows use rows 0-7 only: rows 8-15 then carry w p where rows 0-7 carry
// p, and sum p v and sum w p v come out of one instruction. More rows take all 16, and a second
// tile for the weighted sums.
#pragma once

#include <type_traits>

#include "cuda/kernels/tensor_keys.cuh"
#include "cuda/kernels/tensor_tile.cuh"

namespace vrga::gpu {

// How far in bits a score may exceed the reference m of its row before m moves: the sums are scaled
// a few times at the start and hardly ever after that. p <= 2^8 then.
constexpr float kPeakSlack = 8.0f;

// kDecode: output and statistics. Otherwise row statistics: no V, and the dot products of image
// keys.
// Grid: B * Hkv * splits * row blocks. Block: kTensorThreads. Dynamic shared memory:
// TensorShape<kDim, kRowSlots>::kSharedBytes.
template <class T, int kDim, int kRowSlots, bool kDecode>
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kTensorThreads, kDim <= 128 ? 2 : 1)
    tensor_split(const VRGA_GRID_CONSTANT SplitParams p) {
  using Shape = TensorShape<kDim, kRowSlots>;
  constexpr int kTiles = kRowSlots;  // accumulator tiles: p and w p share one if eight rows suffice
  const AttentionParams& attention = p.attention;
  const BlockPlace place = place_of(p, block_index());
  const int lane = lane_index(), warp = warp_index();

  VRGA_SHARED(shared);
  const int ring = Shape::kRingOffset + warp * Shape::kSlots * Shape::kSlotBytes;
  auto* mask_rows = reinterpret_cast<int64_t*>(shared + Shape::kRowsOffset);
  const auto k = key_rows<uint16_t>(attention, place.b, place.h_kv);
  const auto v = value_rows<uint16_t>(attention, place.b, place.h_kv);
  const auto s_kv = static_cast<int>(attention.s_kv);
  const CopyLane<kDim> copy;
  const TileList list(p, place, kTensorTile, shared + Shape::kMarksOffset);
  const KeyReader reader(attention, place.b);
  if (reader.mask_per_row && thread_index() < Shape::kRows) {
    const RowPlace row = row_of(p, place, place.row_block * Shape::kRows + thread_index());
    mask_rows[thread_index()] = mask_offset(attention.mask, place.b, row);
  }
  wait_for_previous_kernel();
  allow_next_kernel();
  const auto first_key = [&](int i) { return list.tile(i) * kTensorTile + warp * kWarpKeys; };

  // The producer runs kSlots - 1 copies ahead of the consumer, through K and V of tile after tile.
  int load_tile = 0;
  bool load_value = false;
  const auto start_copy = [&](int slot) {
    if (load_tile < list.count) {
      unsigned char* target = shared + ring + slot * Shape::kSlotBytes;
      if (load_value) {
        copy.start(target, v, first_key(load_tile), s_kv);
      } else {
        copy.start(target, k, first_key(load_tile), s_kv);
      }
      load_tile = !kDecode || load_value ? list.skip(load_tile + 1) : load_tile;
      load_value = kDecode && !load_value;
    }
    copy_async_commit();  // empty at the end, so that the count of groups stays right
  };
  if (!kDecode) {
    mark_tiles<kTensorTile, kTensorWarps, Shape::kRows>(p, place, list);
    load_tile = list.skip(0);
  }
  VRGA_NO_UNROLL
  for (int slot = 0; slot < Shape::kSlots - 1; ++slot) {
    start_copy(slot);
    if (kDecode && slot == 0) {  // the mask is read while the first keys are under way
      mark_tiles<kTensorTile, kTensorWarps, Shape::kRows>(p, place, list);
      load_tile = list.skip(0);
      load_value = load_value && load_tile == 0;  // else the first keys are copied in vain
    }
  }
  int slot = 0;
  // Waits for the oldest copy and starts the next one, into the slot that every lane has left.
  const auto next_slot = [&] {
    copy_async_wait<Shape::kSlots - 2>();
    sync_warp();
    start_copy(slot == 0 ? Shape::kSlots - 1 : slot - 1);
    const int current = ring + slot * Shape::kSlotBytes;
    slot = slot == Shape::kSlots - 1 ? 0 : slot + 1;
    return current;
  };

  QueryFragments<kDim, kRowSlots> query;
  query.load(p, place, shared);
  const ScoreScale scale = score_scale(attention);
  int result_row[kRowSlots];
  bool row_valid[kRowSlots];
  VRGA_UNROLL
  for (int s = 0; s < kRowSlots; ++s) {
    const RowPlace row = row_of(p, place, place.row_block * Shape::kRows + lane / 4 + 8 * s);
    result_row[s] = row.row;
    row_valid[s] = row.valid;
  }
  // Keys 2t, 2t + 1, 2t + 8, 2t + 9 of lanes 4g + t.
  const auto own_key = [&](int e) { return 2 * (lane % 4) + e % 2 + e / 2 * 8; };

  RowState state[kRowSlots];
  float sums[kTiles][kDim / 8][4] = {};
  KeyGroup<4> keys[kRowSlots];
  uint32_t probabilities[kTiles][4];

  // Scores become probabilities and statistics. Full: every row attends to all 16 keys, without a
  // bias. Weighted: some key may have w != 1.
  const auto update = [&](auto full, auto weighted, const KeyBits& bits, int key_0) {
    constexpr bool kFull = decltype(full)::value, kWeighted = decltype(weighted)::value;
    bool grew = false;
    float peak[kRowSlots];
    VRGA_UNROLL
    for (int s = 0; s < kRowSlots; ++s) {
      VRGA_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (kFull) {
          keys[s].attended[e] = true;
          keys[s].bias[e] = 0.0f;
        }
      }
      peak[s] = keys[s].peak(scale);
      grew = grew || peak[s] > state[s].m + kPeakSlack;
    }
    if (any_in_warp(grew)) {
      VRGA_UNROLL
      for (int s = 0; s < kRowSlots; ++s) {
        const float factor =
            rebase<Bits>(state[s], fmaxf(state[s].m, max_across_lanes(peak[s], 1, 4)));
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
      image[e] = (bits.image >> own_key(e) & 1u) != 0;
      weights[e] = kWeighted ? bits.weight(attention.gate, own_key(e)) : 1.0f;
    }
    VRGA_UNROLL
    for (int s = 0; s < kRowSlots; ++s) {
      if constexpr (!kDecode) {
        VRGA_UNROLL
        for (int e = 0; e < 4; ++e) {
          if (row_valid[s] && keys[s].attended[e] && image[e]) {
            p.attention
                .image_attention[int64_t{result_row[s]} * attention.n_flags + key_0 + own_key(e)] =
                keys[s].x[e];
          }
        }
      }
      add_keys<Bits>(state[s], keys[s], scale, image, bits.image != 0);
    }
    VRGA_UNROLL
    for (int half = 0; kDecode && half < 2; ++half) {
      VRGA_UNROLL
      for (int s = 0; s < kRowSlots; ++s) {
        const float p0 = keys[s].p[2 * half], p1 = keys[s].p[2 * half + 1];
        const uint32_t plain = pack<T>(p0, p1);
        state[s].z_output += unpacked_sum<T>(plain);
        uint32_t other = plain;
        if (kWeighted) {
          other = pack<T>(weights[2 * half] * p0, weights[2 * half + 1] * p1);
        }
        state[s].z_weighted += unpacked_sum<T>(other);
        probabilities[0][2 * half + s] = plain;
        probabilities[kTiles - 1][2 * half + (kRowSlots == 1 ? 1 : s)] = other;
      }
    }
  };

  int i = list.skip(0);
  const auto read_ahead = [&] { return i < list.count ? reader.read(first_key(i)) : RawKey{}; };
  RawKey ahead = read_ahead();
  auto* enabled = reinterpret_cast<bool*>(shared + Shape::kEnabledOffset);
  find_enabled<Shape::kRows>(p, place, enabled);
  if (kDecode && i > 0) {
    next_slot();  // the first keys, which nobody attends to
  }
  while (i < list.count) {
    const int key_0 = first_key(i);
    i = list.skip(i + 1);
    const KeyBits bits(ahead);
    ahead = read_ahead();
    uint32_t used = bits.attended;
    const bool full = used == kAllKeys && !reader.mask_per_row;
    if (!full) {
      VRGA_UNROLL
      for (int s = 0; s < kRowSlots; ++s) {
        VRGA_UNROLL
        for (int e = 0; e < 4; ++e) {
          keys[s].attended[e] = (bits.attended >> own_key(e) & 1u) != 0;
          keys[s].bias[e] = 0.0f;
          if (reader.mask_per_row && keys[s].attended[e]) {
            const KeyMask mask =
                read_mask(attention.mask, mask_rows[lane / 4 + 8 * s], key_0 + own_key(e));
            keys[s].attended[e] = row_valid[s] && mask.attended;
            keys[s].bias[e] = mask.bias_bits;
          }
        }
      }
      used = reader.mask_per_row ? used_keys(keys) : used;
    }

    const int key_slot = next_slot();
    if (used == 0) {
      if (kDecode) {
        next_slot();
      }
      continue;
    }
    float dots[2][4] = {};
    multiply_keys<T>(dots, shared, key_slot, query);
    VRGA_UNROLL
    for (int s = 0; s < kRowSlots; ++s) {
      VRGA_UNROLL
      for (int e = 0; e < 4; ++e) {
        keys[s].x[e] = scale.prepare(dots[e / 2][2 * s + e % 2]);
      }
    }
    const bool weighted =
        kDecode && p.planes != Planes::kPlain && bits.weighted(attention.gate) != 0;
    if (!full) {
      update(std::false_type{}, std::bool_constant<kDecode>{}, bits, key_0);
    } else if (weighted) {
      update(std::true_type{}, std::bool_constant<kDecode>{}, bits, key_0);
    } else {
      update(std::true_type{}, std::false_type{}, bits, key_0);
    }
    if constexpr (kDecode) {
      const int value_slot = next_slot();
      if (used != kAllKeys) {
        clear_unused<kDim>(shared + value_slot, used);
      }
      multiply_values<T, kDim, kTiles>(sums, shared, value_slot, probabilities,
                                       p.planes == Planes::kPlain ? 1 : kTiles);
    }
  }
  copy_async_wait<0>();

  // Results: the states and sums of all warps for one reference per row.
  auto* peaks = reinterpret_cast<float*>(shared + Shape::kPeaksOffset);
  VRGA_UNROLL
  for (int s = 0; s < kRowSlots; ++s) {
    if (lane % 4 == 0) {
      peaks[warp * Shape::kRows + lane / 4 + 8 * s] = state[s].m;
    }
  }
  sync_block();
  auto* sum_rows = reinterpret_cast<float*>(shared + Shape::kRingOffset);
  auto& scratch =
      *reinterpret_cast<typename Shape::Scratch*>(shared + Shape::kRingOffset + Shape::kSumBytes);
  float factor[kRowSlots] = {};
  VRGA_UNROLL
  for (int s = 0; s < kRowSlots; ++s) {
    const int row = lane / 4 + 8 * s;
    factor[s] = rebase<Bits>(state[s], block_peak<kTensorWarps, Shape::kRows>(peaks, row));
    add_across_lanes(state[s], 1, 4);
    if (lane % 4 == 0) {
      scratch.states[warp * Shape::kRows + row] = {state[s]};
    }
  }
  const auto spill_sums = [&](const float (&tile)[kDim / 8][4]) {
    VRGA_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      VRGA_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + lane / 4 + 8 * half, column = 8 * n + 2 * (lane % 4);
        const float scale = factor[kRowSlots == 1 ? 0 : half];
        auto* pair = reinterpret_cast<Vector<2>*>(sum_rows + row * Shape::kSumStride + column);
        *pair = {{scale * tile[n][2 * half], scale * tile[n][2 * half + 1]}};
      }
    }
  };
  if constexpr (kDecode) {
    spill_sums(sums[0]);
  }
  sync_block();
  finish_states(p, place, enabled, scratch);
  if constexpr (kDecode) {
    store_sums<T, kRowSlots == 1 ? 2 : 1, kDim>(p, place, enabled, scratch, sum_rows,
                                                Shape::kSumStride, kDim, 0);
    if constexpr (kRowSlots == 2) {
      if (p.planes != Planes::kPlain) {
        sync_block();
        spill_sums(sums[1]);
        sync_block();
        store_sums<T, 1, kDim>(p, place, enabled, scratch, sum_rows, Shape::kSumStride, kDim, 1);
      }
    }
  }
}

}  // namespace vrga::gpu
