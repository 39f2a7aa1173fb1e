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
struct AttentionCall {
  Tensor query, key, key_flags;
  std::optional<Tensor> value, heads, mask;
  Tensor result, statistics;  // the output; without a value the image attention
  AttentionParams params;
};
struct SoftmaxCall {
  Tensor scores, key_flags;
  std::optional<Tensor> heads;
  Tensor probabilities, statistics;
  SoftmaxParams params;
};

// With a value and a gate: decode_attention, query [B, Hq, Sq, D]. Without: row_statistics, query
// [B, Hq, D].
AttentionCall check_attention(const Tensor& query, const Tensor& key,
                              const std::optional<Tensor>& value, const Tensor& key_flags,
                              const std::optional<Tensor>& attn_mask,
                              const std::optional<Tensor>& heads, std::optional<double> scale,
                              double softcap, const GateArguments* gate);

SoftmaxCall check_softmax(const Tensor& scores, const Tensor& key_flags,
                          const std::optional<Tensor>& heads, const GateArguments& gate);

}  // namespace vrga::binding
