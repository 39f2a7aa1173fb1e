// Splits of one item -> statistics, gate and output of its rows.
#pragma once

#include "core/gate.h"
#include "cpu/kernels/keys.h"
#include "cpu/kernels/math.h"

namespace vrga::cpu::VRGA_ISA {

// Ascending split order, so that results repeat bit for bit. `factors[i]` is
// what the output sums of split i are to be multiplied with.
inline SoftmaxState merge_states(const AttentionJob& job, int64_t item, int64_t row,
                                 float* factors) {
  SoftmaxState total;
  const SoftmaxState* states = job.states + item * job.plan.splits * job.rows_per_chunk + row;
  for (int64_t i = 0; i < job.plan.splits; ++i) {
    const float m = states[i * job.rows_per_chunk].m;
    total.m = m > total.m ? m : total.m;
  }
  for (int64_t i = 0; i < job.plan.splits; ++i) {
    SoftmaxState part = states[i * job.rows_per_chunk];
    factors[i] = rebase<Nats>(part, total.m);
    add(total, part);
  }
  return total;
}

template <class T>
void write_output(const AttentionJob& job, int64_t item, int64_t row, const GateDecision& gate,
                  const float* factors, T* out) {
  const int64_t d_v = job.p.d_v;
  for (int64_t c = 0; c < d_v; c += kWidth) {
    Vec sum = zero();
    for (int64_t i = 0; i < job.plan.splits && gate.normaliser != 0.0f; ++i) {
      const int64_t task = item * job.plan.splits + i;
      for (int k = 0; k < job.classes.count; ++k) {
        if (job.classes_seen[task] & (1 << k)) {
          const float weight = gate.open ? job.classes.weight[k] : 1.0f;
          const float* sums =
              job.sums +
              ((task * job.classes.count + k) * job.rows_per_chunk + row) * job.stride_sums;
          sum = fma(splat(factors[i] * weight), load(sums + c), sum);
        }
      }
    }
    sum = sum * splat(gate.normaliser);
    if (c + kWidth <= d_v) {
      store(out + c, sum);
    } else {
      store_partial(out + c, sum, static_cast<int>(d_v - c));
    }
  }
}

// p_j of image keys, each block relative to its own reference point -> a_j, in place. A masked or
// text key is 0 whatever the row holds.
inline void write_image_attention(float* image, int64_t n, float* references,
                                  const SoftmaxState& total) {
  const int64_t blocks = ceil_div(n, kBlockKeys);
  const Vec reference = splat(total.m == kMasked ? 0.0f : total.m);
  const Vec normaliser = splat(1.0f / total.z);
  for (int64_t i = 0; i < blocks; i += kWidth) {  // padded to whole vectors
    const Vec distance = not_below_underflow(load(references + i) - reference);
    store(references + i, exponential(distance) * normaliser);
  }
  const auto attention = [](Vec p, Vec factor) {
    return select_less(p, zero(), zero(), p * factor);
  };
  for (int64_t i = 0; i < blocks; ++i) {
    const Vec factor = splat(references[i]);
    float* at = image + i * kBlockKeys;
    const int64_t left = n - i * kBlockKeys, count = left < kBlockKeys ? left : kBlockKeys;
    int64_t j = 0;
    for (; j + kWidth <= count; j += kWidth) {
      store(at + j, attention(load(at + j), factor));
    }
    if (j < count) {
      const int rest = static_cast<int>(count - j);
      store_partial(at + j, attention(load_partial(at + j, rest), factor), rest);
    }
  }
}

// `factors` [splits] is scratch.
template <class T>
void attention_merge(const AttentionJob& job, int64_t item, float* factors) {
  const AttentionParams& p = job.p;
  const int64_t first_row = item % job.chunks * job.rows_per_chunk;
  const int64_t group_begin = item / job.chunks * (p.h_q / p.h_kv);  // in [0, B * Hq)
  for (int64_t row = 0; row < job.rows_per_chunk && first_row + row < job.rows; ++row) {
    const int64_t head = group_begin + (first_row + row) / p.s_q;
    const int64_t at = head * p.s_q + (first_row + row) % p.s_q;
    const SoftmaxState total = merge_states(job, item, row, factors);
    const HeadStatistics statistics = head_statistics<Nats>(total);
    float* out = p.statistics + at * (p.has_values ? kDecodeStatistics : kRowStatistics);
    out[0] = statistics.image_ratio;
    out[1] = statistics.image_entropy;
    out[2] = statistics.joint_entropy;
    if (p.has_values) {
      const bool enabled = p.heads == nullptr || p.heads[head];
      const GateDecision gate = resolve<Nats>(p.gate, enabled, total, total.z, statistics);
      out[3] = gate.open ? 1.0f : 0.0f;
      write_output(job, item, row, gate, factors, static_cast<T*>(p.out) + at * p.d_v);
    } else {
      write_image_attention(p.image_attention + head * p.n_flags, p.n_flags,
                            job.references + head * job.image_blocks, total);
    }
  }
}

}  // namespace vrga::cpu::VRGA_ISA
