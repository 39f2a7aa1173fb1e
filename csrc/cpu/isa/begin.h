// Included first by every file of this folder, before the instruction set is opened: what these
// headers define inline is compiled for the baseline, so no other file can pick up a copy that
// needs more than the machine has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/gate.h"
#include "core/key_rows.h"
#include "core/params.h"
#include "core/softmax_state.h"
#include "core/split_policy.h"
#include "cpu/element.h"
#include "cpu/job.h"
#include "cpu/simd_level.h"
