// What one CPU task is given. Plain data: shared between the scheduler (baseline instructions) and
// the kernels (compiled once per instruction set).
#pragma once

#include <cstdint>

#include "core/params.h"
#include "core/softmax_state.h"
#include "core/split_policy.h"

namespace vrga::cpu {

// Keys whose scores are in flight at once: K and V of one block fit L1 / L2.
constexpr int kBlockKeys = 64;
constexpr int kMaxRows = 64;  // query rows that share one pass over K and V
constexpr int kMaxClasses = 3;
constexpr int kSumsColumns = 32;  // output sums are padded to whole groups of columns

// Keys fall into classes of equal weight: w = 1, w = focus_weight, w = image_weight (where they
// differ). One output sum per class, each key in exactly one of them:
//
//     plain output = sum_c O_c / Z        reweighted output = sum_c w_c O_c / Z_weighted
//
// so the second accumulator costs nothing, and nothing cancels when a weight is 0.
struct KeyClasses {
  int count = 1;
  float weight[kMaxClasses] = {1.0f, 1.0f, 1.0f};
  uint8_t of_flags[4] = {0, 0, 0, 0};  // indexed by the two flag bits
};

// Attention of all query rows that read one K/V head, cut into
//   item = (batch, kv head, chunk of at most kMaxRows rows)   and   task = (item, split of the
//   keys).
// Row r of a kv head is query head r / Sq of its group, query row r % Sq.
struct AttentionJob {
  AttentionParams p;

  int64_t rows = 0;            // Hq / Hkv * Sq
  int64_t rows_per_chunk = 0;  // <= kMaxRows
  int64_t chunks = 0;
  int64_t items = 0;  // B * Hkv * chunks
  SplitPlan plan{1, 0};
  KeyClasses classes;
  int64_t stride_sums = 0;  // Dv, padded to a multiple of kSumsColumns

  SoftmaxState* states = nullptr;   // [items, splits, rows_per_chunk]
  uint8_t* classes_seen = nullptr;  // [items, splits], bit c: O_c was written
  float* sums = nullptr;            // [items, splits, classes, rows_per_chunk, stride_sums]
  int64_t image_blocks = 0;         // blocks of N keys, padded to whole vectors
  float* references = nullptr;      // [B, Hq, image_blocks], what m was; without values only
};

// Softmax over given scores; one task is a run of rows of one batch row.
struct SoftmaxJob {
  SoftmaxParams p;
  int64_t rows = 0;  // Hq * Sq
  int64_t rows_per_task = 0;
  int64_t tasks_per_batch = 0;
};

// Scratch of one task, in floats, each a multiple of 16.
inline int64_t padded(int64_t n) {
  return ceil_div(n, 16) * 16;
}
inline int64_t query_tiles_floats(const AttentionJob& job) {
  return padded(job.rows_per_chunk) * padded(ceil_div(job.p.d, 2));
}
inline int64_t attention_scratch_floats(const AttentionJob& job) {
  return job.rows_per_chunk * (padded(job.p.d) + 16 + 2 * kBlockKeys) + query_tiles_floats(job);
}
inline int64_t softmax_scratch_floats(const SoftmaxJob& job) {
  return 3 * ceil_div(job.p.s_kv, kBlockKeys) * kBlockKeys + kBlockKeys;
}

// Kernels of one instruction set, indexed by DType.
struct KernelTable {
  void (*attention_task[3])(const AttentionJob&, int64_t task, float* scratch);
  void (*attention_merge[3])(const AttentionJob&, int64_t item, float* factors);
  void (*softmax_task[3])(const SoftmaxJob&, int64_t task, float* scratch);
};

}  // namespace vrga::cpu
