// What the kernels are given: raw pointers, a shape beside every pointer, strides in elements. No
// framework header here.
#pragma once

#include <cstdint>

namespace vrga {

// One bit each in `key_flags`.
constexpr uint8_t kFlagImage = 1;  // the key is an image token (the set V)
constexpr uint8_t kFlagFocus = 2;  // the key is question-relevant (the set T_q)

// Last dimension of the statistics tensors.
constexpr int kDecodeStatistics = 4;  // image_ratio, image_entropy, joint_entropy, gate (0 or 1)
constexpr int kRowStatistics = 3;     // image_ratio, image_entropy, joint_entropy

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

enum class MaskKind : int32_t { kNone, kBool, kFloat32, kBFloat16, kFloat16 };

enum class GateKind : int32_t { kStatic, kDynamic };

// Boolean: true = attend. Floating: added to the scaled score; -inf or anything at or below the
// lowest finite value of the mask's dtype removes the key. A broadcast dimension has stride 0.
struct MaskView {
  const void* data = nullptr;  // [B, Hq, Sq, Skv]
  MaskKind kind = MaskKind::kNone;
  int64_t stride_b = 0, stride_h = 0, stride_s = 0, stride_k = 0;
};

struct GateParams {
  GateKind kind = GateKind::kDynamic;
  float focus_weight = 1.0f;  // w of a key with the focus bit
  // w of a key with the image bit and without the focus bit; every other key has w = 1
  float image_weight = 1.0f;
  float min_ratio = 0.0f;       // dynamic: R_img must exceed it
  float entropy_factor = 0.0f;  // dynamic: R_img must exceed it times H_joint
};

// decode_attention; without V and an output (has_values = false): row_statistics, whose query has
// Sq = 1. A flag, not a null V: a V without keys has no memory either.
struct AttentionParams {
  const void* q = nullptr;  // [B, Hq, Sq, D], last dim contiguous
  const void* k = nullptr;  // [B, Hkv, Skv, D], last dim contiguous
  const void* v = nullptr;  // [B, Hkv, Skv, Dv], last dim contiguous
  // [B, N], last dim contiguous, N <= Skv; keys beyond N have flags 0
  const uint8_t* key_flags = nullptr;
  // [B, Hq] contiguous, or null: every head may be gated
  const bool* heads = nullptr;
  void* out = nullptr;               // [B, Hq, Sq, Dv] contiguous, dtype of q
  float* image_attention = nullptr;  // [B, Hq, N] contiguous; without values only
  // [B, Hq, Sq, kDecodeStatistics] contiguous; without values [B, Hq, kRowStatistics]
  float* statistics = nullptr;
  MaskView mask;

  bool has_values = true;
  DType dtype = DType::kFloat32;  // of q, k, v and out
  int64_t b = 0, h_q = 0, h_kv = 0, s_q = 0, s_kv = 0, d = 0, d_v = 0, n_flags = 0;
  int64_t stride_q_b = 0, stride_q_h = 0, stride_q_s = 0;
  int64_t stride_k_b = 0, stride_k_h = 0, stride_k_s = 0;
  int64_t stride_v_b = 0, stride_v_h = 0, stride_v_s = 0;
  int64_t stride_flags_b = 0;

  float scale = 1.0f;
  float softcap = 0.0f;  // 0 = off; else s = softcap * tanh(scale * q.k / softcap), before the mask
  GateParams gate;       // with values only
};

struct SoftmaxParams {
  const void* scores = nullptr;  // [B, Hq, Sq, Skv], last dim contiguous; at or below the lowest
                                 // finite value = masked
  const uint8_t* key_flags = nullptr;  // [B, N], last dim contiguous
  const bool* heads = nullptr;         // [B, Hq] contiguous, or null
  void* probabilities = nullptr;       // [B, Hq, Sq, Skv] contiguous, dtype of scores
  float* statistics = nullptr;         // [B, Hq, Sq, kDecodeStatistics] contiguous

  DType dtype = DType::kFloat32;  // of scores and probabilities
  int64_t b = 0, h_q = 0, s_q = 0, s_kv = 0, n_flags = 0;
  int64_t stride_s_b = 0, stride_s_h = 0, stride_s_s = 0;
  int64_t stride_flags_b = 0;

  GateParams gate;
};

}  // namespace vrga
