#include "torch/checks.h"

#include <torch/headeronly/core/ScalarType.h>

#include <utility>

#include "torch/arguments.h"

namespace vrga::binding {

using torch::headeronly::ScalarType;

AttentionCall check_attention(const Tensor& query, const Tensor& key,
                              const std::optional<Tensor>& value, const Tensor& key_flags,
                              const std::optional<Tensor>& attn_mask,
                              const std::optional<Tensor>& heads, std::optional<double> scale,
                              double softcap, const GateArguments* gate) {
  AttentionParams p;
  p.has_values = value.has_value();
  check_dims("query", query, p.has_values ? 4 : 3, p.has_values ? "[B, Hq, Sq, D]" : "[B, Hq, D]");
  p.dtype = kernel_dtype("query", query);
  p.b = query.size(0);
  p.h_q = query.size(1);
  p.s_q = p.has_values ? query.size(2) : 1;
  p.d = query.size(query.dim() - 1);
  check_shape("key", key, {{p.b}, {"'Hkv'"}, {"'Skv'"}, {p.d}});
  p.h_kv = key.size(1);
  p.s_kv = key.size(2);
  check_heads_divide(p.h_q, p.h_kv);
  check_like("key", key, query);
  if (value) {
    check_shape("value", *value, {{p.b}, {p.h_kv}, {p.s_kv}, {"'Dv'"}});
    p.d_v = value->size(3);
    check_like("value", *value, query);
  }

  Tensor flags = check_flags(key_flags, query, p.b, p.s_kv);
  p.n_flags = flags.size(1);
  AttentionCall call{
      contiguous_rows(query),
      contiguous_rows(key),
      std::move(flags),
      value ? std::optional(contiguous_rows(*value)) : std::nullopt,
      check_heads(heads, query, p.b, p.h_q),
      check_mask(attn_mask, query, {p.b, p.h_q, p.s_q, p.s_kv}, p.mask),
      p.has_values ? new_empty(query, {p.b, p.h_q, p.s_q, p.d_v})
                   : new_empty(query, {p.b, p.h_q, p.n_flags}, ScalarType::Float),
      p.has_values ? new_empty(query, {p.b, p.h_q, p.s_q, kDecodeStatistics}, ScalarType::Float)
                   : new_empty(query, {p.b, p.h_q, kRowStatistics}, ScalarType::Float),
      {}};

  p.q = call.query.const_data_ptr();
  p.k = call.key.const_data_ptr();
  p.key_flags = call.key_flags.const_data_ptr<uint8_t>();
  p.heads = call.heads ? call.heads->const_data_ptr<bool>() : nullptr;
  p.statistics = call.statistics.mutable_data_ptr<float>();
  p.stride_q_b = call.query.stride(0);
  p.stride_q_h = call.query.stride(1);
  p.stride_k_b = call.key.stride(0);
  p.stride_k_h = call.key.stride(1);
  p.stride_k_s = call.key.stride(2);
  p.stride_flags_b = call.key_flags.stride(0);
  if (p.has_values) {
    p.stride_q_s = call.query.stride(2);
    p.v = call.value->const_data_ptr();
    p.stride_v_b = call.value->stride(0);
    p.stride_v_h = call.value->stride(1);
    p.stride_v_s = call.value->stride(2);
    p.out = call.result.mutable_data_ptr();
  } else {
    p.image_attention = call.result.mutable_data_ptr<float>();
  }
  p.scale = scale_or_default(scale, p.d);
  p.softcap = checked_softcap(softcap);
  if (gate != nullptr) {
    p.gate = gate_params(*gate);
  }
  call.params = p;
  return call;
}

SoftmaxCall check_softmax(const Tensor& scores, const Tensor& key_flags,
                          const std::optional<Tensor>& heads, const GateArguments& gate) {
  SoftmaxParams p;
  check_dims("scores", scores, 4, "[B, Hq, Sq, Skv]");
  p.dtype = kernel_dtype("scores", scores);
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
