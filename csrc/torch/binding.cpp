// The schemas of torch.ops.vrga_ext. Each device registers its kernels in cpu_ops.cpp and
// cuda_ops.cpp; the shapes of the results under tracing are in vrga_ext/_library.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vrga_ext, m) {
  m.def(
      "decode_attention(Tensor query, Tensor key, Tensor value, Tensor key_flags, "
      "Tensor? attn_mask, Tensor? heads, float? scale, float softcap, str gate, "
      "float focus_weight, float image_weight, float min_ratio, float entropy_factor) "
      "-> (Tensor output, Tensor statistics)");
  m.def(
      "row_statistics(Tensor query, Tensor key, Tensor key_flags, Tensor? attn_mask, "
      "float? scale, float softcap) -> (Tensor image_attention, Tensor statistics)");
  m.def(
      "reweighted_softmax(Tensor scores, Tensor key_flags, Tensor? heads, str gate, "
      "float focus_weight, float image_weight, float min_ratio, float entropy_factor) "
      "-> (Tensor probabilities, Tensor statistics)");
  m.def("_simd_level(str name) -> str");
  m.def("_simd_levels() -> str");
}
