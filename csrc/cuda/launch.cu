#include "cuda/launch.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/split_policy.h"
#include "cuda/kernels/merge_decode.cuh"
#include "cuda/kernels/merge_row_statistics.cuh"
#include "cuda/kernels/plain_split.cuh"
#include "cuda/kernels/softmax_rows.cuh"

namespace vrga::gpu {

template <class T, int kDim>
void launch_tensor_split(const SplitParams& params, const CallPlan& plan, const Device& device,
                         Stream stream);  // instantiations/

namespace {

// Calls f with a value of the kernels' scalar type.
template <class F>
void with_scalar(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Float16{});
  }
  throw std::invalid_argument("dtype: wanted float32, bfloat16 or float16");
}

template <class T>
void launch_tensor(const SplitParams& params, const CallPlan& plan, const Device& device,
                   Stream stream) {
  switch (params.attention.d) {
    case 64:
      return launch_tensor_split<T, 64>(params, plan, device, stream);
    case 80:
      return launch_tensor_split<T, 80>(params, plan, device, stream);
    case 96:
      return launch_tensor_split<T, 96>(params, plan, device, stream);
    case 128:
      return launch_tensor_split<T, 128>(params, plan, device, stream);
    case 256:
      return launch_tensor_split<T, 256>(params, plan, device, stream);
    default:
      throw std::invalid_argument("head dim: tensor cores serve 64, 80, 96, 128 and 256, got " +
                                  std::to_string(params.attention.d));
  }
}

void launch_split(const SplitParams& params, const CallPlan& plan, const Device& device,
                  Stream stream) {
  if (plan.path == Path::kTensor) {
    if (params.attention.dtype == DType::kBFloat16) {
      return launch_tensor<BFloat16>(params, plan, device, stream);
    }
    return launch_tensor<Float16>(params, plan, device, stream);
  }
  with_scalar(params.attention.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    if (params.attention.has_values) {
      launch(plain_split<T, true>, "decode_attention", plan.blocks, kPlainThreads,
             plain_shared_bytes(plan.pitch), device.overlaps_launches, stream, params);
    } else {
      launch(plain_split<T, false>, "row_statistics", plan.blocks, kPlainThreads,
             plain_shared_bytes(plan.pitch), device.overlaps_launches, stream, params);
    }
  });
}

SplitParams split_params(const AttentionParams& params, const CallPlan& plan,
                         const Workspace& workspace) {
  SplitParams p;
  p.attention = params;
  p.partial_sums = workspace.partial_sums;
  p.partial_states = static_cast<PartialState*>(workspace.partial_states);
  p.splits = plan.splits;
  p.group = static_cast<int32_t>(params.h_q / params.h_kv);
  p.pitch = plan.pitch;
  p.stored_planes = plan.stored_planes;
  p.planes = plan.planes;
  p.by_row_blocks = Divisor(plan.row_blocks);
  p.by_splits = Divisor(plan.splits);
  p.by_h_kv = Divisor(params.h_kv);
  p.by_h_q = Divisor(params.h_q);
  p.by_s_q = Divisor(params.s_q);
  return p;
}

}  // namespace

bool overlaps_launches() {
  return ptx_version(softmax_rows<float>) >= 90;  // all kernels are built for the same devices
}

void launch_attention(const AttentionParams& params, const CallPlan& plan,
                      const Workspace& workspace, const Device& device, StreamHandle handle) {
  if (const char* reason = unsupported(params)) {
    throw std::invalid_argument(reason);
  }
  if (plan.blocks == 0) {
    return;
  }
  const auto stream = static_cast<Stream>(handle);
  SplitParams p = split_params(params, plan, workspace);
  if (!params.has_values) {
    const int64_t chunks = std::max<int64_t>(1, ceil_div(params.n_flags, kRowChunk));
    p.by_chunks = Divisor(chunks);
    launch_split(p, plan, device, stream);
    launch(merge_row_statistics, "row_statistics merge", params.b * params.h_q * chunks,
           kRowThreads, 0, device.overlaps_launches, stream, p);
    return;
  }
  launch_split(p, plan, device, stream);
  if (plan.splits == 1) {
    return;
  }
  with_scalar(params.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const auto merge = plan.pitch <= kMergeColumns ? merge_decode<T, 1> : merge_decode<T, 2>;
    launch(merge, "decode_attention merge", params.b * params.h_q * params.s_q, kMergeThreads,
           merge_shared_bytes(plan.pitch), device.overlaps_launches, stream, p);
  });
}

void launch_softmax(const SoftmaxParams& params, const Device& device, StreamHandle handle) {
  const int64_t rows = params.b * params.h_q * params.s_q;
  if (rows == 0) {
    return;
  }
  const auto stream = static_cast<Stream>(handle);
  with_scalar(params.dtype, [&](auto scalar) {
    launch(softmax_rows<decltype(scalar)>, "reweighted_softmax", rows, kSoftmaxThreads,
           kSoftmaxWarps * sizeof(SoftmaxState), device.overlaps_launches, stream, params);
  });
}

}  // namespace vrga::gpu
