// Split kernel on the ordinary arithmetic units: fp32, bf16, fp16, any D and Dv up to 256, any
// alignment. It serves what tensor_split.cuh does not: simple first, fast second.
//
// A block has four warps and walks over tiles of 128 keys, one key per lane; a lane computes the
// dot products of its key with four query rows. For the sums over V a lane owns every 32nd column.
#pragma once

#include "core/key_rows.h"
#include "cuda/kernels/block_result.cuh"
#include "cuda/kernels/key_access.cuh"
#include "cuda/kernels/row_update.cuh"

namespace vrga::gpu {

constexpr int kPlainThreads = kPlainTile;
constexpr int kPlainRows = 4;
constexpr int kPlainMaxDim = 256;

struct PlainShared {
  float query[kPlainRows][kPlainMaxDim];
  float probabilities[kPlainWarps][2][kPlainRows][kWarpSize];  // p and w p
  ResultScratch<kPlainWarps, kPlainRows> scratch;
  float peaks[kPlainWarps * kPlainRows];
  uint8_t marks[TileList::kMarked];
  bool enabled[16];  // kPlainRows of them
  // and [kPlainWarps, 2, kPlainRows, pitch] floats
};
static_assert(sizeof(PlainShared) % 16 == 0);

inline int plain_shared_bytes(int pitch) {
  return static_cast<int>(sizeof(PlainShared)) + kPlainWarps * 2 * kPlainRows * pitch * 4;
}

// Four partial sums each: shorter chains of rounding, and of latency.
template <class T>
VRGA_DEVICE void dot_rows(float (&dots)[kPlainRows], const float (&query)[kPlainRows][kPlainMaxDim],
                          const T* key, int dim) {
  float partial[kPlainRows][4] = {};
  for (int d = 0; d < dim; d += 4) {
    VRGA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float element = d + i < dim ? widen(key[d + i]) : 0.0f;
      VRGA_UNROLL
      for (int r = 0; r < kPlainRows; ++r) {
        partial[r][i] = fmaf(element, query[r][d + i], partial[r][i]);
      }
    }
  }
  VRGA_UNROLL
  for (int r = 0; r < kPlainRows; ++r) {
    dots[r] = (partial[r][0] + partial[r][1]) + (partial[r][2] + partial[r][3]);
  }
}

// Grid: B * Hkv * splits * row blocks. Block: kPlainThreads. Dynamic shared memory:
// plain_shared_bytes(pitch).
template <class T, bool kDecode>
VRGA_KERNEL VRGA_LAUNCH_BOUNDS(kPlainThreads, 2)
    plain_split(const VRGA_GRID_CONSTANT SplitParams p) {
  constexpr int kColumns = kPlainMaxDim / kWarpSize;  // of V per lane
  const AttentionParams& attention = p.attention;
  const BlockPlace place = place_of(p, block_index());
  const int lane = lane_index(), warp = warp_index();
  const int dim = static_cast<int>(attention.d), columns = static_cast<int>(attention.d_v);

  VRGA_SHARED(memory);
  auto& shared = *reinterpret_cast<PlainShared*>(memory);
  auto* sum_rows = reinterpret_cast<float*>(memory + sizeof(PlainShared));

  wait_for_previous_kernel();
  allow_next_kernel();
  for (int i = thread_index(); i < kPlainRows * kPlainMaxDim; i += kPlainThreads) {
    const int r = i / kPlainMaxDim, d = i % kPlainMaxDim;
    const RowPlace row = row_of(p, place, place.row_block * kPlainRows + r);
    const auto* source = static_cast<const T*>(attention.q) + place.b * attention.stride_q_b +
                         row.h * attention.stride_q_h + row.s * attention.stride_q_s;
    shared.query[r][d] = row.valid && d < dim ? widen(source[d]) : 0.0f;
  }
  RowPlace rows[kPlainRows];
  VRGA_UNROLL
  for (int r = 0; r < kPlainRows; ++r) {
    rows[r] = row_of(p, place, place.row_block * kPlainRows + r);
  }
  find_enabled<kPlainRows>(p, place, shared.enabled);
  const TileList list(p, place, kPlainTile, shared.marks);
  mark_tiles<kPlainTile, kPlainWarps, kPlainRows>(p, place, list);
  sync_block();

  const auto k = key_rows<T>(attention, place.b, place.h_kv);
  const auto v = value_rows<T>(attention, place.b, place.h_kv);
  const ScoreScale scale = score_scale(attention);
  RowState state[kPlainRows];
  float sums[2][kPlainRows][kColumns] = {};

  for (int i = list.skip(0); i < list.count; i = list.skip(i + 1)) {
    const int64_t key_0 = int64_t{list.tile(i)} * kPlainTile + warp * kWarpSize;
    const int64_t key = key_0 + lane;
    KeyGroup<1> keys[kPlainRows];
    bool own_used = false;
    VRGA_UNROLL
    for (int r = 0; r < kPlainRows; ++r) {
      keys[r].attended[0] = rows[r].valid && key < attention.s_kv;
      keys[r].bias[0] = 0.0f;
      if (keys[r].attended[0]) {
        const KeyMask mask =
            read_mask(attention.mask, mask_offset(attention.mask, place.b, rows[r]), key);
        keys[r].attended[0] = mask.attended;
        keys[r].bias[0] = mask.bias_bits;
      }
      own_used = own_used || keys[r].attended[0];
    }
    const uint32_t used = ballot(own_used);
    const uint8_t flags = key < attention.s_kv ? read_flags(attention, place.b, key) : 0;
    const bool image[1] = {(flags & kFlagImage) != 0};
    const bool has_image = any_in_warp(image[0]);
    const bool weighted = any_in_warp(p.planes != Planes::kPlain && flags != 0);
    const float weights[1] = {weighted ? key_weight(attention.gate, flags) : 1.0f};

    float dots[kPlainRows] = {};
    if (own_used) {
      dot_rows(dots, shared.query, k.row(key), dim);
    }
    VRGA_UNROLL
    for (int r = 0; r < kPlainRows; ++r) {
      keys[r].x[0] = scale.prepare(dots[r]);
      const float peak = fmaxf(state[r].m, max_across_lanes(keys[r].peak(scale), 1, kWarpSize));
      if (peak > state[r].m) {
        const float factor = rebase<Bits>(state[r], peak);
        VRGA_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          sums[0][r][c] *= factor;
          sums[1][r][c] *= factor;
        }
      }
      if constexpr (!kDecode) {
        if (keys[r].attended[0] && image[0]) {
          p.attention.image_attention[int64_t{rows[r].row} * attention.n_flags + key] =
              keys[r].x[0];
        }
      }
      add_keys<Bits>(state[r], keys[r], scale, image, has_image);
      state[r].z_output += keys[r].p[0];
      state[r].z_weighted += weights[0] * keys[r].p[0];
      if constexpr (kDecode) {
        shared.probabilities[warp][0][r][lane] = keys[r].p[0];
        shared.probabilities[warp][1][r][lane] = weights[0] * keys[r].p[0];
      }
    }
    if constexpr (kDecode) {
      sync_warp();
      // Keys that no row attends to are passed over: 0 * NaN would not be 0.
      for (int j = 0; j < kWarpSize; ++j) {
        if ((used >> j & 1u) == 0) {
          continue;
        }
        const T* values = v.row(key_0 + j);
        VRGA_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          const int column = lane + c * kWarpSize;
          if (column < columns) {
            const float value = widen(values[column]);
            VRGA_UNROLL
            for (int r = 0; r < kPlainRows; ++r) {
              VRGA_UNROLL
              for (int plane = 0; plane < 2; ++plane) {
                sums[plane][r][c] =
                    fmaf(shared.probabilities[warp][plane][r][j], value, sums[plane][r][c]);
              }
            }
          }
        }
      }
      sync_warp();
    }
  }

  VRGA_UNROLL
  for (int r = 0; r < kPlainRows; ++r) {
    if (lane == 0) {
      shared.peaks[warp * kPlainRows + r] = state[r].m;
    }
  }
  sync_block();
  VRGA_UNROLL
  for (int r = 0; r < kPlainRows; ++r) {
    const float factor =
        rebase<Bits>(state[r], block_peak<kPlainWarps, kPlainRows>(shared.peaks, r));
    add_across_lanes(state[r], 1, kWarpSize);
    if (lane == 0) {
      shared.scratch.states[warp * kPlainRows + r] = {state[r]};
    }
    VRGA_UNROLL
    for (int i = 0; kDecode && i < 2 * kColumns; ++i) {
      const int plane = i / kColumns, column = lane + i % kColumns * kWarpSize;
      if (column < columns) {
        sum_rows[((warp * 2 + plane) * kPlainRows + r) * p.pitch + column] =
            factor * sums[plane][r][i % kColumns];
      }
    }
  }
  sync_block();
  finish_states(p, place, shared.enabled, shared.scratch);
  if constexpr (kDecode) {
    store_sums<T, 2, 0>(p, place, shared.enabled, shared.scratch, sum_rows, p.pitch, columns, 0);
  }
}

}  // namespace vrga::gpu
