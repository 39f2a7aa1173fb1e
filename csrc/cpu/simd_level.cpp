#include "cpu/simd_level.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if VRGA_X86
#  include <cpuid.h>
#  if defined(__linux__)
#    include <sys/syscall.h>
#    include <unistd.h>
#  endif
#endif

namespace vrga::cpu {
namespace {

#if VRGA_X86
// Matrix tiles need a permission from the system, once for all threads of the process.
bool may_use_amx_bf16() {
#  if defined(__linux__)
  constexpr unsigned kTile = 1u << 24, kBFloat16 = 1u << 22;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kTile) != 0 &&
         (edx & kBFloat16) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#  else
  return false;
#  endif
}
#endif

struct Level {
  const char* name;
  const KernelTable* kernels;
  bool runs_here;
};

struct Levels {
  Level level[kMaxLevels];
  int count = 0;

  Levels() {
    level[count++] = {"generic", &kGenericKernels, true};
#if VRGA_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    level[count++] = {"avx2", &kAvx2Kernels, avx2};
    level[count++] = {"avx512", &kAvx512Kernels, avx512};
    const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    level[count++] = {"avx512_bf16", &kAvx512Bf16Kernels, avx512_bf16};
    level[count++] = {"amx_bf16", &kAmxBf16Kernels, avx512_bf16 && may_use_amx_bf16()};
#endif
  }

  const Level* find(const char* name) const {
    for (int i = 0; i < count; ++i) {
      if (strcmp(level[i].name, name) == 0) {
        return &level[i];
      }
    }
    return nullptr;
  }

  const Level* checked(const char* source, const char* name) const {
    const Level* found = find(name);
    if (found != nullptr && found->runs_here) {
      return found;
    }
    std::string wanted;
    for (int i = 0; i < count; ++i) {
      if (level[i].runs_here) {
        wanted += (wanted.empty() ? "" : ", ") + std::string(level[i].name);
      }
    }
    throw std::runtime_error(std::string(source) + ": wanted one of " + wanted + ", got '" + name +
                             "'" + (found ? ", which this machine cannot run" : ""));
  }

  const Level* initial() const {
    const char* wanted = std::getenv("VRGA_EXT_SIMD");
    if (wanted != nullptr && wanted[0] != '\0') {
      return checked("VRGA_EXT_SIMD", wanted);
    }
    const Level* best = &level[0];
    for (int i = 1; i < count; ++i) {
      best = level[i].runs_here ? &level[i] : best;
    }
    return best;
  }
};

const Levels& levels() {
  static const Levels instance;
  return instance;
}

std::atomic<const Level*> current{nullptr};

const Level& current_level() {
  const Level* level = current.load();
  if (level == nullptr) {
    level = levels().initial();
    current.store(level);
  }
  return *level;
}

}  // namespace

int compiled_levels(const char* names[kMaxLevels]) {
  for (int i = 0; i < levels().count; ++i) {
    names[i] = levels().level[i].name;
  }
  return levels().count;
}

bool level_runs_here(const char* name) {
  const Level* level = levels().find(name);
  return level != nullptr && level->runs_here;
}

const char* simd_level() {
  return current_level().name;
}

void set_simd_level(const char* name) {
  current.store(levels().checked("level", name));
}

const KernelTable& kernels() {
  return *current_level().kernels;
}

}  // namespace vrga::cpu
