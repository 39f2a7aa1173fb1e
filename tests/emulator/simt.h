// A small SIMT machine on one CPU thread: every CUDA thread of a block is a fiber, blocks run one
// after the other. Fibers switch only where CUDA threads may wait for each other (barriers and
// warp-wide instructions), in a random lane order and with one warp of each block running as far
// ahead as the barriers let it. What the hardware leaves undefined is made visible:
//
//   - dynamic shared memory is a heap block of exactly the requested size, filled with NaN;
//   - an asynchronous copy writes NaN over its target at once and the data only at the wait;
//   - lanes that meet in different warp-wide instructions, and barriers never completed, abort;
//   - under ThreadSanitizer only barriers order the fibers of a block, and nothing orders blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

constexpr int kWarpLanes = 32;

enum class WarpOp : int32_t {
  kNone,
  kBarrier,
  kShuffleXor,
  kBallot,
  kLoadMatrix,
  kLoadMatrixTransposed,
  kMmaBFloat16,
  kMmaFloat16,
};

// Operands and result of one lane in a warp-wide instruction.
struct ShuffleOperands {
  uint32_t value;
  int32_t lane_mask;
};
struct MatrixRow {
  const void* address;  // for the bank count only; the lane has read the row itself
  uint16_t elements[8];
};
struct MmaOperands {
  float c[4];
  uint32_t a[4], b[2];
};
union LaneOperands {
  ShuffleOperands shuffle;
  uint32_t predicate;
  MatrixRow row;
  MmaOperands mma;
};
union LaneResult {
  uint32_t words[4];
  float c[4];
};

struct Copy {
  void* target;        // shared memory
  const void* source;  // global memory
  int32_t bytes;       // copied at the wait
  int32_t zeros;       // then zeroed
};

// What tests look at.
struct Counters {
  int64_t launches, blocks;
  int64_t matrix_phases;      // groups of eight rows that ldmatrix reads together
  int64_t matrix_wavefronts;  // shared-memory accesses they took; equal without bank conflicts
};
Counters& counters();
void set_seed(uint64_t seed);  // of the lane order, the leading warp and the block order

// Runs `body` for every thread of `grid` blocks. Returns when all are done.
void launch(int64_t grid, int block_threads, size_t shared_bytes,
            const std::function<void()>& body);

// Of the running fiber.
int thread_index();
int block_threads();
int64_t block_index();
void* dynamic_shared();
LaneResult warp_instruction(WarpOp op, const LaneOperands& operands);
void block_barrier();

void queue_copy(const Copy& copy);
void commit_copies();
// Takes the oldest copy that is not in the newest `groups_left` groups; false if there is none.
bool take_copy(int groups_left, Copy* copy);

[[noreturn]] void fail(const char* what);

}  // namespace simt
