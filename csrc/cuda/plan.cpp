#include "cuda/plan.h"

#include <algorithm>
#include <limits>

#include "core/split_policy.h"

namespace vrga::gpu {
namespace {

constexpr int64_t kTensorMinKeys = 128;  // per split
constexpr int64_t kPlainMinKeys = 256;
// Blocks per multiprocessor, by registers and shared memory: two, but for D = 256 only where there
// is shared memory for two of 73 KB.
constexpr int kBlocks = 2;
constexpr int kTwoWideBlocks = 150 * 1024;
// Row statistics, which need fewer registers: as many blocks as fit (four on sm_90 and sm_100, by
// shared memory two or three elsewhere), of 512 keys or more; where that leaves multiprocessors
// idle, smaller ones.
constexpr int kRowStatisticsBlocks = 4;
constexpr int64_t kRowStatisticsMinKeys = 512;
constexpr int64_t kMaxSplits = 1024;

// fp16 keeps p (at most 2^8) and w p in [6e-8, 65504]. Beyond these weights one of them would lose
// its digits (or all of w p, where the kept keys lie far below the removed ones), so the plain path
// takes the call.
constexpr float kHalfMinWeight = 1.0f / 256.0f;
constexpr float kHalfMaxWeight = 128.0f;

bool half_holds(const GateParams& gate) {
  const float lowest = std::min(gate.focus_weight, gate.image_weight);
  const float highest = std::max(gate.focus_weight, gate.image_weight);
  return lowest >= kHalfMinWeight && highest <= kHalfMaxWeight;
}

// Every row starts at a multiple of `bytes`; elements have two.
bool rows_aligned(int64_t bytes, const void* data, int64_t stride_b, int64_t stride_h,
                  int64_t stride_s) {
  const auto aligned = [&](int64_t stride) { return 2 * stride % bytes == 0; };
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
         aligned(stride_b) && aligned(stride_h) && aligned(stride_s);
}

// Whether a head's gate follows from the mask of heads alone. The exception to a static gate, no
// weighted mass left, needs a weight that removes keys.
bool gate_is_known(const GateParams& gate) {
  constexpr float kLeavesMass = 1e-3f;
  return gate.kind == GateKind::kStatic && gate.focus_weight >= kLeavesMass &&
         gate.image_weight >= kLeavesMass;
}

bool tensor_dim(int64_t d) {
  return d == 64 || d == 80 || d == 96 || d == 128 || d == 256;
}

bool tensor_path(const AttentionParams& p) {
  if (p.dtype == DType::kFloat32 || !tensor_dim(p.d) ||
      !rows_aligned(4, p.q, p.stride_q_b, p.stride_q_h, p.stride_q_s) ||
      !rows_aligned(16, p.k, p.stride_k_b, p.stride_k_h, p.stride_k_s)) {
    return false;
  }
  if (!p.has_values) {
    return true;
  }
  const bool weights_fit = p.dtype != DType::kFloat16 || p.n_flags == 0 || half_holds(p.gate);
  return weights_fit && p.d_v == p.d &&
         rows_aligned(16, p.v, p.stride_v_b, p.stride_v_h, p.stride_v_s);
}

}  // namespace

const char* unsupported(const AttentionParams& p) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();  // kernels count in 32 bits
  if (p.d > kMaxHeadDim) {
    return "query: wanted a head dim of at most 256";
  }
  if (p.d_v > kMaxHeadDim) {
    return "value: wanted a head dim of at most 256";
  }
  if (p.b * p.h_q * p.s_q > kMax) {
    return "query: wanted fewer than 2^31 rows";
  }
  return p.s_kv > kMax ? "key: wanted fewer than 2^31 keys" : nullptr;
}

CallPlan plan_attention(const AttentionParams& p, const Device& device) {
  const bool decode = p.has_values;
  const int64_t rows = p.h_q / p.h_kv * p.s_q;
  CallPlan plan;
  plan.path = tensor_path(p) ? Path::kTensor : Path::kPlain;
  const bool tensor = plan.path == Path::kTensor;
  // The accumulators of 16 rows and both sums fill the registers at D = 128.
  plan.row_slots = tensor && decode && rows > 8 && p.d <= 128 ? 2 : 1;
  plan.rows_per_block = tensor ? 8 * plan.row_slots : 4;
  plan.row_blocks = static_cast<int32_t>(ceil_div(rows, plan.rows_per_block));
  if (decode && p.n_flags > 0 && (p.gate.focus_weight != 1.0f || p.gate.image_weight != 1.0f)) {
    plan.planes = gate_is_known(p.gate) ? Planes::kByGate : Planes::kBoth;
  }
  plan.stored_planes = plan.planes == Planes::kBoth ? 2 : 1;

  // One wave of blocks and no second, fuller or emptier one: as many splits as fit into it.
  const int64_t items = p.b * p.h_kv * plan.row_blocks;
  const auto splits_of = [&](int blocks, int64_t min_keys) {
    const int64_t wave = int64_t{device.multiprocessors} * blocks;
    const int64_t per_item = items > 0 ? std::max<int64_t>(1, wave / items) : 1;
    const int64_t tile = tensor ? kTensorTile : kPlainTile;
    return plan_splits(items, p.s_kv, tile, min_keys, items * per_item).splits;
  };
  int64_t splits = 1;
  if (!tensor) {
    splits = splits_of(kBlocks, kPlainMinKeys);
  } else if (p.d > 128) {
    splits = splits_of(device.shared_bytes < kTwoWideBlocks ? 1 : kBlocks, kTensorMinKeys);
  } else if (decode) {
    splits = splits_of(kBlocks, kTensorMinKeys);
  } else {
    splits = std::max(splits_of(kRowStatisticsBlocks, kRowStatisticsMinKeys),
                      splits_of(1, kTensorMinKeys));
  }
  plan.splits = static_cast<int32_t>(std::min(splits, kMaxSplits));
  plan.blocks = items * plan.splits;
  const int64_t partials = p.b * p.h_q * p.s_q * plan.splits;
  if (decode) {
    plan.pitch = static_cast<int32_t>(ceil_div(std::max<int64_t>(1, p.d_v), 4) * 4);
  }
  if (!decode || plan.splits > 1) {
    plan.partial_states = partials;
    plan.partial_sums = partials * plan.stored_planes * plan.pitch;
  }
  return plan;
}

}  // namespace vrga::gpu
