// Every primitive once, with fixed inputs; prints "name index word" per result. Compiled by nvcc
// for the device and by g++ for the emulator, the two outputs have to agree: see primitives.py.
#include "cuda/kernels/primitives.cuh"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

namespace vrga::gpu {
namespace {

constexpr int kThreads = 64;
constexpr int kWords = 8;  // results per thread

// Memory of the device, seen from here through copies.
template <class T>
struct Buffer {
  T* data = nullptr;
  size_t count;

  explicit Buffer(const std::vector<T>& host) : count(host.size()) {
#if defined(__CUDACC__)
    cudaMalloc(&data, count * sizeof(T));
    cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice);
#else
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, count * sizeof(T)) != 0) {
      std::abort();
    }
    data = static_cast<T*>(memory);
    std::memcpy(data, host.data(), count * sizeof(T));
#endif
  }
  std::vector<T> host() const {
    std::vector<T> values(count);
#if defined(__CUDACC__)
    const cudaError_t error =
        cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost);
    if (error != cudaSuccess) {
      std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
      std::exit(1);
    }
#else
    std::memcpy(values.data(), data, count * sizeof(T));
#endif
    return values;
  }
};

struct Params {
  const uint32_t* in;  // [kThreads, kWords]
  uint32_t* out;       // [kThreads, kWords]
};

VRGA_DEVICE uint32_t* own(uint32_t* words) {
  return words + thread_index() * kWords;
}
VRGA_DEVICE const uint32_t* own(const uint32_t* words) {
  return words + thread_index() * kWords;
}

VRGA_KERNEL exchange(const VRGA_GRID_CONSTANT Params p) {
  uint32_t* out = own(p.out);
  for (int i = 0; i < 5; ++i) {
    out[i] = shuffle_xor_bits(own(p.in)[0], 1 << i);
  }
  out[5] = ballot((own(p.in)[0] & 1) != 0);
  out[6] = any_in_warp(own(p.in)[0] == 0);
  out[7] = static_cast<uint32_t>(lane_index() + 100 * warp_index() + 1000 * block_index());
}

VRGA_KERNEL barriers(const VRGA_GRID_CONSTANT Params p) {
  VRGA_SHARED(shared);
  auto* words = reinterpret_cast<uint32_t*>(shared);
  words[thread_index()] = own(p.in)[0];
  sync_warp();
  own(p.out)[0] = words[thread_index() ^ 1];
  sync_block();
  own(p.out)[1] = words[kThreads - 1 - thread_index()];
  const auto number = static_cast<int32_t>(own(p.in)[1]);
  own(p.out)[2] = sum_in_warp(number >> 8);
  own(p.out)[3] = max_in_warp(number);
  own(p.out)[4] = float_bits(max_in_warp(static_cast<float>(number)));
  own(p.out)[5] = float_bits(max_in_warp(-1.0f - static_cast<float>(lane_index())));
  own(p.out)[6] = float_bits(max_in_warp(number == 0 ? 0.0f : -INFINITY));
  own(p.out)[7] = 0;
}

// Two groups: the first is used while the second is under way; odd threads copy zeros.
VRGA_KERNEL copies(const VRGA_GRID_CONSTANT Params p) {
  VRGA_SHARED(shared);
  auto* words = reinterpret_cast<uint32_t*>(shared) + thread_index() * kWords;
  copy_async(words, own(p.in), true);
  copy_async_commit();
  copy_async(words + 4, own(p.in) + 4, thread_index() % 2 == 0);
  copy_async_commit();
  copy_async_wait<1>();
  for (int i = 0; i < 4; ++i) {
    own(p.out)[i] = words[i];
  }
  copy_async_wait<0>();
  for (int i = 4; i < kWords; ++i) {
    own(p.out)[i] = words[i];
  }
}

VRGA_KERNEL matrices(const VRGA_GRID_CONSTANT Params p) {
  VRGA_SHARED(shared);
  auto* words = reinterpret_cast<uint32_t*>(shared) + warp_index() * kWarpSize * 4;
  for (int i = 0; i < 4; ++i) {
    words[lane_index() * 4 + i] = own(p.in)[i];
  }
  sync_warp();
  uint32_t plain[4], transposed[4];
  load_matrices<false>(plain, words + lane_index() * 4);
  load_matrices<true>(transposed, words + lane_index() * 4);
  for (int i = 0; i < 4; ++i) {
    own(p.out)[i] = plain[i];
    own(p.out)[4 + i] = transposed[i];
  }
}

template <class T>
VRGA_KERNEL products(const VRGA_GRID_CONSTANT Params p) {
  const uint32_t* in = own(p.in);
  uint32_t a[4];
  float c[4];
  for (int i = 0; i < 4; ++i) {
    // Small numbers of either format: exponent bits near the bias, other bits random.
    a[i] = (in[i] & 0x83ff83ffu) | (T::kIsBFloat16 ? 0x3c003c00u : 0x34003400u);
    c[i] = static_cast<float>(i) - 1.5f;
  }
  const uint32_t b0 = a[0] ^ 0x00550055u, b1 = a[3] ^ 0x80118011u;
  mma_m16n8k16<T>(c, a, b0, b1);
  for (int i = 0; i < 4; ++i) {
    own(p.out)[i] = float_bits(c[i]);
    own(p.out)[4 + i] = 0;
  }
}

VRGA_KERNEL exponentials(const VRGA_GRID_CONSTANT Params p) {
  for (int i = 0; i < kWords; ++i) {
    // From -140 to 12, then the special ones.
    const float x = -140.0f + 152.0f / (kThreads * kWords) * (thread_index() * kWords + i);
    own(p.out)[i] = float_bits(exp2_fast(x));
  }
  if (thread_index() == 0) {
    own(p.out)[0] = float_bits(exp2_fast(bits_float(0xff800000u)));  // -inf
    own(p.out)[1] = float_bits(exp2_fast(0.0f));
  }
}

VRGA_KERNEL conversions(const VRGA_GRID_CONSTANT Params p) {
  const uint32_t word = own(p.in)[1];
  const float value = bits_float((word & 0x807fffffu) | (100u + word % 56u) << 23);
  const BFloat16 b{static_cast<uint16_t>(word & 0xbfffu)};
  const Float16 h{static_cast<uint16_t>(word >> 16 & 0xbbffu)};
  uint32_t* out = own(p.out);
  out[0] = pack<BFloat16>(value, -value);
  out[1] = pack<Float16>(value, 2.0f * value);
  out[2] = narrow<BFloat16>(value).bits;
  out[3] = narrow<Float16>(value).bits;
  out[4] = float_bits(widen(b));
  out[5] = float_bits(widen(h));
  out[6] = float_bits(narrow<float>(value));
  out[7] = pack<BFloat16>(1.0f + 0.00390625f, 1.0f + 0.01171875f);  // ties go to even
}

void run(const char* name, void (*kernel)(Params), const Buffer<uint32_t>& in) {
  const Buffer<uint32_t> out(std::vector<uint32_t>(kThreads * kWords, 0xdeadbeefu));
  launch(kernel, name, 1, kThreads, kThreads * kWords * 4, false, Stream{},
         Params{in.data, out.data});
  const auto words = out.host();
  for (size_t i = 0; i < words.size(); ++i) {
    std::printf("%s %d %08x\n", name, static_cast<int>(i), words[i]);
  }
}

int run_all() {
  std::vector<uint32_t> random(kThreads * kWords);
  uint64_t state = 88172645463325252ull;
  for (auto& word : random) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    word = static_cast<uint32_t>(state >> 16);
  }
  const Buffer<uint32_t> in(random);
  run("exchange", exchange, in);
  run("barriers", barriers, in);
  run("copies", copies, in);
  run("matrices", matrices, in);
  run("products_bf16", products<BFloat16>, in);
  run("products_fp16", products<Float16>, in);
  run("exponentials", exponentials, in);
  run("conversions", conversions, in);
  return 0;
}

}  // namespace
}  // namespace vrga::gpu

int main() {
  return vrga::gpu::run_all();
}
