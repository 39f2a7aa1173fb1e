// reweighted_softmax: given scores -> probabilities and statistics, one row after the other.
#pragma once

#include "core/gate.h"
#include "cpu/kernels/keys.h"
#include "cpu/kernels/math.h"

namespace vrga::cpu::VRGA_ISA {

// The lowest score that counts as attended: the value above the lowest finite one of the dtype.
VRGA_HOST_DEVICE float lowest_attended(const float*) {
  return -0x1.fffffcp127f;
}
VRGA_HOST_DEVICE float lowest_attended(const BFloat16*) {
  return -0x1.fcp127f;
}
VRGA_HOST_DEVICE float lowest_attended(const Half*) {
  return -65472.0f;
}

template <class T>
class SoftmaxTask {
 public:
  SoftmaxTask(const SoftmaxJob& job, int64_t task, float* scratch)
      : job_(job), p_(job.p), b_(task / job.tasks_per_batch) {
    first_ = task % job.tasks_per_batch * job.rows_per_task;
    const int64_t blocks = ceil_div(p_.s_kv, kBlockKeys);
    row_ = scratch;
    image_ = row_ + blocks * kBlockKeys;
    weight_ = image_ + blocks * kBlockKeys;
  }

  void run() {
    read_flags();
    for (int64_t r = first_; r < first_ + job_.rows_per_task && r < job_.rows; ++r) {
      const int64_t head = r / p_.s_q;
      const int64_t at = b_ * job_.rows + r;
      const T* scores = static_cast<const T*>(p_.scores) + b_ * p_.stride_s_b +
                        head * p_.stride_s_h + r % p_.s_q * p_.stride_s_s;
      read_row(scores);
      exponentiate_row();
      const HeadStatistics statistics = head_statistics<Nats>(state_);
      const bool enabled = p_.heads == nullptr || p_.heads[b_ * p_.h_q + head];
      const GateDecision gate = resolve<Nats>(p_.gate, enabled, state_, state_.z, statistics);
      float* out = p_.statistics + at * kDecodeStatistics;
      out[0] = statistics.image_ratio;
      out[1] = statistics.image_entropy;
      out[2] = statistics.joint_entropy;
      out[3] = gate.open ? 1.0f : 0.0f;
      T* probabilities = static_cast<T*>(p_.probabilities) + at * p_.s_kv;
      if (state_.z == state_.z) {
        write_row(gate, probabilities);
      } else {
        write_nan_row(scores, probabilities);
      }
    }
  }

 private:
  // Flags are per batch row: widened once for all rows of the task.
  void read_flags() {
    widen_flags(p_.key_flags + b_ * p_.stride_flags_b, p_.n_flags, key_weight(p_.gate, kFlagFocus),
                key_weight(p_.gate, kFlagImage), image_, weight_);
    const int64_t end = ceil_div(p_.s_kv, kWidth) * kWidth;
    for (int64_t j = p_.n_flags; j < end; ++j) {
      image_[j] = 0.0f;
      weight_[j] = 1.0f;
    }
  }

  // Scores -> row_, masked ones and the padding -inf; their maximum and the counts.
  void read_row(const T* scores) {
    state_ = SoftmaxState{};
    const Vec lowest = splat(lowest_attended(scores));
    Vec highest = splat(kMasked), attended = zero(), images = zero();
    const auto take = [&](int64_t j, Vec s, Vec valid) {
      const Vec keep = select_less(s, lowest, zero(), valid);  // a NaN score is attended, and shows
      attended = attended + keep;
      images = fma(keep, load(image_ + j), images);
      s = select_less(zero(), keep, s, splat(kMasked));
      store(row_ + j, s);
      highest = max_keep_second(s, highest);
    };
    int64_t j = 0;
    for (; j + kWidth <= p_.s_kv; j += kWidth) {
      take(j, load(scores + j), splat(1.0f));
    }
    if (j < p_.s_kv) {
      const int rest = static_cast<int>(p_.s_kv - j);
      float valid[kWidth] = {};
      for (int i = 0; i < rest; ++i) {
        valid[i] = 1.0f;
      }
      take(j, load_partial(scores + j, rest), load(valid));
    }
    state_.m = reduce_max(highest);
    state_.attended = static_cast<int32_t>(reduce_add(attended));
    state_.image = static_cast<int32_t>(reduce_add(images));
  }

  void exponentiate_row() {
    const Vec reference = splat(state_.m == kMasked ? 0.0f : state_.m);
    for (int64_t first = 0; first < p_.s_kv; first += kBlockKeys) {
      Vec z = zero(), z_weighted = zero(), z_image = zero(), s_image = zero();
      const int64_t end = first + kBlockKeys < p_.s_kv ? first + kBlockKeys : p_.s_kv;
      for (int64_t j = first; j < end; j += kWidth) {
        const Vec distance = not_below_underflow(load(row_ + j) - reference);
        const Vec p = exponential(distance);
        store(row_ + j, p);
        const Vec p_image = p * load(image_ + j);
        z = z + p;
        z_weighted = fma(p, load(weight_ + j), z_weighted);
        z_image = z_image + p_image;
        s_image = fma(p_image, distance, s_image);
      }
      float sums[4];
      store(sums, lane_sums(z, z_weighted, z_image, s_image));
      state_.z += sums[0];
      state_.z_weighted += sums[1];
      state_.z_image += sums[2];
      state_.s_image += sums[3];
    }
  }

  void write_row(const GateDecision& gate, T* out) {
    const Vec normaliser = splat(gate.normaliser);
    const auto probability = [&](int64_t j) {
      const Vec weight = gate.open ? load(weight_ + j) : splat(1.0f);
      return load(row_ + j) * weight * normaliser;
    };
    int64_t j = 0;
    for (; j + kWidth <= p_.s_kv; j += kWidth) {
      store(out + j, probability(j));
    }
    if (j < p_.s_kv) {
      store_partial(out + j, probability(j), static_cast<int>(p_.s_kv - j));
    }
  }

  // NaN for attended keys, whatever p_j is; masked ones stay 0.
  void write_nan_row(const T* scores, T* out) {
    for (int64_t j = 0; j < p_.s_kv; j += kWidth) {
      const int64_t left = p_.s_kv - j;
      const int n = static_cast<int>(left < kWidth ? left : kWidth);
      const Vec lowest = splat(lowest_attended(scores));
      store_partial(out + j, select_less(load_partial(scores + j, n), lowest, zero(), splat(NAN)),
                    n);
    }
  }

  const SoftmaxJob& job_;
  const SoftmaxParams& p_;
  int64_t b_, first_;
  float* row_;     // [Skv, padded] scores, then probabilities
  float* image_;   // [Skv, padded] 1 for an image key
  float* weight_;  // [Skv, padded] w_j
  SoftmaxState state_;
};

template <class T>
void softmax_task(const SoftmaxJob& job, int64_t task, float* scratch) {
  SoftmaxTask<T>(job, task, scratch).run();
}

}  // namespace vrga::cpu::VRGA_ISA
