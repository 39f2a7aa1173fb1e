// Plain facts about this build; no tensor, no torch header.
#include <pybind11/pybind11.h>

#include <string>

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "Facts fixed when vrga_ext was compiled; see vrga_ext.build_info().";
  m.attr("torch_version") = VRGA_TORCH_VERSION;
  m.attr("compiler") = compiler();
  m.attr("cuda_architectures") = VRGA_CUDA_ARCHITECTURES;
  m.attr("cuda_version") = VRGA_CUDA_VERSION;
  m.attr("cuda_missing") = VRGA_CUDA_MISSING;
  m.attr("source_hash") = VRGA_SOURCE_HASH;
}
