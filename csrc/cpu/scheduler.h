// Cuts an operation into tasks, hands them out, and merges their results.
#pragma once

#include <cstdint>
#include <functional>

#include "core/params.h"

namespace vrga::cpu {

// Calls task(0) ... task(count - 1), in any order and from any number of threads.
using Executor = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

void attention(const AttentionParams& params, const Executor& run);
void reweighted_softmax(const SoftmaxParams& params, const Executor& run);

}  // namespace vrga::cpu
