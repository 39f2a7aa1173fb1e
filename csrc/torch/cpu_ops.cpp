// CPU entries of the three operations.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <memory>
#include <tuple>

#include "cpu/scheduler.h"
#include "cpu/simd_level.h"
#include "torch/checks.h"

namespace vrga::binding {
namespace {

// Each thread has a run of neighbouring tasks, so that what it asks for ahead of time is what it
// needs next, and helps the others when it is done: tasks differ in cost (masked blocks are
// skipped), and a machine may be busy with something else. Who runs a task changes no result.
void run_in_parallel(int64_t count, const std::function<void(int64_t)>& task) {
  const int64_t available = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t threads = available < count ? available : count;
  const auto next = std::make_unique<std::atomic<int64_t>[]>(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    next[t] = count * t / threads;
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t) {
    for (int64_t turn = 0; turn < threads; ++turn) {
      const int64_t t = (begin + turn) % threads;
      const int64_t end = count * (t + 1) / threads;
      for (int64_t i = next[t]++; i < end; i = next[t]++) {
        task(i);
      }
    }
  });
}

std::tuple<Tensor, Tensor> decode_attention(
    Tensor query, Tensor key, Tensor value, Tensor key_flags, std::optional<Tensor> attn_mask,
    std::optional<Tensor> heads, std::optional<double> scale, double softcap, std::string gate,
    double focus_weight, double image_weight, double min_ratio, double entropy_factor) {
  const GateArguments settings{gate, focus_weight, image_weight, min_ratio, entropy_factor};
  const AttentionCall call =
      check_attention(query, key, value, key_flags, attn_mask, heads, scale, softcap, &settings);
  cpu::attention(call.params, run_in_parallel);
  return {call.result, call.statistics};
}

std::tuple<Tensor, Tensor> row_statistics(Tensor query, Tensor key, Tensor key_flags,
                                          std::optional<Tensor> attn_mask,
                                          std::optional<double> scale, double softcap) {
  const AttentionCall call = check_attention(query, key, std::nullopt, key_flags, attn_mask,
                                             std::nullopt, scale, softcap, nullptr);
  cpu::attention(call.params, run_in_parallel);
  return {call.result, call.statistics};
}

std::tuple<Tensor, Tensor> reweighted_softmax(Tensor scores, Tensor key_flags,
                                              std::optional<Tensor> heads, std::string gate,
                                              double focus_weight, double image_weight,
                                              double min_ratio, double entropy_factor) {
  SoftmaxCall call = check_softmax(scores, key_flags, heads,
                                   {gate, focus_weight, image_weight, min_ratio, entropy_factor});
  cpu::reweighted_softmax(call.params, run_in_parallel);
  return {call.probabilities, call.statistics};
}

// "" asks for the level in use; a name changes it first.
std::string simd_level(std::string name) {
  if (!name.empty()) {
    cpu::set_simd_level(name.c_str());
  }
  return cpu::simd_level();
}

// The levels that were compiled in, those this machine cannot run in brackets.
std::string simd_levels() {
  const char* names[cpu::kMaxLevels];
  const int count = cpu::compiled_levels(names);
  std::string list;
  for (int i = 0; i < count; ++i) {
    const std::string name = names[i];
    list += (i ? " " : "") + (cpu::level_runs_here(names[i]) ? name : "(" + name + ")");
  }
  return list;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vrga_ext, CPU, m) {
  m.impl("decode_attention", TORCH_BOX(&decode_attention));
  m.impl("row_statistics", TORCH_BOX(&row_statistics));
  m.impl("reweighted_softmax", TORCH_BOX(&reweighted_softmax));
}

STABLE_TORCH_LIBRARY_IMPL(vrga_ext, CompositeExplicitAutograd, m) {
  m.impl("_simd_level", TORCH_BOX(&simd_level));
  m.impl("_simd_levels", TORCH_BOX(&simd_levels));
}

}  // namespace vrga::binding
