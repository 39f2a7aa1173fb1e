// One task: the query rows of one item against one split of the keys, in one pass over K and V.
#pragma once

#include "cpu/kernels/keys.h"
#include "cpu/kernels/row_softmax.h"
#include "cpu/kernels/scores.h"
#include "cpu/kernels/values.h"
#ifdef VRGA_BF16_TILES
#  include "cpu/kernels/tiles_bf16.h"
#elif defined(VRGA_BF16_DOT)
#  include "cpu/kernels/values_bf16.h"
#endif

namespace vrga::cpu::VRGA_ISA {

template <class T>
class AttentionTask {
 public:
  // The scratch begins with what the matrix tiles need.
  AttentionTask(const AttentionJob& job, int64_t task, float* scratch)
      : job_(job), p_(job.p), tiles_(job, scratch), split_(task % job.plan.splits) {
    const int64_t item = task / job.plan.splits;
    const int64_t chunk = item % job.chunks;
    h_kv_ = item / job.chunks % p_.h_kv;
    b_ = item / job.chunks / p_.h_kv;
    first_row_ = chunk * job.rows_per_chunk;
    const int64_t left = job.rows - first_row_;
    rows_ = static_cast<int>(left < job.rows_per_chunk ? left : job.rows_per_chunk);

    states_ = job.states + task * job.rows_per_chunk;
    sums_ = job.sums + task * job.classes.count * job.rows_per_chunk * job.stride_sums;
    scratch += query_tiles_floats(job);
    query_ = reinterpret_cast<typename Dot<T>::Query*>(scratch);
    scores_ = scratch + job.rows_per_chunk * (padded(p_.d) + 16);
    bias_ = scores_ + job.rows_per_chunk * kBlockKeys;
  }

  void run() {
    stage_queries();
    if (p_.mask.kind != MaskKind::kNone) {
      masks_.locate(p_.mask, b_, first_head(), p_.s_q, first_row_, rows_);
    }
    for (int r = 0; r < rows_; ++r) {
      states_[r] = SoftmaxState{};
    }
    const int64_t begin = split_ * job_.plan.keys_per_split;
    int64_t end = begin + job_.plan.keys_per_split;
    end = end < p_.s_kv ? end : p_.s_kv;
    for (int64_t first = begin; first < end; first += kBlockKeys) {
      block(first, static_cast<int>(end - first < kBlockKeys ? end - first : kBlockKeys));
    }
    for (int c = 0; c < job_.classes.count; ++c) {
      if (seen_ & (1 << c)) {
        finish_sums<T>(class_sums(c), rows_, job_.stride_sums);
      }
    }
    finish_counts();
    job_.classes_seen[(states_ - job_.states) / job_.rows_per_chunk] = seen_;
  }

 private:
  int64_t first_head() const { return h_kv_ * (p_.h_q / p_.h_kv); }
  int64_t head_of(int r) const { return first_head() + (first_row_ + r) / p_.s_q; }

  ContiguousRows<T> keys() const { return key_rows<T>(p_, b_, h_kv_); }
  ContiguousRows<T> values() const { return value_rows<T>(p_, b_, h_kv_); }

  void stage_queries() {
    const T* q = static_cast<const T*>(p_.q) + b_ * p_.stride_q_b;
    const T* rows[kMaxRows];
    for (int r = 0; r < rows_; ++r) {
      rows[r] = q + head_of(r) * p_.stride_q_h + (first_row_ + r) % p_.s_q * p_.stride_q_s;
    }
    pack_queries<T>(rows, rows_, p_.d, query_);
    tiles_.stage_queries(rows, rows_);
  }

  void block(int64_t first, int n) {
    flags_.read(p_.key_flags + b_ * p_.stride_flags_b, p_.n_flags, first, n, job_.classes);
    if (!read_masks(first, n)) {
      for (int r = 0; r < rows_; ++r) {
        image_row(r, first, n).put_nothing();
        keep_reference(r, first);
      }
      return;
    }
    const ContiguousRows<T> rows = keys();
    const ScoreBlock<T> block{query_, rows.row(first), scores_, rows_, n, p_.d, rows.stride};
    Ahead ahead =
        p_.has_values ? Ahead(values().row(first), values().stride, n, p_.d_v) : next_keys(first);
    const bool tiled = tiles_.serve(n);
    // The softmax gets the share of the lines that it has of the time, one evenly spaced stream:
    // a third, as timed with AVX2 in fp32. Matrix tiles are done with the scores sooner.
    const int64_t later = tiled ? ahead.lines() * 2 / 3 : ahead.lines() / 3;
    if (tiled) {
      tiles_.score(block, ahead.lines() - later, ahead);
    } else {
      score(block, ahead.lines() - later, ahead);
    }

    RowScores scores[kMaxRows];
    for (int r = 0; r < rows_; ++r) {
      scores[r] = finish_scores(scores_ + r * kBlockKeys, n, p_.scale, p_.softcap, bias_of(r));
    }
    const int per_row = static_cast<int>(ceil_div(ahead.lines(), rows_));
    for (int r = 0; r < rows_; ++r) {
      ahead.fetch(per_row);
      const float factor = softmax_block<T>(scores_ + r * kBlockKeys, n, scores[r], flags_,
                                            states_[r], image_row(r, first, n));
      keep_reference(r, first);
      if (factor != 1.0f) {
        scale_sums(r, factor);
      }
    }
    if (p_.has_values) {
      accumulate_values(first, n);
    }
  }

  // K of the block after the one that begins at `first`; nothing if that was the last.
  Ahead next_keys(int64_t first) const {
    const int64_t next = first + kBlockKeys, left = p_.s_kv - next;
    if (left <= 0) {
      return {};
    }
    return {keys().row(next), keys().stride, left < kBlockKeys ? left : kBlockKeys, p_.d};
  }

  // Fills bias_, live_ and the counts; false if no row attends to any key of the block.
  bool read_masks(int64_t first, int n) {
    if (p_.mask.kind == MaskKind::kNone) {
      live_ = first_keys(n);
      attended_ += n;
      images_ += __builtin_popcountll(flags_.image);
      return true;
    }
    live_ = 0;
    for (int u = 0; u < masks_.count; ++u) {
      MaskRow& row = masks_.row[u];
      float* bias = bias_ + u * kBlockKeys;
      read_bias(p_.mask, row.offset + first * p_.mask.stride_k, n, bias);
      KeySet attended = 0;
      int zeros = 0;
      for (int j = 0; j < n; ++j) {
        attended |= KeySet{bias[j] != kMasked} << j;
        zeros += bias[j] == 0.0f;
      }
      row.attended += __builtin_popcountll(attended);
      row.image += __builtin_popcountll(attended & flags_.image);
      row.kind = attended == 0 ? MaskRow::kNothing : zeros == n ? MaskRow::kAll : MaskRow::kSome;
      live_ |= attended;
    }
    return live_ != 0;
  }

  const float* bias_of(int r) const {
    if (p_.mask.kind == MaskKind::kNone) {
      return nullptr;
    }
    const int u = masks_.of_query[r];
    return masks_.row[u].kind == MaskRow::kAll ? nullptr : bias_ + u * kBlockKeys;
  }

  // Where row_statistics keeps the p_j of row r in a block; their reference point is kept beside.
  ImageRow image_row(int r, int64_t first, int n) const {
    if (p_.has_values || first >= p_.n_flags) {
      return {};
    }
    const int64_t left = p_.n_flags - first, row = b_ * p_.h_q + head_of(r);
    return {p_.image_attention + row * p_.n_flags + first, static_cast<int>(left < n ? left : n)};
  }

  void keep_reference(int r, int64_t first) {
    if (!p_.has_values && first < p_.n_flags) {
      job_.references[(b_ * p_.h_q + head_of(r)) * job_.image_blocks + first / kBlockKeys] =
          states_[r].m;
    }
  }

  float* class_sums(int c) const { return sums_ + c * job_.rows_per_chunk * job_.stride_sums; }

  void scale_sums(int r, float factor) {
    for (int c = 0; c < job_.classes.count; ++c) {
      if (seen_ & (1 << c)) {
        float* sums = class_sums(c) + r * job_.stride_sums;
        for (int64_t i = 0; i < job_.stride_sums; i += kWidth) {
          store(sums + i, load(sums + i) * splat(factor));
        }
      }
    }
  }

  void accumulate_values(int64_t first, int n) {
    const ContiguousRows<T> values = this->values();
    Ahead ahead = next_keys(first);
    const int fetches = pace(ahead.lines(), value_steps<T>(rows_, n, p_.d_v));
    for (int c = 0; c < job_.classes.count; ++c) {
      // Keys that no row attends to are left out, not multiplied by p = 0: their V may hold NaN.
      const KeySet keys = flags_.classes[c] & live_;
      if (keys == 0) {
        continue;
      }
      const int count = __builtin_popcountll(keys);
      int32_t index[kBlockKeys];
      if (count < n) {
        int i = 0;
        for (KeySet rest = keys; rest != 0; rest &= rest - 1) {
          index[i++] = __builtin_ctzll(rest);
        }
      }
      float* sums = class_sums(c);
      if (!(seen_ & (1 << c))) {
        seen_ = static_cast<uint8_t>(seen_ | (1 << c));
        memset(sums, 0, sizeof(float) * static_cast<size_t>(rows_ * job_.stride_sums));
      }
      accumulate(ValueBlock<T>{values.row(first), count == n ? nullptr : index, keys, count,
                               scores_, sums, rows_, p_.d_v, values.stride, job_.stride_sums},
                 fetches, ahead);
    }
  }

  void finish_counts() {
    for (int r = 0; r < rows_; ++r) {
      const bool masked = p_.mask.kind != MaskKind::kNone;
      const MaskRow* row = masked ? &masks_.row[masks_.of_query[r]] : nullptr;
      states_[r].attended = static_cast<int32_t>(masked ? row->attended : attended_);
      states_[r].image = static_cast<int32_t>(masked ? row->image : images_);
    }
  }

  const AttentionJob& job_;
  const AttentionParams& p_;
  Tiles<T> tiles_;
  int64_t split_, b_, h_kv_, first_row_;
  int rows_;
  SoftmaxState* states_;           // [rows_per_chunk]
  float* sums_;                    // [classes, rows_per_chunk, stride_sums]
  typename Dot<T>::Query* query_;  // [rows_per_chunk, query_stride]
  float* scores_;                  // [rows_per_chunk, kBlockKeys]
  float* bias_;                    // [distinct mask rows, kBlockKeys]
  BlockFlags flags_;
  MaskRows masks_;
  KeySet live_ = 0;                    // keys of the block that some row attends to
  int64_t attended_ = 0, images_ = 0;  // without a mask: the same for every row
  uint8_t seen_ = 0;                   // bit c: class_sums(c) is initialised
};

template <class T>
void attention_task(const AttentionJob& job, int64_t task, float* scratch) {
  AttentionTask<T>(job, task, scratch).run();
}

}  // namespace vrga::cpu::VRGA_ISA
