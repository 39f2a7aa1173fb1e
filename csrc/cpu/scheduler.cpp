#include "cpu/scheduler.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "core/gate.h"
#include "cpu/job.h"
#include "cpu/simd_level.h"

namespace vrga::cpu {
namespace {

// Enough tasks to keep many cores busy to the end; a part of the keys so long that staging the
// queries and merging the results does not show.
constexpr int64_t kTargetTasks = 128;
constexpr int64_t kMinKeysPerSplit = 256;
constexpr int64_t kScoresPerTask = 16384;
constexpr int64_t kRetainedBytes = 16 << 20;

// Per-thread memory that outlives the call: a decode step repeats thousands of times with the same
// sizes, and fresh pages would cost more than the merge.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  void* get(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      data_ = nullptr;
      size_ = ceil_div(bytes, 4096) * 4096;
      data_ = std::aligned_alloc(64, static_cast<size_t>(size_));
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }
  float* floats(int64_t count) { return static_cast<float*>(get(count * 4)); }

  // A long prompt may have needed much more than any decode step will.
  void keep_at_most(int64_t bytes) {
    if (size_ > bytes) {
      std::free(data_);
      data_ = nullptr;
      size_ = 0;
    }
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

Scratch& task_scratch() {
  static thread_local Scratch instance;
  return instance;
}

Scratch& partial_results() {
  static thread_local Scratch instance;
  return instance;
}

KeyClasses classes_of(const GateParams& gate) {
  KeyClasses classes;
  const auto class_of = [&](float weight) {
    for (int c = 0; c < classes.count; ++c) {
      if (classes.weight[c] == weight) {
        return static_cast<uint8_t>(c);
      }
    }
    classes.weight[classes.count] = weight;
    return static_cast<uint8_t>(classes.count++);
  };
  for (uint8_t flags = 1; flags < 4; ++flags) {
    classes.of_flags[flags] = class_of(key_weight(gate, flags));
  }
  return classes;
}

int64_t table_index(DType dtype) {
  return static_cast<int64_t>(dtype);
}

}  // namespace

void attention(const AttentionParams& params, const Executor& run) {
  AttentionJob job;
  job.p = params;
  const AttentionParams& p = job.p;
  job.rows = p.h_q / p.h_kv * p.s_q;
  if (job.rows == 0) {
    return;
  }
  job.rows_per_chunk = job.rows < kMaxRows ? job.rows : kMaxRows;
  job.chunks = ceil_div(job.rows, job.rows_per_chunk);
  job.items = p.b * p.h_kv * job.chunks;
  job.plan = plan_splits(job.items, p.s_kv, kBlockKeys, kMinKeysPerSplit, kTargetTasks);
  job.classes = classes_of(p.gate);
  job.stride_sums = p.has_values ? ceil_div(p.d_v, kSumsColumns) * kSumsColumns : 0;

  const int64_t tasks = job.items * job.plan.splits;
  const int64_t sums = tasks * job.classes.count * job.rows_per_chunk * job.stride_sums;
  const int64_t states = tasks * job.rows_per_chunk;
  job.image_blocks = p.has_values ? 0 : padded(ceil_div(p.n_flags, kBlockKeys));
  const int64_t references = p.b * p.h_q * job.image_blocks;
  Scratch& partials = partial_results();
  job.sums =
      partials.floats(sums + references + states * ceil_div(sizeof(SoftmaxState), 4) + tasks);
  job.references = job.sums + sums;
  job.states = reinterpret_cast<SoftmaxState*>(job.references + references);
  job.classes_seen = reinterpret_cast<uint8_t*>(job.states + states);

  const KernelTable& table = kernels();
  const int64_t dtype = table_index(p.dtype);
  // The last split of an item to arrive merges all of them, in ascending order whoever that is: one
  // parallel region instead of two.
  const auto arrived = std::make_unique<std::atomic<int64_t>[]>(static_cast<size_t>(job.items));
  run(tasks, [&](int64_t task) {
    table.attention_task[dtype](job, task, task_scratch().floats(attention_scratch_floats(job)));
    const int64_t item = task / job.plan.splits;
    if (arrived[item].fetch_add(1) + 1 == job.plan.splits) {
      table.attention_merge[dtype](job, item, task_scratch().floats(job.plan.splits));
    }
  });
  partials.keep_at_most(kRetainedBytes);
}

void reweighted_softmax(const SoftmaxParams& params, const Executor& run) {
  SoftmaxJob job;
  job.p = params;
  job.rows = params.h_q * params.s_q;
  if (job.rows == 0) {
    return;
  }
  const int64_t wanted = kScoresPerTask / (params.s_kv > 0 ? params.s_kv : 1);
  job.rows_per_task = wanted < 1 ? 1 : wanted < job.rows ? wanted : job.rows;
  job.tasks_per_batch = ceil_div(job.rows, job.rows_per_task);
  const KernelTable& table = kernels();
  const int64_t dtype = table_index(params.dtype);
  run(params.b * job.tasks_per_batch, [&](int64_t task) {
    table.softmax_task[dtype](job, task, task_scratch().floats(softmax_scratch_floats(job)));
  });
}

}  // namespace vrga::cpu
