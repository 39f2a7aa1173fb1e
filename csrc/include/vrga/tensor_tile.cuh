// The pieces of tensor_split.cuh: 16 keys of one warp in shared memory, and their products with the
// query rows.
#pragma once

#include "vrga/block_result.cuh"
#include "vrga/key_access.cuh"
#include "vrga/row_update.cuh"

namespace vrga::gpu {

constexpr int kTensorWarps = 4;
constexpr int kTensorThreads = kTensorWarps * kWarpSize;
constexpr int kWarpKeys = 16;
constexpr int kTensorTile = kTensorWarps * kWarpKeys;

// Ring slots per warp, each 16 keys of K or of V. 48 KB per block for D <= 128: two blocks fit into
// the 100 KB of an SM of sm_86, sm_89 and sm_120. 64 KB for D = 256: one fits there, three
// elsewhere.
constexpr int ring_slots(int dim) {
  return dim <= 64 ? 6 : dim <= 96 ? 4 : dim <= 128 ? 3 : 2;
}

// The A fragments of the query rows, loaded once; rows beyond the last are zero. In registers, or
// where the sums leave no room for them (D = 256) in shared memory, [kDim / 16, 32, 2] words that
// every warp reads.
template <int kDim, int kRowSlots>
struct QueryFragments {
  static constexpr bool kShared = kDim > 128;
  static constexpr int kSharedBytes = kShared ? kDim / 16 * kWarpSize * 8 : 0;
  struct alignas(8 * kRowSlots) Words {
    uint32_t word[2 * kRowSlots];  // two halves of eight columns, each with its row slots
  };
  Words own[kShared ? 1 : kDim / 16];
  Words* all;

  VRGA_DEVICE_MEMBER void load(const SplitParams& p, const BlockPlace& place, void* shared) {
    all = static_cast<Words*>(shared);
    const uint16_t* source[kRowSlots];
    bool valid[kRowSlots];
    VRGA_UNROLL
    for (int slot = 0; slot < kRowSlots; ++slot) {
      const int index = place.row_block * 8 * kRowSlots + lane_index() / 4 + 8 * slot;
      const RowPlace row = row_of(p.decode, place, index);
      valid[slot] = row.valid;
      source[slot] = static_cast<const uint16_t*>(p.decode.q) + place.b * p.decode.stride_q_b +
                     row.h * p.decode.stride_q_h + row.s * p.decode.stride_q_s +
                     2 * (lane_index() % 4);
    }
    VRGA_UNROLL
    for (int step = 0; step < kDim / 16; ++step) {
      Words words;
      VRGA_UNROLL
      for (int i = 0; i < 2 * kRowSlots; ++i) {
        const uint16_t* pair = source[i % kRowSlots] + 16 * step + 8 * (i / kRowSlots);
        words.word[i] = valid[i % kRowSlots] ? uint32_t{pair[0]} | uint32_t{pair[1]} << 16 : 0;
      }
      if (!kShared) {
        own[kShared ? 0 : step] = words;
      } else if (warp_index() == 0) {
        all[step * kWarpSize + lane_index()] = words;
      }
    }
    if (kShared) {
      sync_block();
    }
  }

  VRGA_DEVICE_MEMBER void operand(int step, uint32_t (&a)[4]) const {
    const Words words = kShared ? all[step * kWarpSize + lane_index()] : own[kShared ? 0 : step];
    VRGA_UNROLL
    for (int half = 0; half < 2; ++half) {
      a[2 * half] = words.word[kRowSlots * half];
      a[2 * half + 1] = kRowSlots == 2 ? words.word[kRowSlots * half + kRowSlots - 1] : 0u;
    }
  }
};

template <int kDim, int kRowSlots>
struct TensorShape {
  static constexpr int kRows = 8 * kRowSlots;
  static constexpr int kChunks = kDim / 8;  // of 16 bytes, per key
  static constexpr int kSlots = ring_slots(kDim);
  static constexpr int kSlotBytes = kWarpKeys * kDim * 2;
  static constexpr int kRingBytes = kTensorWarps * kSlots * kSlotBytes;
  static constexpr int kSumStride = kDim + 8;  // 8 mod 32 banks: fragments store without conflicts
  static constexpr int kSumBytes = kTensorWarps * 16 * kSumStride * 4;
  using Scratch = ResultScratch<kTensorWarps, kRows>;
  static constexpr int kResultBytes = kSumBytes + static_cast<int>(sizeof(Scratch));
  // The ring, later the results; then the query, the mask offsets of the rows, the marks of the
  // tiles.
  static constexpr int kQueryOffset = kRingBytes > kResultBytes ? kRingBytes : kResultBytes;
  static constexpr int kRowsOffset = kQueryOffset + QueryFragments<kDim, kRowSlots>::kSharedBytes;
  static constexpr int kMarksOffset = kRowsOffset + 16 * static_cast<int>(sizeof(int64_t));
  static constexpr int kSharedBytes = kMarksOffset + TileList::kMarked;
};

// Where chunk c of key `row` lies in a slot. The 16-byte chunks of eight consecutive keys then fall
// into different banks for every D: a row of C = 2^k * odd chunks returns to the same bank after
// 2^(3-k) rows, and the XOR moves it on.
template <int kChunks>
VRGA_DEVICE int swizzled(int row, int chunk) {
  constexpr int k = kChunks % 8 == 0 ? 3 : kChunks % 4 == 0 ? 2 : kChunks % 2 == 0 ? 1 : 0;
  constexpr int mask = (1 << k) - 1;
  return row * kChunks + (chunk & ~mask) + ((chunk ^ (row >> (3 - k))) & mask);
}

// Starts the copy of 16 keys; keys at or beyond s_kv become zeros.
template <int kDim>
VRGA_DEVICE void copy_keys(unsigned char* slot, const uint16_t* base, int64_t stride, int first,
                           int s_kv) {
  constexpr int kChunks = kDim / 8;
  // Not unrolled: the addresses of all copies at once would cost the registers of the sums.
  VRGA_NO_UNROLL
  for (int j = 0; j < kWarpKeys * kChunks / kWarpSize; ++j) {
    const int i = lane_index() + kWarpSize * j;
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = first + row < s_kv;
    const uint16_t* source = base + int64_t{valid ? first + row : 0} * stride + chunk * 8;
    copy_async(slot + swizzled<kChunks>(row, chunk) * 16, source, valid);
  }
}

// dots[n] is the accumulator of keys 8n .. 8n + 7.
template <class T, int kDim, int kRowSlots>
VRGA_DEVICE void multiply_keys(float (&dots)[2][4], const unsigned char* slot,
                               const QueryFragments<kDim, kRowSlots>& query) {
  const int lane = opaque(lane_index());
  VRGA_UNROLL
  for (int step = 0; step < kDim / 16; ++step) {
    const int key = lane % 8 + lane / 16 * 8, chunk = 2 * step | lane / 8 % 2;
    uint32_t keys[4], a[4];
    load_matrices<false>(keys, slot + swizzled<kDim / 8>(key, chunk) * 16);
    query.operand(step, a);
    mma_m16n8k16<T>(dots[0], a, keys[0], keys[1]);
    mma_m16n8k16<T>(dots[1], a, keys[2], keys[3]);
  }
}

// sums[tile][n] += probabilities[tile] * V, columns 8n .. 8n + 7.
template <class T, int kDim, int kTiles>
VRGA_DEVICE void multiply_values(float (&sums)[kTiles][kDim / 8][4], const unsigned char* slot,
                                 const uint32_t (&probabilities)[kTiles][4], int tiles) {
  const int lane = opaque(lane_index());
  VRGA_UNROLL
  for (int n = 0; n < kDim / 8; n += 2) {
    uint32_t values[4];
    load_matrices<true>(values, slot + swizzled<kDim / 8>(lane % 16, n | lane / 16) * 16);
    VRGA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile < tiles) {
        mma_m16n8k16<T>(sums[tile][n], probabilities[tile], values[0], values[1]);
        mma_m16n8k16<T>(sums[tile][n + 1], probabilities[tile], values[2], values[3]);
      }
    }
  }
}

// Keys of the warp that some row attends to, as a mask of 16 bits. Lanes 4g + t hold keys 2t, 2t +
// 1, 2t + 8 and 2t + 9 of rows g and g + 8.
template <int kRowSlots>
VRGA_DEVICE uint32_t used_keys(const KeyGroup<4> (&keys)[kRowSlots]) {
  uint32_t used = 0;
  VRGA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t votes = ballot(keys[0].attended[i] || keys[kRowSlots - 1].attended[i]);
    VRGA_UNROLL
    for (int t = 0; t < 4; ++t) {
      const uint32_t any = (votes & (0x11111111u << t)) != 0 ? 1u : 0u;
      used |= any << (2 * t + i % 2 + i / 2 * 8);
    }
  }
  return used;
}

// A key that no row attends to contributes nothing, whatever V holds there: 0 * NaN would not be 0.
template <int kDim>
VRGA_DEVICE void clear_unused(unsigned char* slot, uint32_t used) {
  constexpr int kWords = kDim / 2;  // of four bytes, per key
  for (int row = 0; row < kWarpKeys; ++row) {
    if ((used >> row & 1u) == 0) {
      for (int i = lane_index(); i < kWords; i += kWarpSize) {
        reinterpret_cast<uint32_t*>(slot)[row * kWords + i] = 0;
      }
    }
  }
  sync_warp();
}

}  // namespace vrga::gpu
