// Tensors -> parameter structs. Every device goes through these checks.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "core/params.h"

namespace vrga::binding {

using torch::stable::Tensor;

// The gate arguments of an op, in schema order.
struct GateArguments {
  const std::string& kind;
  double focus_weight, image_weight, min_ratio, entropy_factor;
};

// A checked call: the arguments (some of them copies with a contiguous last dimension), the results
// to return, and the parameters, which point into both.
struct DecodeCall {
  Tensor query, key, value, key_flags;
  std::optional<Tensor> heads, mask;
  Tensor output, statistics;
  DecodeParams params;
};
struct RowStatisticsCall {
  Tensor query, key, key_flags;
  std::optional<Tensor> mask;
  Tensor image_attention, statistics;
  RowStatisticsParams params;
};
struct SoftmaxCall {
  Tensor scores, key_flags;
  std::optional<Tensor> heads;
  Tensor probabilities, statistics;
  SoftmaxParams params;
};

DecodeCall check_decode(const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& key_flags, const std::optional<Tensor>& attn_mask,
                        const std::optional<Tensor>& heads, std::optional<double> scale,
                        double softcap, const GateArguments& gate);

RowStatisticsCall check_row_statistics(const Tensor& query, const Tensor& key,
                                       const Tensor& key_flags,
                                       const std::optional<Tensor>& attn_mask,
                                       std::optional<double> scale, double softcap);

SoftmaxCall check_softmax(const Tensor& scores, const Tensor& key_flags,
                          const std::optional<Tensor>& heads, const GateArguments& gate);

}  // namespace vrga::binding
