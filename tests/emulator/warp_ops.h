// Warp-wide instructions, given the operands of all 32 lanes.
#pragma once

#include <cstring>

#include "simt.h"

namespace simt {

inline float float_of(_Float16 value) {
  return static_cast<float>(value);
}

inline float widen(uint16_t bits, bool bfloat16) {
  if (bfloat16) {
    const uint32_t word = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }
  // Subnormal halves and all others are exact in float; the table saves a library call per element.
  static const float* const table = [] {
    auto* values = new float[65536];
    for (uint32_t i = 0; i < 65536; ++i) {
      const uint16_t half_bits = static_cast<uint16_t>(i);
      _Float16 half;
      std::memcpy(&half, &half_bits, sizeof half);
      values[i] = float_of(half);
    }
    return values;
  }();
  return table[bits];
}

// D = A B + C with A [16, 16], B [16, 8], C and D [16, 8], in the fragment layout of
// mma.m16n8k16: lane = 4 * row + pair. The hardware rounds once per instruction, not per product.
inline void execute_mma(bool bfloat16, const LaneOperands* operands, LaneResult* results) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const MmaOperands& own = operands[lane].mma;
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 2; ++i) {
      for (int word = 0; word < 4; ++word) {
        const int row = group + 8 * (word % 2), column = pair + 8 * (word / 2) + i;
        a[row][column] = widen(static_cast<uint16_t>(own.a[word] >> (16 * i)), bfloat16);
      }
      for (int word = 0; word < 2; ++word) {
        b[pair + 8 * word + i][group] =
            widen(static_cast<uint16_t>(own.b[word] >> (16 * i)), bfloat16);
      }
      c[group][pair + i] = own.c[i];
      c[group + 8][pair + i] = own.c[2 + i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    double sums[8];
    for (int column = 0; column < 8; ++column) {
      sums[column] = c[row][column];
    }
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) {
        sums[column] += static_cast<double>(a[row][k]) * b[k][column];
      }
    }
    for (int column = 0; column < 8; ++column) {
      c[row][column] = static_cast<float>(sums[column]);
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 2; ++i) {
      results[lane].c[i] = c[group][pair + i];
      results[lane].c[2 + i] = c[group + 8][pair + i];
    }
  }
}

// Four 8x8 matrices; lane i holds row i % 8 of matrix i / 8. Shared memory has 32 banks of four
// bytes, so eight rows of 16 bytes are one access if they lie in different sixteenths of 128 bytes.
inline void execute_load_matrix(bool transposed, const LaneOperands* operands, LaneResult* results,
                                Counters& counters) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    int wavefronts = 1, used[8] = {};
    for (int row = 0; row < 8; ++row) {
      const auto address = reinterpret_cast<uintptr_t>(operands[8 * matrix + row].row.address);
      const int here = ++used[address / 16 % 8];
      wavefronts = here > wavefronts ? here : wavefronts;
    }
    ++counters.matrix_phases;
    counters.matrix_wavefronts += wavefronts;
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      uint32_t word = 0;
      for (int i = 0; i < 2; ++i) {
        const int row = transposed ? 2 * (lane % 4) + i : lane / 4;
        const int column = transposed ? lane / 4 : 2 * (lane % 4) + i;
        word |= uint32_t{operands[8 * matrix + row].row.elements[column]} << (16 * i);
      }
      results[lane].words[matrix] = word;
    }
  }
}

inline void execute(WarpOp op, const LaneOperands* operands, LaneResult* results,
                    Counters& counters) {
  switch (op) {
    case WarpOp::kShuffleXor:
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        if (operands[lane].shuffle.lane_mask != operands[0].shuffle.lane_mask) {
          fail("shuffle: lanes disagree about the distance");
        }
        results[lane].words[0] = operands[lane ^ operands[lane].shuffle.lane_mask].shuffle.value;
      }
      return;
    case WarpOp::kBallot: {
      uint32_t votes = 0;
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        votes |= (operands[lane].predicate & 1u) << lane;
      }
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        results[lane].words[0] = votes;
      }
      return;
    }
    case WarpOp::kLoadMatrix:
    case WarpOp::kLoadMatrixTransposed:
      execute_load_matrix(op == WarpOp::kLoadMatrixTransposed, operands, results, counters);
      return;
    case WarpOp::kMmaBFloat16:
    case WarpOp::kMmaFloat16:
      execute_mma(op == WarpOp::kMmaBFloat16, operands, results);
      return;
    default:
      return;
  }
}

}  // namespace simt
