// In place of csrc/cpu/simd_level.cpp: the instruction sets that avx512_by_loops.h stands for.
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/simd_level.h"

namespace vrga::cpu {
namespace {

struct Level {
  const char* name;
  const KernelTable* kernels;
};
constexpr Level kLevels[] = {{"avx512", &kAvx512Kernels},
                             {"avx512_bf16", &kAvx512Bf16Kernels},
                             {"amx_bf16", &kAmxBf16Kernels}};

const Level* current = kLevels;

}  // namespace

int compiled_levels(const char* names[kMaxLevels]) {
  int count = 0;
  for (const Level& level : kLevels) {
    names[count++] = level.name;
  }
  return count;
}

bool level_runs_here(const char*) {
  return true;
}

const char* simd_level() {
  return current->name;
}

void set_simd_level(const char* name) {
  for (const Level& level : kLevels) {
    if (strcmp(level.name, name) == 0) {
      current = &level;
      return;
    }
  }
  throw std::runtime_error(std::string("level: unknown: ") + name);
}

const KernelTable& kernels() {
  return *current->kernels;
}

}  // namespace vrga::cpu
