// Which kernel serves a call, how its key range is split and how much workspace that takes. Plain
// arithmetic on the host: no CUDA call, no framework.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/params.h"
#include "cuda/kernels/split_params.h"

namespace vrga::gpu {

struct Device {
  int multiprocessors = 1;
  int shared_bytes = 228 * 1024;   // of a multiprocessor
  bool overlaps_launches = false;  // as overlaps_launches() says
};

enum class Path : int32_t {
  kTensor,  // tensor cores: bf16, fp16; D in {64, 80, 96, 128, 256}; rows of K and V aligned to
            // 16 bytes, of the query to 4
  kPlain,   // everything else up to D = 256
};

constexpr int kMaxHeadDim = 256;

struct CallPlan {
  Path path = Path::kPlain;
  int32_t row_slots = 1;       // tensor path: 8 * row_slots query rows per block
  int32_t rows_per_block = 1;  // query rows of one kv head
  int32_t row_blocks = 1;
  int32_t splits = 1;
  int32_t pitch = 0;  // floats per row of partial sums
  Planes planes = Planes::kPlain;
  int32_t stored_planes = 1;
  int64_t blocks = 0;          // of the split kernel
  int64_t partial_sums = 0;    // floats of workspace; 0 with one split
  int64_t partial_states = 0;  // 32-byte records of workspace
};

// Null, or why no kernel serves the call: "argument: wanted, got".
const char* unsupported(const AttentionParams& params);

CallPlan plan_attention(const AttentionParams& params, const Device& device);

}  // namespace vrga::gpu
