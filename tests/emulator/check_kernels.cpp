// The kernels on the emulator against plain fp64 loops, without Python: the form in which the
// sanitizers run and in which planted faults must be caught. Every buffer is a heap block of its
// exact size; rows of K and V that nothing attends to hold NaN; outputs start as NaN.
//
//   check_kernels [--small]      exit status 0: every case agrees
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "check_kernels.h"
#include "cuda/launch.h"
#include "simt.h"

namespace {

void run(const Case& c) {
  const int64_t rows = c.b * c.h_q * c.s_q, group = c.h_q / c.h_kv;
  const vrga::gpu::Device device{c.multiprocessors, 228 * 1024, true};
  Values q(c.dtype, rows * c.d), k(c.dtype, c.b * c.h_kv * c.s_kv * c.d),
      v(c.dtype, c.b * c.h_kv * c.s_kv * c.d), out(c.dtype, rows * c.d);
  std::vector<uint8_t> flags(c.b * c.n_flags);
  std::unique_ptr<bool[]> heads(new bool[c.b * c.h_q]);
  std::vector<bool> attended(rows * c.s_kv, true);
  Values additive(kF, rows * c.s_kv);
  std::unique_ptr<uint8_t[]> boolean(new uint8_t[rows * c.s_kv]);
  std::vector<double> bias(rows * c.s_kv, 0.0);

  for (int64_t i = 0; i < rows * c.d; ++i) {
    q.set(i, normal());
  }
  for (auto& flag : flags) {
    flag = chance(0.5) ? (chance(0.3) ? 3 : 1) : 0;
  }
  for (int64_t i = 0; i < c.b * c.h_q; ++i) {
    heads[i] = !chance(0.3);
  }
  if (c.mask != kNo) {
    // The end is used by nobody, like the rest of a static cache, and with many splits the
    // beginning, like padding: the first tiles of most splits. The last row attends to nothing.
    const int64_t begin = c.multiprocessors == 40 ? c.s_kv / 2 : 0, end = c.s_kv - c.s_kv / 4;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < c.s_kv; ++j) {
        const int64_t i = r * c.s_kv + j;
        attended[i] =
            j >= begin && j < end && j % 13 != 5 && !chance(0.2) && (rows == 1 || r != rows - 1);
        bias[i] = c.mask == kAdd && attended[i] ? normal() : 0.0;
        boolean[i] = attended[i];
        additive.set(i, attended[i] ? bias[i] : j % 2 ? -INFINITY : -3.4028234663852886e38);
        bias[i] = c.mask == kAdd && attended[i] ? additive.get(i) : 0.0;
      }
    }
  }
  for (int64_t kv = 0; kv < c.b * c.h_kv; ++kv) {
    for (int64_t j = 0; j < c.s_kv; ++j) {
      bool used = false;
      for (int64_t r = kv * group * c.s_q; r < (kv + 1) * group * c.s_q; ++r) {
        used = used || attended[r * c.s_kv + j];
      }
      for (int64_t i = 0; i < c.d; ++i) {
        k.set((kv * c.s_kv + j) * c.d + i, used ? normal() : NAN);
        v.set((kv * c.s_kv + j) * c.d + i, used ? normal() : NAN);
      }
    }
  }

  std::vector<float> statistics(rows * 4, NAN);
  vrga::AttentionParams p;
  p.q = q.data.get();
  p.k = k.data.get();
  p.v = v.data.get();
  p.key_flags = flags.data();
  p.heads = heads.get();
  p.out = out.data.get();
  p.statistics = statistics.data();
  p.mask.kind = c.mask;
  p.mask.data = c.mask == kBool ? static_cast<const void*>(boolean.get()) : additive.data.get();
  p.mask.stride_k = 1;
  p.mask.stride_s = c.s_kv;
  p.mask.stride_h = c.s_q * c.s_kv;
  p.mask.stride_b = c.h_q * c.s_q * c.s_kv;
  p.dtype = c.dtype;
  p.b = c.b;
  p.h_q = c.h_q;
  p.h_kv = c.h_kv;
  p.s_q = c.s_q;
  p.s_kv = c.s_kv;
  p.d = p.d_v = c.d;
  p.n_flags = c.n_flags;
  p.stride_q_s = c.d;
  p.stride_q_h = c.s_q * c.d;
  p.stride_q_b = c.h_q * c.s_q * c.d;
  p.stride_k_s = p.stride_v_s = c.d;
  p.stride_k_h = p.stride_v_h = c.s_kv * c.d;
  p.stride_k_b = p.stride_v_b = c.h_kv * c.s_kv * c.d;
  p.stride_flags_b = c.n_flags;
  p.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.d)));
  p.softcap = c.softcap;
  p.gate = {c.gate, c.focus_weight, c.image_weight, 0.9f, 0.2f};

  const auto plan = vrga::gpu::plan_attention(p, device);
  Values sums(kF, plan.partial_sums);
  std::unique_ptr<char[]> states(new char[plan.partial_states * 32]);
  vrga::gpu::launch_attention(p, plan, {static_cast<float*>(sums.data.get()), states.get()}, device,
                              nullptr);

  const double tolerance = c.dtype == kF ? 2e-5 : c.dtype == kB ? 2.5e-2 : 3e-3;
  std::vector<Row> wanted(rows);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = r / (c.h_q * c.s_q), head = r / c.s_q, kv = head / group;
    std::vector<double> scores(c.s_kv);
    for (int64_t j = 0; j < c.s_kv; ++j) {
      double dot = 0;
      for (int64_t i = 0; i < c.d; ++i) {
        dot += q.get(r * c.d + i) * k.get((kv * c.s_kv + j) * c.d + i);
      }
      dot *= p.scale;
      scores[j] =
          (c.softcap > 0 ? c.softcap * std::tanh(dot / c.softcap) : dot) + bias[r * c.s_kv + j];
    }
    const std::vector<bool> own(attended.begin() + r * c.s_kv, attended.begin() + (r + 1) * c.s_kv);
    wanted[r] =
        reference_row(scores, own, flags.data() + b * c.n_flags, c.n_flags, p.gate, heads[head]);
    compare_statistics(c, wanted[r], &statistics[r * 4], r, true);
    const auto& a =
        !wanted[r].decided && statistics[r * 4 + 3] == 0 ? wanted[r].a : wanted[r].weighted;
    for (int64_t i = 0; i < c.d && wanted[r].decided; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < c.s_kv; ++j) {
        sum += a[j] > 0 ? a[j] * v.get((kv * c.s_kv + j) * c.d + i) : 0;
      }
      compare(c, "output", r * c.d + i, out.get(r * c.d + i), sum, tolerance);
    }
  }

  // Statistics of the first query position of every head.
  std::vector<float> row_statistics(c.b * c.h_q * 3, NAN);
  std::unique_ptr<float[]> image(new float[c.b * c.h_q * c.n_flags]);
  vrga::AttentionParams rp = p;
  rp.has_values = false;
  rp.v = rp.out = nullptr;
  rp.heads = nullptr;
  rp.image_attention = image.get();
  rp.statistics = row_statistics.data();
  rp.s_q = 1;
  rp.d_v = 0;
  rp.gate = {};
  const auto row_plan = vrga::gpu::plan_attention(rp, device);
  states.reset(new char[row_plan.partial_states * 32]);
  vrga::gpu::launch_attention(rp, row_plan, {nullptr, states.get()}, device, nullptr);
  for (int64_t h = 0; h < c.b * c.h_q; ++h) {
    const Row& row = wanted[h * c.s_q];
    compare_statistics(c, row, &row_statistics[h * 3], h, false);
    for (int64_t j = 0; j < c.n_flags; ++j) {
      const bool counted = (flags[h / c.h_q * c.n_flags + j] & 1) != 0;
      compare(c, "image_attention", h * c.n_flags + j, image[h * c.n_flags + j],
              counted ? row.a[j] : 0.0, 1e-5);
    }
  }

  // The same scores through the softmax.
  Values scores(c.dtype, rows * c.s_kv), probabilities(c.dtype, rows * c.s_kv);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < c.s_kv; ++j) {
      const int64_t i = r * c.s_kv + j;
      scores.set(i, attended[i] ? wanted[r].scores[j] : -INFINITY);
    }
  }
  vrga::SoftmaxParams sp;
  sp.scores = scores.data.get();
  sp.key_flags = p.key_flags;
  sp.heads = p.heads;
  sp.probabilities = probabilities.data.get();
  std::fill(statistics.begin(), statistics.end(), NAN);
  sp.statistics = statistics.data();
  sp.dtype = c.dtype;
  sp.b = c.b;
  sp.h_q = c.h_q;
  sp.s_q = c.s_q;
  sp.s_kv = c.s_kv;
  sp.n_flags = c.n_flags;
  sp.stride_s_s = c.s_kv;
  sp.stride_s_h = c.s_q * c.s_kv;
  sp.stride_s_b = c.h_q * c.s_q * c.s_kv;
  sp.stride_flags_b = c.n_flags;
  sp.gate = p.gate;
  vrga::gpu::launch_softmax(sp, device, nullptr);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> rounded(c.s_kv);
    for (int64_t j = 0; j < c.s_kv; ++j) {
      rounded[j] = scores.get(r * c.s_kv + j);
    }
    const std::vector<bool> own(attended.begin() + r * c.s_kv, attended.begin() + (r + 1) * c.s_kv);
    const int64_t b = r / (c.h_q * c.s_q), head = r / c.s_q;
    const Row row =
        reference_row(rounded, own, flags.data() + b * c.n_flags, c.n_flags, p.gate, heads[head]);
    compare_statistics(c, row, &statistics[r * 4], r, true);
    for (int64_t j = 0; j < c.s_kv && row.decided; ++j) {
      compare(c, "probabilities", r * c.s_kv + j, probabilities.get(r * c.s_kv + j),
              row.weighted[j],
              (c.dtype == kF   ? 1e-5
               : c.dtype == kB ? 4e-3
                               : 5e-4) *
                  (row.weighted[j] + 1e-2));
    }
  }
}

void check_divisors() {
  constexpr int64_t kLargest = 2147483647;
  for (const int64_t d :
       {1, 2, 3, 5, 7, 28, 64, 641, 6700417, 1 << 30, (1 << 30) + 1, 2147483647}) {
    const vrga::gpu::Divisor divisor(d);
    for (const int64_t n : {int64_t{0}, int64_t{1}, d - 1, d, d + 1, 5 * d - 1, 5 * d,
                            kLargest / d * d - 1, kLargest / d * d, kLargest - 1, kLargest}) {
      const auto own = static_cast<int32_t>(n);
      if (n <= kLargest && (divisor.quotient(own) != n / d ||
                            divisor.remainder(own, divisor.quotient(own)) != n % d)) {
        std::fprintf(stderr, "%lld / %lld: got %d\n", static_cast<long long>(n),
                     static_cast<long long>(d), divisor.quotient(own));
        ++failures;
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = argc > 1 && std::strcmp(argv[1], "--small") == 0;
  int64_t index = 0;
  for (const Case& c : kCases) {
    if (small && index == kSmall) {
      break;
    }
    simt::set_seed(static_cast<uint64_t>(++index));
    run(c);
  }
  check_divisors();
  const simt::Counters& counters = simt::counters();
  if (counters.matrix_wavefronts != counters.matrix_phases) {
    std::fprintf(stderr, "ldmatrix: %lld shared-memory accesses for %lld groups of rows\n",
                 static_cast<long long>(counters.matrix_wavefronts),
                 static_cast<long long>(counters.matrix_phases));
    ++failures;
  }
  std::printf("%lld cases, %lld launches, %lld blocks, %d failures\n",
              static_cast<long long>(index), static_cast<long long>(counters.launches),
              static_cast<long long>(counters.blocks), failures);
  return failures == 0 ? 0 : 1;
}
