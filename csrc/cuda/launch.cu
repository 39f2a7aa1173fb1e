#include "launch.h"

#include <stdexcept>
#include <string>

#include "vrga/merge_splits.cuh"
#include "vrga/plain_split.cuh"
#include "vrga/softmax_rows.cuh"

namespace vrga::gpu {

template <class T, int kDim>
void launch_tensor_split(const SplitParams& params, const CallPlan& plan, bool decode,
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
void launch_tensor(const SplitParams& params, const CallPlan& plan, bool decode, Stream stream) {
  switch (params.decode.d) {
    case 64:
      return launch_tensor_split<T, 64>(params, plan, decode, stream);
    case 80:
      return launch_tensor_split<T, 80>(params, plan, decode, stream);
    case 96:
      return launch_tensor_split<T, 96>(params, plan, decode, stream);
    case 128:
      return launch_tensor_split<T, 128>(params, plan, decode, stream);
    case 256:
      return launch_tensor_split<T, 256>(params, plan, decode, stream);
    default:
      throw std::invalid_argument("head dim: tensor cores serve 64, 80, 96, 128 and 256, got " +
                                  std::to_string(params.decode.d));
  }
}

void launch_split(const SplitParams& params, const CallPlan& plan, bool decode, Stream stream) {
  if (plan.path == Path::kTensor) {
    if (params.decode.dtype == DType::kBFloat16) {
      return launch_tensor<BFloat16>(params, plan, decode, stream);
    }
    return launch_tensor<Float16>(params, plan, decode, stream);
  }
  with_scalar(params.decode.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    if (decode) {
      launch(plain_split<T, true>, "decode_attention", plan.blocks, kPlainThreads,
             plain_shared_bytes(plan.pitch), false, stream, params);
    } else {
      launch(plain_split<T, false>, "row_statistics", plan.blocks, kPlainThreads,
             plain_shared_bytes(plan.pitch), false, stream, params);
    }
  });
}

SplitParams split_params(const DecodeParams& params, const CallPlan& plan,
                         const Workspace& workspace) {
  SplitParams p;
  p.decode = params;
  p.partial_sums = workspace.partial_sums;
  p.partial_states = static_cast<PartialState*>(workspace.partial_states);
  p.splits = plan.splits;
  p.row_blocks = plan.row_blocks;
  p.pitch = plan.pitch;
  p.weighted = plan.weighted;
  return p;
}

void refuse(const char* reason) {
  if (reason != nullptr) {
    throw std::invalid_argument(reason);
  }
}

}  // namespace

void launch_decode(const DecodeParams& params, const CallPlan& plan, const Workspace& workspace,
                   const Device& device, StreamHandle handle) {
  refuse(unsupported(params));
  if (plan.blocks == 0) {
    return;
  }
  const auto stream = static_cast<Stream>(handle);
  const SplitParams p = split_params(params, plan, workspace);
  launch_split(p, plan, true, stream);
  if (plan.splits == 1) {
    return;
  }
  with_scalar(params.dtype, [&](auto scalar) {
    launch(merge_decode<decltype(scalar)>, "decode_attention merge",
           params.b * params.h_q * params.s_q, kMergeThreads,
           merge_shared_bytes(plan.pitch, plan.splits), device.overlaps_launches, stream, p);
  });
}

void launch_rows(const RowStatisticsParams& params, const CallPlan& plan,
                 const Workspace& workspace, const Device& device, StreamHandle handle) {
  refuse(unsupported(params));
  if (plan.blocks == 0) {
    return;
  }
  const auto stream = static_cast<Stream>(handle);
  SplitParams p = split_params(as_decode(params), plan, workspace);
  p.image_attention = params.image_attention;
  launch_split(p, plan, false, stream);
  const int64_t chunks = params.n_flags > 0 ? (params.n_flags + kRowChunk - 1) / kRowChunk : 1;
  launch(merge_row_statistics, "row_statistics merge", params.b * params.h_q * chunks,
         kMergeThreads, 2 * sizeof(float), device.overlaps_launches, stream, p);
}

void launch_softmax(const SoftmaxParams& params, StreamHandle handle) {
  const int64_t rows = params.b * params.h_q * params.s_q;
  if (rows == 0) {
    return;
  }
  const auto stream = static_cast<Stream>(handle);
  with_scalar(params.dtype, [&](auto scalar) {
    launch(softmax_rows<decltype(scalar)>, "reweighted_softmax", rows, kSoftmaxThreads,
           kSoftmaxWarps * sizeof(SoftmaxState), false, stream, params);
  });
}

}  // namespace vrga::gpu
