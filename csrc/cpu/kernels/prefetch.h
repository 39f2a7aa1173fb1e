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
  Ahead() = default;  // nothing to fetch

  template <class T>
  Ahead(const T* first, int64_t stride, int64_t rows, int64_t width) {
    const int64_t element = static_cast<int64_t>(sizeof(T));
    const bool dense = stride == width;
    const int64_t row_bytes = (dense ? rows * width : width) * element;
    row_ = reinterpret_cast<uintptr_t>(first);
    stride_ = static_cast<uintptr_t>(stride * element);
    per_row_ = ceil_div(row_bytes, static_cast<int64_t>(kLineBytes));
    rows_ = dense ? 1 : rows;
  }

  // Left to fetch.
  int64_t lines() const { return rows_ * per_row_ + in_row_; }

  // Asks for the next lines, or as many as are left.
  VRGA_HOST_DEVICE void fetch(int lines) {
    while (lines > 0 && (in_row_ > 0 || next_row())) {
      const int now = in_row_ < lines ? static_cast<int>(in_row_) : lines;
      in_row_ -= now;
      lines -= now;
      for (const uintptr_t end = at_ + static_cast<uintptr_t>(now) * kLineBytes; at_ < end;
           at_ += kLineBytes) {
        __builtin_prefetch(reinterpret_cast<const void*>(at_), 0, 1);
      }
    }
  }

 private:
  static constexpr uintptr_t kLineBytes = 64;

  bool next_row() {
    if (rows_ == 0) {
      return false;
    }
    --rows_;
    at_ = row_;
    row_ += stride_;
    in_row_ = per_row_;
    return true;
  }

  // Plain numbers: past the last row, nobody reads what they stand for.
  uintptr_t at_ = 0, row_ = 0, stride_ = 0;
  int64_t in_row_ = 0, per_row_ = 0, rows_ = 0;  // lines left in the row, in a row, rows left
};

// How many of `lines` to fetch at each of so many steps of a loop.
inline int pace(int64_t lines, int64_t steps) {
  return steps > 0 ? static_cast<int>(ceil_div(lines, steps)) : 0;
}

}  // namespace vrga::cpu::VRGA_ISA
