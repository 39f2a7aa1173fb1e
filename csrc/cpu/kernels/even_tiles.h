// How loops over query rows and over vectors are cut into tiles.
#pragma once

#include "cpu/job.h"

namespace vrga::cpu::VRGA_ISA {

// n things in tiles of at most `most`, as equal as can be: 8 rows are 4 + 4, not 7 + 1, where one
// row alone would wait for its loads.
struct EvenTiles {
  int n, count;

  VRGA_HOST_DEVICE EvenTiles(int things, int most) : n(things), count((n + most - 1) / most) {}

  VRGA_HOST_DEVICE int begin(int tile) const { return static_cast<int>(int64_t{n} * tile / count); }
  VRGA_HOST_DEVICE int end(int tile) const { return begin(tile + 1); }
  VRGA_HOST_DEVICE int size(int tile) const { return end(tile) - begin(tile); }
};

}  // namespace vrga::cpu::VRGA_ISA
