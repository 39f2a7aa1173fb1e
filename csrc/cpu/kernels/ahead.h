// Memory that will be needed soon: rows of K or V.
#pragma once

#include "cpu/job.h"

namespace vrga::cpu::VRGA_ISA {

// While a block of K is multiplied, its V is on the way from memory, and while V is, a later block
// of K. Both loops ask for one row ahead per key of their own, so that the requests are spread
// evenly. The rows go to L2: two blocks would not fit L1. Default: nothing to fetch.
struct Ahead {
  const char* base = nullptr;
  int64_t stride_bytes = 0;
  int rows = 0, lines = 0;

  Ahead() = default;
  template <class T>
  Ahead(const T* first, int64_t stride, int64_t rows, int64_t width)
      : base(reinterpret_cast<const char*>(first)),
        stride_bytes(stride * static_cast<int64_t>(sizeof(T))),
        rows(static_cast<int>(rows)),
        lines(static_cast<int>(ceil_div(width * static_cast<int64_t>(sizeof(T)), 64))) {}

  // The i-th of n equal parts of every row: for a loop that passes the keys n times.
  VRGA_HOST_DEVICE Ahead part(int i, int n) const {
    Ahead result = *this;
    result.base += lines * i / n * 64;
    result.lines = lines * (i + 1) / n - lines * i / n;
    return result;
  }

  VRGA_HOST_DEVICE void fetch(int64_t row) const {
    if (row < rows) {
      const char* at = base + row * stride_bytes;
      for (int i = 0; i < lines; ++i) {
        __builtin_prefetch(at + i * 64, 0, 2);
      }
    }
  }
};

}  // namespace vrga::cpu::VRGA_ISA
