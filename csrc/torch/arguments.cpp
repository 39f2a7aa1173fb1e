#include "torch/arguments.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

namespace vrga::binding {
namespace {

using torch::headeronly::ScalarType;

std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(t.size(i));
  }
  return text + "]";
}

std::string shape_of(std::initializer_list<Size> sizes) {
  std::string text = "[";
  for (const Size& size : sizes) {
    text += (text.size() > 1 ? ", " : "") + (size.free ? size.free : std::to_string(size.value));
  }
  return text + "]";
}

// As torch prints it in Python.
std::string dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::ComplexFloat:
      return "torch.complex64";
    case ScalarType::ComplexDouble:
      return "torch.complex128";
    default: {  // Bool, BFloat16, Float8_e4m3fn, ...
      std::string name = torch::headeronly::toString(t.scalar_type());
      for (char& letter : name) {
        letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
      }
      return "torch." + name;
    }
  }
}

// The shortest text that reads back as the same number, with a point as Python prints it.
std::string number_of(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  std::string number(text, end);
  return number.find_first_not_of("-0123456789") == std::string::npos ? number + ".0" : number;
}

std::string device_of(const Tensor& t) {
  const auto device = t.device();
  std::string name = t.is_cpu() ? "cpu" : t.is_cuda() ? "cuda" : "another kind of device";
  return t.is_cuda() ? name + ":" + std::to_string(device.index()) : name;
}

// None passes through a schema's Tensor as a tensor that is not defined.
void check_defined(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.defined(), name, ": wanted a tensor, got None");
}

void check_device(const char* name, const Tensor& t, const Tensor& first) {
  STD_TORCH_CHECK(t.device() == first.device(), name, ": wanted on ", device_of(first), ", got ",
                  device_of(t));
}

float checked_weight(const char* name, double weight) {
  STD_TORCH_CHECK(weight >= 0 && weight <= std::numeric_limits<float>::max(), name,
                  ": wanted >= 0 and finite as float32, got ", number_of(weight));
  return static_cast<float>(weight);
}

}  // namespace

void check_dims(const char* name, const Tensor& t, int64_t dims, const char* wanted) {
  check_defined(name, t);
  STD_TORCH_CHECK(t.dim() == dims, name, ": wanted ", wanted, ", got ", shape_of(t));
}

void check_shape(const char* name, const Tensor& t, std::initializer_list<Size> sizes) {
  check_defined(name, t);
  bool same = t.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t i = 0; same && i < t.dim(); ++i) {
    const Size& size = sizes.begin()[i];
    same = size.free != nullptr || t.size(i) == size.value;
  }
  STD_TORCH_CHECK(same, name, ": wanted ", shape_of(sizes), ", got ", shape_of(t));
}

void check_like(const char* name, const Tensor& t, const Tensor& query) {
  STD_TORCH_CHECK(t.scalar_type() == query.scalar_type(), name, ": wanted ", dtype_of(query),
                  ", got ", dtype_of(t));
  check_device(name, t, query);
}

DType kernel_dtype(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": wanted torch.float32, torch.bfloat16 or torch.float16, got ",
                      dtype_of(t));
  }
}

Tensor contiguous_rows(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.stride(last) == 1 || t.size(last) == 1 ? t : torch::stable::contiguous(t);
}

GateParams gate_params(const GateArguments& arguments) {
  GateParams gate;
  if (arguments.kind == "static") {
    gate.kind = GateKind::kStatic;
  } else {
    STD_TORCH_CHECK(arguments.kind == "dynamic", "gate: wanted 'static' or 'dynamic', got '",
                    arguments.kind, "'");
    gate.kind = GateKind::kDynamic;
  }
  gate.focus_weight = checked_weight("focus_weight", arguments.focus_weight);
  gate.image_weight = checked_weight("image_weight", arguments.image_weight);
  gate.min_ratio = static_cast<float>(arguments.min_ratio);
  gate.entropy_factor = static_cast<float>(arguments.entropy_factor);
  return gate;
}

Tensor check_flags(const Tensor& key_flags, const Tensor& first, int64_t b, int64_t s_kv) {
  check_defined("key_flags", key_flags);
  STD_TORCH_CHECK(key_flags.scalar_type() == ScalarType::Byte,
                  "key_flags: wanted torch.uint8, got ", dtype_of(key_flags));
  STD_TORCH_CHECK(key_flags.dim() == 2 && key_flags.size(0) == b && key_flags.size(1) <= s_kv,
                  "key_flags: wanted [", b, ", at most ", s_kv, "], got ", shape_of(key_flags));
  check_device("key_flags", key_flags, first);
  return contiguous_rows(key_flags);
}

std::optional<Tensor> check_heads(const std::optional<Tensor>& heads, const Tensor& first,
                                  int64_t b, int64_t h_q) {
  if (!heads) {
    return std::nullopt;
  }
  STD_TORCH_CHECK(heads->scalar_type() == ScalarType::Bool, "heads: wanted torch.bool, got ",
                  dtype_of(*heads));
  check_shape("heads", *heads, {b, h_q});
  check_device("heads", *heads, first);
  return heads->is_contiguous() ? *heads : torch::stable::contiguous(*heads);
}

std::optional<Tensor> check_mask(const std::optional<Tensor>& attn_mask, const Tensor& first,
                                 const std::array<int64_t, 4>& shape, MaskView& view) {
  if (!attn_mask) {
    return std::nullopt;
  }
  Tensor mask = *attn_mask;
  check_device("attn_mask", mask, first);
  switch (mask.scalar_type()) {
    case ScalarType::Bool:
      view.kind = MaskKind::kBool;
      break;
    case ScalarType::Double:
      mask = torch::stable::to(mask, ScalarType::Float);
      view.kind = MaskKind::kFloat32;
      break;
    case ScalarType::Float:
      view.kind = MaskKind::kFloat32;
      break;
    case ScalarType::BFloat16:
      view.kind = MaskKind::kBFloat16;
      break;
    case ScalarType::Half:
      view.kind = MaskKind::kFloat16;
      break;
    default:
      STD_TORCH_CHECK(false,
                      "attn_mask: wanted one of bool, float32, bfloat16, float16, float64, got ",
                      dtype_of(mask));
  }
  bool fits = mask.dim() >= 1 && mask.dim() <= 4 && mask.size(mask.dim() - 1) == shape[3];
  std::array<int64_t, 4> strides{};
  for (int64_t i = 0; fits && i < mask.dim(); ++i) {
    const int64_t axis = 4 - mask.dim() + i;
    fits = mask.size(i) == shape[axis] || (mask.size(i) == 1 && axis < 3);
    strides[axis] = mask.size(i) == 1 ? 0 : mask.stride(i);
  }
  STD_TORCH_CHECK(fits, "attn_mask: wanted a shape that broadcasts to ",
                  shape_of({shape[0], shape[1], shape[2], shape[3]}),
                  " with a full last dimension, got ", shape_of(mask));
  view.data = mask.const_data_ptr();
  view.stride_b = strides[0];
  view.stride_h = strides[1];
  view.stride_s = strides[2];
  view.stride_k = strides[3];
  return mask;
}

Tensor new_empty(const Tensor& first, std::initializer_list<int64_t> sizes,
                 std::optional<ScalarType> dtype) {
  constexpr size_t kMaxDims = 4;
  const auto dims = static_cast<int64_t>(sizes.size());
  STD_TORCH_CHECK(sizes.size() <= kMaxDims, "new_empty: wanted at most 4 dimensions, got ", dims);
  std::array<int64_t, kMaxDims> strides{};
  int64_t stride = 1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes.begin()[i] > 1 ? sizes.begin()[i] : 1;
  }
  int32_t element = 0, device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(first.get(), &element));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(first.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(first.get(), &index));
  if (dtype) {
    element = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  }
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes.begin(), strides.data(), element, device, index, &made));
  return Tensor(made);
}

void check_heads_divide(int64_t h_q, int64_t h_kv) {
  STD_TORCH_CHECK(h_kv > 0 && h_q % h_kv == 0, "key: wanted a number of heads that divides ", h_q,
                  ", got ", h_kv);
}

float scale_or_default(std::optional<double> scale, int64_t d) {
  return static_cast<float>(scale ? *scale : 1.0 / std::sqrt(static_cast<double>(d > 0 ? d : 1)));
}

float checked_softcap(double softcap) {
  STD_TORCH_CHECK(softcap >= 0, "softcap: wanted >= 0, got ", number_of(softcap));
  return static_cast<float>(softcap);
}

}  // namespace vrga::binding
