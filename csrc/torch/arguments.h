// Checks of single arguments. A message names the argument, what was wanted and what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <string>

#include "core/params.h"
#include "torch/checks.h"

namespace vrga::binding {

void check_dims(const char* name, const Tensor& t, int64_t dims, const char* wanted);
// A size that is given, or the name of one that is free.
struct Size {
  int64_t value = -1;
  const char* free = nullptr;

  Size(int64_t value) : value(value) {}
  Size(const char* free) : free(free) {}
};
void check_shape(const char* name, const Tensor& t, std::initializer_list<Size> sizes);

// Same dtype and device as the query.
void check_like(const char* name, const Tensor& t, const Tensor& query);

// A dtype that kernels exist for.
DType kernel_dtype(const char* name, const Tensor& t);

// Kernels read rows of contiguous elements; all other strides are free.
Tensor contiguous_rows(const Tensor& t);

// Uninitialised and contiguous, on the device of `first` and of its dtype unless another is given.
// Not the stable ABI's new_empty: its boxed call costs as much as the rest of an operation's.
Tensor new_empty(const Tensor& first, std::initializer_list<int64_t> sizes,
                 std::optional<torch::headeronly::ScalarType> dtype = std::nullopt);

void check_heads_divide(int64_t h_q, int64_t h_kv);
// D^-0.5 unless given; without columns all scores are 0 whatever it is.
float scale_or_default(std::optional<double> scale, int64_t d);
float checked_softcap(double softcap);
GateParams gate_params(const GateArguments& arguments);

// uint8 [b, at most s_kv]
Tensor check_flags(const Tensor& key_flags, const Tensor& first, int64_t b, int64_t s_kv);

// bool [b, h_q]
std::optional<Tensor> check_heads(const std::optional<Tensor>& heads, const Tensor& first,
                                  int64_t b, int64_t h_q);

// Fills `view`; returns the tensor it points into.
std::optional<Tensor> check_mask(const std::optional<Tensor>& attn_mask, const Tensor& first,
                                 const std::array<int64_t, 4>& shape, MaskView& view);

}  // namespace vrga::binding
