// Where the rows of K and V of one (batch, kv head) lie. Kernels reach them in no other way.
//
// A kernel asks for the row of a run's first key and walks on by `stride`. A run is what it reads
// at once: 16 keys of a warp on tensor cores, one key on the other CUDA path, 64 keys on a CPU.
// Whatever keeps its keys in pages must not let a page end inside a run.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/params.h"

namespace vrga {

// One strided tensor: every range of keys is a run.
template <class T>
struct ContiguousRows {
  const T* first;  // [Skv, D or Dv], row stride `stride`
  int64_t stride;

  VRGA_HOST_DEVICE const T* row(int64_t key) const { return first + key * stride; }
};

template <class T>
VRGA_HOST_DEVICE ContiguousRows<T> key_rows(const AttentionParams& p, int64_t b, int64_t h_kv) {
  return {static_cast<const T*>(p.k) + b * p.stride_k_b + h_kv * p.stride_k_h, p.stride_k_s};
}

// Not to be asked for rows unless p.has_values.
template <class T>
VRGA_HOST_DEVICE ContiguousRows<T> value_rows(const AttentionParams& p, int64_t b, int64_t h_kv) {
  return {static_cast<const T*>(p.v) + b * p.stride_v_b + h_kv * p.stride_v_h, p.stride_v_s};
}

}  // namespace vrga
