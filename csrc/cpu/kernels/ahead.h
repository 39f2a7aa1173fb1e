// Memory that will be needed soon: rows of K or V.
#pragma once

#include "cpu/job.h"

namespace vrga::cpu::VRGA_ISA {

// Asks for rows of K or V long before their turn: while the keys of a block are multiplied, its V
// is on the way from memory, and while V is, K of the next block. One line after the other, so that
// the prefetcher of the core sees one ascending stream and takes part; the order in which the
// kernels load would hide it. The lines go to L2: two blocks would not fit L1.
class Ahead {
 public:
  static constexpr int kBatchLines = 2;

  Ahead() = default;  // nothing to fetch

  template <class T>
  Ahead(const T* first, int64_t stride, int64_t rows, int64_t width) {
    constexpr int64_t kBatch = kBatchLines * kLineBytes;
    const int64_t element = static_cast<int64_t>(sizeof(T));
    const bool dense = stride == width;
    const int64_t row = dense ? rows * width * element : width * element;
    at_ = reinterpret_cast<uintptr_t>(first);
    row_end_ = at_ + static_cast<uintptr_t>(ceil_div(row, kBatch) * kBatch);
    stride_ = static_cast<uintptr_t>(stride * element);
    gap_ = stride_ - (row_end_ - at_);
    left_ = (dense ? 1 : rows) * ceil_div(row, kBatch);
  }

  int64_t batches() const { return left_; }

  // Addresses are plain numbers: a line past the last row is asked for in vain, not read.
  VRGA_HOST_DEVICE void fetch(int batches) {
    for (; batches > 0 && left_ > 0; --batches, --left_) {
#pragma GCC unroll 2
      for (int i = 0; i < kBatchLines; ++i) {
        __builtin_prefetch(reinterpret_cast<const void*>(at_ + i * kLineBytes), 0, 1);
      }
      at_ += kBatchLines * kLineBytes;
      if (at_ == row_end_) {
        at_ += gap_;
        row_end_ += stride_;
      }
    }
  }

 private:
  static constexpr uintptr_t kLineBytes = 64;
  uintptr_t at_ = 0, row_end_ = 0, stride_ = 0, gap_ = 0;
  int64_t left_ = 0;
};

// How many batches to fetch at which steps of a loop, so that they are spread evenly.
struct Pace {
  int batches = 0;
  int mask = 0;  // at steps t with (t & mask) == 0

  // For `total` batches in `steps` steps.
  Pace(int64_t total, int64_t steps) {
    batches = static_cast<int>(ceil_div(total, steps > 0 ? steps : 1));
    while (total > 0 && total * (2 * mask + 2) <= steps) {
      mask = 2 * mask + 1;
    }
  }
};

}  // namespace vrga::cpu::VRGA_ISA
