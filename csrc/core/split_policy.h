// Into how many parts the key range is cut.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace vrga {

struct SplitPlan {
  // At least 1. Split i covers keys [i * keys_per_split, min(s_kv, (i + 1) * keys_per_split)),
  // never empty.
  int64_t splits;
  int64_t keys_per_split;  // a multiple of the tile
};

VRGA_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// `items` independent pieces of work (batch x kv head x row chunk) are cut until about
// `target_tasks` exist, but into parts of at least `min_keys`. Nothing here depends on how many
// threads or multiprocessors happen to run: the order of every sum, and so every bit of the result,
// is a function of the shape alone.
VRGA_HOST_DEVICE SplitPlan plan_splits(int64_t items, int64_t s_kv, int64_t tile, int64_t min_keys,
                                       int64_t target_tasks) {
  const int64_t wanted = items > 0 ? ceil_div(target_tasks, items) : 1;
  const int64_t most = s_kv > min_keys ? s_kv / min_keys : 1;
  const int64_t splits = wanted < most ? wanted : most;
  int64_t keys = ceil_div(ceil_div(s_kv > 0 ? s_kv : 1, splits), tile) * tile;
  return {s_kv > 0 ? ceil_div(s_kv, keys) : 1, keys};
}

}  // namespace vrga
