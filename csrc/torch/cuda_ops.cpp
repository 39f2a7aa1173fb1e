// CUDA entries of the three operations. They enqueue kernels on the current stream and return; no
// synchronisation, and no memory that torch's allocator did not give, so that they can be captured
// in a CUDA graph.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cuda/launch.h"
#include "torch/arguments.h"
#include "torch/checks.h"
#include "torch/cuda_device.h"

namespace vrga::binding {
namespace {

using torch::headeronly::ScalarType;

// Workspace of one call. Freed when the call returns: the allocator hands the memory to later work
// of the same stream only, which runs after the kernels.
struct Scratch {
  Tensor sums, states;

  Scratch(const Tensor& like, const gpu::CallPlan& plan)
      : sums(new_empty(like, {plan.partial_sums}, ScalarType::Float)),
        states(new_empty(like, {32 * plan.partial_states}, ScalarType::Byte)) {}

  gpu::Workspace workspace() const {
    return {sums.mutable_data_ptr<float>(), states.mutable_data_ptr()};
  }
};

void launch_attention(const AttentionCall& call, const CudaScope& scope) {
  const gpu::CallPlan plan = gpu::plan_attention(call.params, scope.device());
  const Scratch scratch(call.query, plan);
  gpu::launch_attention(call.params, plan, scratch.workspace(), scope.device(), scope.stream());
}

std::tuple<Tensor, Tensor> decode_attention(
    Tensor query, Tensor key, Tensor value, Tensor key_flags, std::optional<Tensor> attn_mask,
    std::optional<Tensor> heads, std::optional<double> scale, double softcap, std::string gate,
    double focus_weight, double image_weight, double min_ratio, double entropy_factor) {
  const CudaScope scope(query);
  const GateArguments settings{gate, focus_weight, image_weight, min_ratio, entropy_factor};
  const AttentionCall call =
      check_attention(query, key, value, key_flags, attn_mask, heads, scale, softcap, &settings);
  launch_attention(call, scope);
  return {call.result, call.statistics};
}

std::tuple<Tensor, Tensor> row_statistics(Tensor query, Tensor key, Tensor key_flags,
                                          std::optional<Tensor> attn_mask,
                                          std::optional<double> scale, double softcap) {
  const CudaScope scope(query);
  const AttentionCall call = check_attention(query, key, std::nullopt, key_flags, attn_mask,
                                             std::nullopt, scale, softcap, nullptr);
  launch_attention(call, scope);
  return {call.result, call.statistics};
}

std::tuple<Tensor, Tensor> reweighted_softmax(Tensor scores, Tensor key_flags,
                                              std::optional<Tensor> heads, std::string gate,
                                              double focus_weight, double image_weight,
                                              double min_ratio, double entropy_factor) {
  const CudaScope scope(scores);
  SoftmaxCall call = check_softmax(scores, key_flags, heads,
                                   {gate, focus_weight, image_weight, min_ratio, entropy_factor});
  gpu::launch_softmax(call.params, scope.device(), scope.stream());
  return {call.probabilities, call.statistics};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vrga_ext, CUDA, m) {
  m.impl("decode_attention", TORCH_BOX(&decode_attention));
  m.impl("row_statistics", TORCH_BOX(&row_statistics));
  m.impl("reweighted_softmax", TORCH_BOX(&reweighted_softmax));
}

}  // namespace vrga::binding
