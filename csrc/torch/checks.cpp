#include "torch/checks.h"

#include <torch/headeronly/core/ScalarType.h>

#include <utility>

#include "torch/arguments.h"

namespace vrga::binding {

using torch::headeronly::ScalarType;

DecodeCall check_decode(const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& key_flags, const std::optional<Tensor>& attn_mask,
                        const std::optional<Tensor>& heads, std::optional<double> scale,
                        double softcap, const GateArguments& gate) {
  DecodeParams p;
  p.dtype = kernel_dtype("query", query);
  check_dims("query", query, 4, "[B, Hq, Sq, D]");
  check_dims("key", key, 4, "[B, Hkv, Skv, D]");
  p.b = query.size(0);
  p.h_q = query.size(1);
  p.s_q = query.size(2);
  p.d = query.size(3);
  p.h_kv = key.size(1);
  p.s_kv = key.size(2);
  check_heads_divide(p.h_q, p.h_kv);
  check_shape("key", key, {p.b, p.h_kv, p.s_kv, p.d});
  check_dims("value", value, 4, "[B, Hkv, Skv, Dv]");
  p.d_v = value.size(3);
  check_shape("value", value, {p.b, p.h_kv, p.s_kv, p.d_v});
  check_like("key", key, query);
  check_like("value", value, query);

  DecodeCall call{contiguous_rows(query),
                  contiguous_rows(key),
                  contiguous_rows(value),
                  check_flags(key_flags, query, p.b, p.s_kv),
                  check_heads(heads, query, p.b, p.h_q),
                  check_mask(attn_mask, query, {p.b, p.h_q, p.s_q, p.s_kv}, p.mask),
                  new_empty(query, {p.b, p.h_q, p.s_q, p.d_v}),
                  new_empty(query, {p.b, p.h_q, p.s_q, kDecodeStatistics}, ScalarType::Float),
                  {}};

  p.q = call.query.const_data_ptr();
  p.k = call.key.const_data_ptr();
  p.v = call.value.const_data_ptr();
  p.key_flags = call.key_flags.const_data_ptr<uint8_t>();
  p.heads = call.heads ? call.heads->const_data_ptr<bool>() : nullptr;
  p.out = call.output.mutable_data_ptr();
  p.statistics = call.statistics.mutable_data_ptr<float>();
  p.n_flags = call.key_flags.size(1);
  p.stride_q_b = call.query.stride(0);
  p.stride_q_h = call.query.stride(1);
  p.stride_q_s = call.query.stride(2);
  p.stride_k_b = call.key.stride(0);
  p.stride_k_h = call.key.stride(1);
  p.stride_k_s = call.key.stride(2);
  p.stride_v_b = call.value.stride(0);
  p.stride_v_h = call.value.stride(1);
  p.stride_v_s = call.value.stride(2);
  p.stride_flags_b = call.key_flags.stride(0);
  p.scale = scale_or_default(scale, p.d);
  p.softcap = checked_softcap(softcap);
  p.gate = gate_params(gate);
  call.params = p;
  return call;
}

RowStatisticsCall check_row_statistics(const Tensor& query, const Tensor& key,
                                       const Tensor& key_flags,
                                       const std::optional<Tensor>& attn_mask,
                                       std::optional<double> scale, double softcap) {
  RowStatisticsParams p;
  p.dtype = kernel_dtype("query", query);
  check_dims("query", query, 3, "[B, Hq, D]");
  check_dims("key", key, 4, "[B, Hkv, Skv, D]");
  p.b = query.size(0);
  p.h_q = query.size(1);
  p.d = query.size(2);
  p.h_kv = key.size(1);
  p.s_kv = key.size(2);
  check_heads_divide(p.h_q, p.h_kv);
  check_shape("key", key, {p.b, p.h_kv, p.s_kv, p.d});
  check_like("key", key, query);

  Tensor flags = check_flags(key_flags, query, p.b, p.s_kv);
  p.n_flags = flags.size(1);
  RowStatisticsCall call{contiguous_rows(query),
                         contiguous_rows(key),
                         std::move(flags),
                         check_mask(attn_mask, query, {p.b, p.h_q, 1, p.s_kv}, p.mask),
                         new_empty(query, {p.b, p.h_q, p.n_flags}, ScalarType::Float),
                         new_empty(query, {p.b, p.h_q, kRowStatistics}, ScalarType::Float),
                         {}};

  p.q = call.query.const_data_ptr();
  p.k = call.key.const_data_ptr();
  p.key_flags = call.key_flags.const_data_ptr<uint8_t>();
  p.image_attention = call.image_attention.mutable_data_ptr<float>();
  p.statistics = call.statistics.mutable_data_ptr<float>();
  p.stride_q_b = call.query.stride(0);
  p.stride_q_h = call.query.stride(1);
  p.stride_k_b = call.key.stride(0);
  p.stride_k_h = call.key.stride(1);
  p.stride_k_s = call.key.stride(2);
  p.stride_flags_b = call.key_flags.stride(0);
  p.scale = scale_or_default(scale, p.d);
  p.softcap = checked_softcap(softcap);
  call.params = p;
  return call;
}

SoftmaxCall check_softmax(const Tensor& scores, const Tensor& key_flags,
                          const std::optional<Tensor>& heads, const GateArguments& gate) {
  SoftmaxParams p;
  p.dtype = kernel_dtype("scores", scores);
  check_dims("scores", scores, 4, "[B, Hq, Sq, Skv]");
  p.b = scores.size(0);
  p.h_q = scores.size(1);
  p.s_q = scores.size(2);
  p.s_kv = scores.size(3);

  SoftmaxCall call{contiguous_rows(scores),
                   check_flags(key_flags, scores, p.b, p.s_kv),
                   check_heads(heads, scores, p.b, p.h_q),
                   new_empty(scores, {p.b, p.h_q, p.s_q, p.s_kv}),
                   new_empty(scores, {p.b, p.h_q, p.s_q, kDecodeStatistics}, ScalarType::Float),
                   {}};

  p.scores = call.scores.const_data_ptr();
  p.key_flags = call.key_flags.const_data_ptr<uint8_t>();
  p.heads = call.heads ? call.heads->const_data_ptr<bool>() : nullptr;
  p.probabilities = call.probabilities.mutable_data_ptr();
  p.statistics = call.statistics.mutable_data_ptr<float>();
  p.n_flags = call.key_flags.size(1);
  p.stride_s_b = call.scores.stride(0);
  p.stride_s_h = call.scores.stride(1);
  p.stride_s_s = call.scores.stride(2);
  p.stride_flags_b = call.key_flags.stride(0);
  p.gate = gate_params(gate);
  call.params = p;
  return call;
}

}  // namespace vrga::binding
