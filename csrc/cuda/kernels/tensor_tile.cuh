// The pieces of tensor_split.cuh: 16 keys of one warp in shared memory, and their products with the
// query rows.
#pragma once

#include "core/key_rows.h"
#include "cuda/kernels/block_result.cuh"
#include "cuda/kernels/key_access.cuh"
#include "cuda/kernels/row_update.cuh"

namespace vrga::gpu {

constexpr int kTensorThreads = kTensorWarps * kWarpSize;

// Ring slots per warp, each 16 keys of K or of V. 48 KB per block for D <= 128, so that two blocks
// fit into the 100 KB of an SM of sm_86, sm_89 and sm_120; 64 KB for D = 256, where one fits. Twice
// as many were slower on an H200, whose memory is saturated with these.
constexpr int ring_slots(int dim) {
  return dim <= 64 ? 6 : dim <= 96 ? 4 : dim <= 128 ? 3 : 2;
}

// Where a key lies in a slot: `row` in 0 .. 15, in chunks of 16 bytes. A row of C = 2^k * odd
// chunks returns to the same bank after 2^(3-k) rows; the XOR moves it on, so that the same chunk
// of eight consecutive keys falls into different banks. It touches the low k bits of the chunk
// only, which the byte offsets of rows and slots leave 0: an address is one XOR and a constant away
// from that of another chunk.
template <int kDim>
struct SlotLayout {
  static constexpr int kChunks = kDim / 8;  // per key
  static constexpr int kBits = kChunks % 8 == 0 ? 3 : kChunks % 4 == 0 ? 2 : 1;
  static constexpr int kMask = (1 << kBits) - 1;
  static constexpr int kBytes = kWarpKeys * kDim * 2;
  static_assert(kChunks % 2 == 0 && kBytes % 128 == 0);

  static constexpr VRGA_HOST_DEVICE int swizzle(int row) { return row >> (3 - kBits) & kMask; }
  // Byte offset of a chunk of the first kMask + 1.
  static constexpr VRGA_HOST_DEVICE int offset(int row, int chunk) {
    return (row * kChunks + (chunk ^ swizzle(row))) * 16;
  }
  // From the offset of chunk c to that of c | chunk, for an even `chunk` and c in {0, 1}.
  static constexpr VRGA_HOST_DEVICE int at(int offset, int chunk) {
    return (offset ^ (chunk & kMask) * 16) + (chunk & ~kMask) * 16;
  }
};

// What a lane copies of 16 keys: 2^k neighbouring lanes share a row.
template <int kDim>
struct CopyLane {
  using Layout = SlotLayout<kDim>;
  static constexpr int kLanes = Layout::kMask + 1;  // per row
  static constexpr int kRows = kWarpSize / kLanes;  // per copy instruction
  int row, chunk, target;

  VRGA_DEVICE_MEMBER CopyLane()
      : row(lane_index() / kLanes),
        chunk(lane_index() % kLanes),
        target(Layout::offset(row, chunk)) {}

  // Starts the copy of the 16 keys from `first` on, one run of `rows`; those from `end` on become
  // zeros.
  template <class Rows>
  VRGA_DEVICE_MEMBER void start(unsigned char* slot, const Rows& rows, int first, int end) const {
    const uint16_t* source = rows.row(first + row) + chunk * 8;
    if (end - first >= kWarpKeys) {
      copy_rows(slot, [&](int) { return true; }, source, rows.stride);
    } else {
      copy_rows(slot, [&](int below) { return first + row + below < end; }, source, rows.stride);
    }
  }

 private:
  template <class Valid>
  VRGA_DEVICE_MEMBER void copy_rows(unsigned char* slot, Valid valid, const uint16_t* source,
                                    int64_t stride) const {
    VRGA_UNROLL
    for (int below = 0; below < kWarpKeys; below += kRows) {
      VRGA_UNROLL
      for (int right = 0; right < Layout::kChunks; right += kLanes) {
        const int offset =
            (target ^ Layout::swizzle(below) * 16) + (below * Layout::kChunks + right) * 16;
        copy_async(slot + offset, source + below * stride + right * 8, valid(below));
      }
    }
  }
};

// The A fragments of the query rows, loaded once; rows beyond the last are zero. In registers, or
// where the sums leave no room for them (D = 256) in shared memory, [kDim / 16, 32,
// 2 * kRowSlots] words that every warp reads.
template <int kDim, int kRowSlots>
struct QueryFragments {
  static constexpr bool kShared = kDim > 128;
  static constexpr int kSharedBytes = kShared ? kDim / 16 * kWarpSize * 8 * kRowSlots : 0;
  struct alignas(8 * kRowSlots) Words {
    uint32_t word[2 * kRowSlots];  // two halves of eight columns, each with its row slots
  };
  Words own[kShared ? 1 : kDim / 16];
  Words* all;

  VRGA_DEVICE_MEMBER void load(const SplitParams& p, const BlockPlace& place, void* shared) {
    all = static_cast<Words*>(shared);
    const uint32_t* source[kRowSlots];
    bool valid[kRowSlots];
    VRGA_UNROLL
    for (int slot = 0; slot < kRowSlots; ++slot) {
      const int index = place.row_block * 8 * kRowSlots + lane_index() / 4 + 8 * slot;
      const RowPlace row = row_of(p, place, index);
      valid[slot] = row.valid;
      source[slot] = reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(p.attention.q) +
                                                       place.b * p.attention.stride_q_b +
                                                       row.h * p.attention.stride_q_h +
                                                       row.s * p.attention.stride_q_s) +
                     lane_index() % 4;
    }
    VRGA_UNROLL
    for (int step = 0; step < kDim / 16; ++step) {
      Words words;
      VRGA_UNROLL
      for (int i = 0; i < 2 * kRowSlots; ++i) {
        const int slot = i % kRowSlots;
        words.word[i] = valid[slot] ? source[slot][8 * step + 4 * (i / kRowSlots)] : 0;
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
  static constexpr int kSlotBytes = SlotLayout<kDim>::kBytes;
  // 8 or 24 mod 32 banks: fragments store without conflicts.
  static constexpr int kSumStride = kDim + 8;
  static constexpr int kSumBytes = kTensorWarps * 16 * kSumStride * 4;
  using Scratch = ResultScratch<kTensorWarps, kRows>;
  static constexpr int kResultBytes = kSumBytes + static_cast<int>(sizeof(Scratch));
  static constexpr int kSlots = ring_slots(kDim);
  static constexpr int kRingBytes = kTensorWarps * kSlots * kSlotBytes;
  // The query, the mask offsets of the rows, their peaks in every warp, the marks of the tiles,
  // which rows may be reweighted; then the ring, later the results.
  static constexpr int kRowsOffset = QueryFragments<kDim, kRowSlots>::kSharedBytes;
  static constexpr int kPeaksOffset = kRowsOffset + 16 * static_cast<int>(sizeof(int64_t));
  static constexpr int kMarksOffset = kPeaksOffset + kTensorWarps * 16 * 4;
  static constexpr int kEnabledOffset = kMarksOffset + TileList::kMarked;
  static constexpr int kRingOffset = kEnabledOffset + 16;
  static constexpr int kSharedBytes =
      kRingOffset + (kRingBytes > kResultBytes ? kRingBytes : kResultBytes);
  static_assert(kRingOffset % 128 == 0);
};

// dots[n] is the accumulator of keys 8n .. 8n + 7. `slot`: byte offset from `shared`.
template <class T, int kDim, int kRowSlots>
VRGA_DEVICE void multiply_keys(float (&dots)[2][4], const unsigned char* shared, int slot,
                               const QueryFragments<kDim, kRowSlots>& query) {
  using Layout = SlotLayout<kDim>;
  const int lane = lane_index();
  const int start = slot + Layout::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  VRGA_UNROLL
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t keys[4], a[4];
    load_matrices<false>(keys, shared + Layout::at(start, 2 * step));
    query.operand(step, a);
    mma_m16n8k16<T>(dots[0], a, keys[0], keys[1]);
    mma_m16n8k16<T>(dots[1], a, keys[2], keys[3]);
  }
}

// sums[tile][n] += probabilities[tile] * V, columns 8n .. 8n + 7. `slot`: as above.
template <class T, int kDim, int kTiles>
VRGA_DEVICE void multiply_values(float (&sums)[kTiles][kDim / 8][4], const unsigned char* shared,
                                 int slot, const uint32_t (&probabilities)[kTiles][4], int tiles) {
  using Layout = SlotLayout<kDim>;
  const int lane = lane_index();
  const int start = slot + Layout::offset(lane % 16, lane / 16);
  VRGA_UNROLL
  for (int n = 0; n < kDim / 8; n += 2) {
    uint32_t values[4];
    load_matrices<true>(values, shared + Layout::at(start, n));
    VRGA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile < tiles) {
        mma_m16n8k16<T>(sums[tile][n], probabilities[tile], values[0], values[1]);
        mma_m16n8k16<T>(sums[tile][n + 1], probabilities[tile], values[2], values[3]);
      }
    }
  }
}

// A key that no row attends to contributes nothing, whatever V holds there: 0 * NaN would not be 0.
template <int kDim>
VRGA_DEVICE void clear_unused(unsigned char* slot, uint32_t used) {
  constexpr int kWords = kDim / 2;  // of four bytes, per key
  VRGA_NO_UNROLL
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
