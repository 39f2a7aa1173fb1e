// Cases of check_kernels.cpp, buffers for them, and the row that plain fp64 loops expect.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "core/params.h"
#include "cuda/kernels/primitives.cuh"

namespace {

using vrga::DType;
using vrga::GateKind;
using vrga::MaskKind;

struct Case {
  const char* name;
  DType dtype;
  int64_t b, h_q, h_kv, s_q, s_kv, d;
  int64_t n_flags;
  MaskKind mask;
  GateKind gate;
  float focus_weight, image_weight, softcap;
  int multiprocessors;  // 0: a single split
};

constexpr DType kB = DType::kBFloat16, kH = DType::kFloat16, kF = DType::kFloat32;
constexpr GateKind kS = GateKind::kStatic, kD = GateKind::kDynamic;
constexpr MaskKind kNo = MaskKind::kNone, kBool = MaskKind::kBool, kAdd = MaskKind::kFloat32;

// The first kSmall ones are also run under ThreadSanitizer.
const Case kCases[] = {
    {"narrow, one split", kB, 1, 3, 1, 1, 97, 64, 80, kNo, kD, 1.5f, 1.0f, 0.0f, 1},
    {"narrow, splits, bool mask", kH, 1, 2, 2, 1, 321, 64, 200, kBool, kS, 1.5f, 1.0f, 0.0f, 4},
    {"wide, two row blocks", kB, 1, 9, 1, 2, 130, 64, 130, kAdd, kD, 2.0f, 0.5f, 0.0f, 4},
    {"plain", kF, 1, 3, 1, 2, 300, 24, 280, kBool, kD, 1.5f, 1.0f, 20.0f, 2},
    {"narrow, the ring goes round", kB, 1, 2, 1, 1, 460, 64, 300, kNo, kD, 1.5f, 1.0f, 0.0f, 1},
    {"splits, padding", kB, 1, 2, 1, 1, 1300, 64, 1000, kBool, kD, 1.5f, 1.0f, 0.0f, 40},
    {"narrow 80", kB, 2, 7, 1, 1, 191, 80, 150, kBool, kD, 1.5f, 1.0f, 0.0f, 4},
    {"narrow 96, soft-cap", kH, 1, 8, 2, 1, 200, 96, 200, kAdd, kD, 1.5f, 1.0f, 15.0f, 2},
    {"narrow 128", kB, 1, 14, 2, 1, 513, 128, 300, kNo, kD, 1.5f, 1.0f, 0.0f, 4},
    {"narrow 128, mask mode", kB, 1, 4, 1, 1, 140, 128, 140, kNo, kS, 1.0f, 0.0f, 0.0f, 1},
    {"wide 128", kB, 1, 16, 1, 1, 400, 128, 333, kBool, kD, 1.5f, 1.0f, 0.0f, 4},
    {"wide 80, verification", kH, 1, 6, 2, 5, 129, 80, 64, kBool, kD, 1.5f, 1.0f, 0.0f, 2},
    {"256", kB, 1, 5, 1, 1, 200, 256, 128, kBool, kD, 1.5f, 1.0f, 0.0f, 2},
    {"256, two row blocks", kH, 1, 10, 1, 1, 129, 256, 60, kAdd, kS, 1.5f, 1.0f, 0.0f, 1},
    {"plain, mask mode in fp16", kH, 1, 4, 2, 1, 260, 40, 200, kNo, kS, 1.0f, 0.0f, 0.0f, 2},
    {"more splits than lanes", kB, 1, 2, 1, 1, 8192, 64, 6000, kNo, kD, 1.5f, 1.0f, 0.0f, 40},
    {"256, splits of two turns", kB, 1, 2, 1, 1, 2560, 256, 1500, kNo, kD, 1.5f, 1.0f, 0.0f, 40},
    {"wide, static, splits", kB, 1, 12, 1, 1, 400, 64, 333, kNo, kS, 1.5f, 1.0f, 0.0f, 4},
    {"plain, static, splits", kF, 1, 3, 1, 1, 700, 24, 500, kBool, kS, 1.5f, 1.0f, 0.0f, 4},
    {"no flags", kB, 1, 2, 1, 1, 70, 64, 0, kNo, kD, 1.5f, 1.0f, 0.0f, 1},
    {"one key", kB, 1, 2, 1, 1, 1, 128, 1, kNo, kD, 1.5f, 1.0f, 0.0f, 4},
    {"more tiles than marks", kB, 1, 1, 1, 1, 60000, 64, 3000, kBool, kD, 1.5f, 1.0f, 0.0f, 0},
    {"no key", kB, 1, 2, 1, 1, 0, 64, 0, kNo, kD, 1.5f, 1.0f, 0.0f, 4},
};
constexpr int kSmall = 6;

std::mt19937_64 random_bits{7};
double normal() {
  static std::normal_distribution<double> distribution;
  return distribution(random_bits);
}
bool chance(double probability) {
  return std::uniform_real_distribution<double>()(random_bits) < probability;
}

size_t size_of(DType dtype) {
  return dtype == kF ? 4 : 2;
}

// `count` values of a dtype in a heap block of exactly that size.
struct Values {
  DType dtype;
  std::unique_ptr<void, void (*)(void*)> data{nullptr, std::free};

  Values(DType dtype, int64_t count) : dtype(dtype) {
    void* memory = nullptr;
    const size_t bytes = count * size_of(dtype);
    if (posix_memalign(&memory, 16, bytes > 0 ? bytes : 1) != 0) {
      std::abort();
    }
    std::memset(memory, 0xff, bytes);
    data.reset(memory);
  }
  void set(int64_t i, double value) {
    const auto f = static_cast<float>(value);
    if (dtype == kF) {
      static_cast<float*>(data.get())[i] = f;
    } else if (dtype == kB) {
      static_cast<vrga::gpu::BFloat16*>(data.get())[i] = vrga::gpu::narrow<vrga::gpu::BFloat16>(f);
    } else {
      static_cast<vrga::gpu::Float16*>(data.get())[i] = vrga::gpu::narrow<vrga::gpu::Float16>(f);
    }
  }
  double get(int64_t i) const {
    if (dtype == kF) {
      return static_cast<const float*>(data.get())[i];
    }
    return dtype == kB ? vrga::gpu::widen(static_cast<const vrga::gpu::BFloat16*>(data.get())[i])
                       : vrga::gpu::widen(static_cast<const vrga::gpu::Float16*>(data.get())[i]);
  }
};

int failures = 0;

void compare(const Case& c, const char* what, int64_t i, double got, double want,
             double tolerance) {
  if (!(std::abs(got - want) <= tolerance)) {
    if (++failures <= 20) {
      std::fprintf(stderr, "%s: %s[%lld]: got %.9g, want %.9g\n", c.name, what,
                   static_cast<long long>(i), got, want);
    }
  }
}

struct Row {
  std::vector<double> scores, a, weighted;  // a: plain, weighted: after the gate
  double ratio = 0, entropy = 0, joint = 0;
  bool gate = false, decided = true;  // decided: not within rounding of a threshold
};

Row reference_row(const std::vector<double>& scores, const std::vector<bool>& attended,
                  const uint8_t* flags, int64_t n_flags, const vrga::GateParams& gate,
                  bool enabled) {
  Row row;
  const size_t keys = scores.size();
  row.scores = scores;
  row.a.assign(keys, 0.0);
  double m = -INFINITY, z = 0, share = 0, total = 0;
  int64_t count = 0, n = 0;
  for (size_t j = 0; j < keys; ++j) {
    if (attended[j]) {
      m = std::max(m, scores[j]);
      ++count;
    }
  }
  for (size_t j = 0; j < keys; ++j) {
    row.a[j] = attended[j] ? std::exp(scores[j] - m) : 0.0;
    z += row.a[j];
  }
  const auto flag = [&](size_t j) { return static_cast<int64_t>(j) < n_flags ? flags[j] : 0; };
  for (size_t j = 0; j < keys; ++j) {
    row.a[j] = count > 0 ? row.a[j] / z : 0.0;
    if ((flag(j) & 1) != 0 && attended[j]) {
      ++n;
      share += row.a[j];
      row.joint -= row.a[j] > 0 ? row.a[j] * std::log(row.a[j]) : 0;
    }
  }
  if (n > 0 && share > 0) {
    row.ratio = share * count / n;
    row.entropy = row.joint / share + std::log(share);
  }
  row.gate = enabled && count > 0;
  if (gate.kind == kD) {
    const double second = gate.entropy_factor * row.joint;
    row.decided =
        std::abs(row.ratio - gate.min_ratio) > 1e-4 && std::abs(row.ratio - second) > 1e-4;
    row.gate = row.gate && row.ratio > gate.min_ratio && row.ratio > second;
  }
  row.weighted = row.a;
  for (size_t j = 0; j < keys; ++j) {
    row.weighted[j] *= flag(j) & 2 ? gate.focus_weight : flag(j) & 1 ? gate.image_weight : 1.0f;
    total += row.weighted[j];
  }
  row.gate = row.gate && total != 0;
  for (size_t j = 0; j < keys; ++j) {
    row.weighted[j] = row.gate ? row.weighted[j] / total : row.a[j];
  }
  return row;
}

void compare_statistics(const Case& c, const Row& row, const float* got, int64_t i,
                        bool with_gate) {
  compare(c, "image_ratio", i, got[0], row.ratio, 2e-5 * (1 + row.ratio));
  compare(c, "image_entropy", i, got[1], row.entropy, 4e-5);
  compare(c, "joint_entropy", i, got[2], row.joint, 4e-5);
  if (with_gate && row.decided) {
    compare(c, "gate", i, got[3], row.gate ? 1.0 : 0.0, 0.0);
  }
}

}  // namespace
